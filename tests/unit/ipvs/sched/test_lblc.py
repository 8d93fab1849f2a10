"""lblc: a destination keeps its dest until that one is overloaded or not valid."""

from __future__ import annotations

import pytest

from tunlb.ipvs.sched.lblc import ENTRIES, IDLE_MS, LocalityLeastConn
from tunlb.ipvs.sched.lblcr import ReplicatedLocality

both = pytest.mark.parametrize("kind", [LocalityLeastConn, ReplicatedLocality])


@both
def test_a_new_destination_gets_what_wlc_picks(kind, make, picks_for) -> None:
    scheduler = kind()
    dests = make(1, 2, 2)
    dests[0].actconns, dests[1].actconns, dests[2].actconns = 1, 3, 1
    scheduler.update(dests)
    assert picks_for(scheduler, [1]) == [2]


@both
def test_a_destination_keeps_its_dest(kind, make, picks_for) -> None:
    scheduler = kind()
    dests = make(4, 4)
    scheduler.update(dests)
    assert picks_for(scheduler, [1]) == [0]
    dests[0].actconns = 3
    assert picks_for(scheduler, [1, 2, 1, 2]) == [0, 1, 0, 1]
    # another family's address of the same low half is another destination
    dests[1].actconns = 4
    assert picks_for(scheduler, [2], high=7) == [0]


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        pytest.param((4, 0), 0, id="as many as its weight: not overloaded"),
        pytest.param((5, 1), 1, id="more, and the other has less than half"),
        pytest.param((5, 2), 0, id="more, but the other has half of its own"),
        pytest.param((50, 2), 0, id="many more, but nobody is idle enough"),
    ],
)
@both
def test_an_overloaded_dest_is_left(kind, active, expected, make, picks_for) -> None:
    scheduler = kind()
    dests = make(4, 4)
    scheduler.update(dests)
    assert picks_for(scheduler, [1]) == [0]
    dests[0].actconns, dests[1].actconns = active
    assert picks_for(scheduler, [1]) == [expected]


def test_who_left_does_not_come_back(make, picks_for) -> None:
    scheduler = LocalityLeastConn()
    dests = make(4, 4)
    scheduler.update(dests)
    picks_for(scheduler, [1])
    dests[0].actconns = 5
    assert picks_for(scheduler, [1]) == [1]
    dests[0].actconns = 0
    dests[1].actconns = 4
    assert picks_for(scheduler, [1]) == [1]


@both
def test_an_idle_dest_that_may_take_none_is_no_reason_to_leave(kind, make, picks_for) -> None:
    scheduler = kind()
    dests = make(4, 4, 4)
    scheduler.update(dests)
    assert picks_for(scheduler, [1]) == [0]
    dests[0].actconns, dests[1].actconns = 100, 90
    dests[2].available = False
    assert picks_for(scheduler, [1]) == [0]


@pytest.mark.parametrize("how", ["full", "away", "quiescent"])
@both
def test_an_invalid_dest_is_replaced(kind, how, make, picks_for) -> None:
    scheduler = kind()
    dests = make(4, 4)
    scheduler.update(dests)
    assert picks_for(scheduler, [1]) == [0]
    if how == "full":
        dests[0].max_conn, dests[0].inactconns = 1, 1
    elif how == "away":
        dests[0].available = False
    else:
        dests[0].weight = 0
    assert picks_for(scheduler, [1]) == [1]
    dests[1].available = False
    assert picks_for(scheduler, [1]) == [-1]


@both
def test_a_destination_is_forgotten_after_a_day(kind, make, picks_for) -> None:
    scheduler = kind()
    dests = make(4, 4)
    scheduler.update(dests)
    assert picks_for(scheduler, [1, 2], now=0) == [0, 0]
    dests[0].actconns = 1
    assert picks_for(scheduler, [1, 2], now=IDLE_MS) == [0, 0]
    # asked for in time, and in time again; the other one was not
    assert picks_for(scheduler, [1], now=2 * IDLE_MS) == [0]
    assert picks_for(scheduler, [2], now=2 * IDLE_MS + 1) == [1]


@both
def test_a_full_table_forgets_whom_nobody_asked_for_longest(kind, make, picks_for) -> None:
    scheduler = kind()
    dests = make(4, 4)
    scheduler.update(dests)
    picks_for(scheduler, range(ENTRIES))
    picks_for(scheduler, [0])
    dests[0].actconns = 1
    assert picks_for(scheduler, [ENTRIES]) == [1]  # new, and makes destination 1 go
    assert picks_for(scheduler, [0, 2, ENTRIES - 1]) == [0, 0, 0]
    assert picks_for(scheduler, [1]) == [1]


@both
def test_an_update_keeps_what_was_learnt(kind, make, picks_for) -> None:
    scheduler = kind()
    dests = make(4, 4)
    scheduler.update(dests)
    assert picks_for(scheduler, [1]) == [0]
    dests[0].actconns = 2
    scheduler.update(dests[::-1])
    assert picks_for(scheduler, [1, 2]) == [0, 1]
