"""dh: one destination one dest; buckets in turn; nobody takes over."""

from __future__ import annotations

from collections import Counter

import pytest

from tunlb.ipvs.sched.dh import BUCKETS, DestinationHash


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param((1,), {0: 256}, id="one dest"),
        pytest.param((1, 100), {0: 128, 1: 128}, id="weights do not matter"),
        pytest.param((1, 1, 1), {0: 86, 1: 85, 2: 85}, id="the remainder goes to the first"),
        pytest.param((1, 0, 1), {0: 128, 2: 128}, id="quiescent has none"),
        pytest.param((0, 0), {}, id="none"),
    ],
)
def test_buckets_are_dealt_in_turn(weights, expected, make) -> None:
    scheduler = DestinationHash(1)
    scheduler.update(make(*weights))
    assert Counter(dest.id for dest in scheduler.table) == expected


def test_more_dests_than_buckets(make) -> None:
    scheduler = DestinationHash(1)
    scheduler.update(make(*[1] * 300))
    assert [dest.id for dest in scheduler.table] == list(range(BUCKETS))


def test_a_destination_keeps_its_dest_whoever_asks(make, picks, clients) -> None:
    scheduler = DestinationHash(1)
    scheduler.update(make(1, 1, 1))
    assert len(set(picks(scheduler, clients=clients[:200]))) == 1


@pytest.mark.parametrize("high", [0, 0xFD00_0000_0000_0000], ids=["v4", "v6"])
def test_neighbouring_destinations_spread_evenly(high, make, picks_for, clients) -> None:
    scheduler = DestinationHash(42)
    scheduler.update(make(1, 1, 1, 1))
    shares = Counter(picks_for(scheduler, clients, high=high))
    assert [shares[i] for i in range(4)] == pytest.approx([1024] * 4, rel=0.15)


def test_the_seed_keys_the_hash(make, picks_for, clients) -> None:
    found = []
    for seed in (1, 1, 2):
        scheduler = DestinationHash(seed)
        scheduler.update(make(1, 1))
        found.append(picks_for(scheduler, clients[:256]))
    assert found[0] == found[1]
    assert sum(a == b for a, b in zip(found[0], found[2], strict=True)) < 180


@pytest.mark.parametrize("how", ["full", "away"])
def test_the_destinations_of_an_invalid_dest_get_none(how, make, picks_for, clients) -> None:
    scheduler = DestinationHash(1)
    dests = make(1, 1, 1)
    scheduler.update(dests)
    before = picks_for(scheduler, clients[:300])
    if how == "full":
        dests[1].max_conn, dests[1].actconns = 1, 1
    else:
        dests[1].available = False
    after = picks_for(scheduler, clients[:300])
    assert after == [-1 if picked == 1 else picked for picked in before]


def test_the_destinations_of_a_quiescent_dest_move_on(make, picks_for, clients) -> None:
    scheduler = DestinationHash(1)
    dests = make(1, 1, 1)
    scheduler.update(dests)
    dests[1].weight = 0
    scheduler.update(dests)
    assert set(picks_for(scheduler, clients[:300])) == {0, 2}
