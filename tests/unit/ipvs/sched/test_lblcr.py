"""lblcr: what differs from lblc: a destination has a set of dests."""

from __future__ import annotations

from tunlb.ipvs.sched.lblcr import REPLICAS, SHRINK_MS, ReplicatedLocality


def grown(make, picks_for, count: int, weight: int = 4):
    """A scheduler whose destination 1 has these dests in its set, each with no conns by now."""
    scheduler = ReplicatedLocality()
    dests = make(*[weight] * count)
    scheduler.update(dests)
    for dest in dests:
        assert picks_for(scheduler, [1]) == [dest.id]
        dest.actconns = weight + 1
    for dest in dests:
        dest.actconns = 0
    return scheduler, dests


def test_an_overloaded_dest_stays_in_the_set(make, picks_for) -> None:
    scheduler, dests = grown(make, picks_for, 2)
    dests[0].actconns, dests[1].actconns = 3, 4
    assert picks_for(scheduler, [1]) == [0]
    dests[0].actconns = 5
    assert picks_for(scheduler, [1]) == [1]


def test_the_set_goes_before_the_others(make, picks_for) -> None:
    scheduler, dests = grown(make, picks_for, 2)
    more = [*dests, *make(1, 1, 4)[2:]]
    more[2].id = 2
    scheduler.update(more)
    dests[0].actconns, dests[1].actconns = 4, 3
    assert picks_for(scheduler, [1, 2]) == [1, 2]


def test_a_set_that_did_not_change_loses_its_busiest(make, picks_for) -> None:
    scheduler, dests = grown(make, picks_for, 3)
    dests[0].actconns, dests[1].actconns, dests[2].actconns = 3, 1, 2
    half = SHRINK_MS // 2
    assert picks_for(scheduler, [1], now=half) == [1]
    assert picks_for(scheduler, [1], now=SHRINK_MS + 1) == [1]  # dest 0 left the set
    dests[0].actconns = 0
    assert picks_for(scheduler, [1], now=SHRINK_MS + 1 + half) == [1]
    assert picks_for(scheduler, [1], now=2 * SHRINK_MS + 1) == [1]
    dests[1].actconns = 3
    assert picks_for(scheduler, [1], now=2 * SHRINK_MS + 1) == [2]
    dests[1].actconns = 1
    assert picks_for(scheduler, [1], now=2 * SHRINK_MS + 2) == [1]  # dest 2 left it
    dests[1].actconns = 4
    assert picks_for(scheduler, [1], now=2 * SHRINK_MS + 3) == [1]  # alone, and not overloaded


def test_a_set_of_one_is_not_shrunk(make, picks_for) -> None:
    scheduler, _ = grown(make, picks_for, 1)
    half = SHRINK_MS // 2
    assert [picks_for(scheduler, [1], now=half * i) for i in range(1, 6)] == [[0]] * 5


def test_removed_dests_leave_the_set(make, picks_for) -> None:
    """One that comes back is not of it any more, once another dest has joined."""
    scheduler, dests = grown(make, picks_for, 2)
    rest = [*dests[1:], *make(1, 1, 4)[2:]]
    dests[0].available = False
    scheduler.update(rest)
    dests[1].actconns = 5
    assert picks_for(scheduler, [1]) == [2]
    dests[0].available = True
    scheduler.update([dests[0], *rest])
    dests[1].actconns, rest[1].actconns = 4, 4
    assert picks_for(scheduler, [1]) == [1]


def test_a_full_set_makes_room_for_another(make, picks_for) -> None:
    scheduler, dests = grown(make, picks_for, REPLICAS)
    more = [*dests, make(*[4] * (REPLICAS + 1))[REPLICAS]]
    scheduler.update(more)
    for dest in dests:
        dest.actconns = 5
    dests[7].actconns = 6  # the busiest
    assert picks_for(scheduler, [1]) == [REPLICAS]
    for dest in more:
        dest.actconns = 4
    dests[7].actconns = 2
    assert picks_for(scheduler, [1]) == [0]
    dests[6].actconns = 3
    assert picks_for(scheduler, [1]) == [6]
