"""sh: one client one dest; buckets by weight; a keyed hash; a way round invalid dests."""

from __future__ import annotations

from collections import Counter

import pytest

from tunlb.ipvs.sched.sh import BUCKETS, SourceHash, source_hash
from tunlb.packet import Packet


def buckets(scheduler: SourceHash) -> dict[int, int]:
    return Counter(dest.id for dest in scheduler.table)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param((1,), {0: 256}, id="one dest"),
        pytest.param((1, 1), {0: 128, 1: 128}, id="equal"),
        pytest.param((300, 100), {0: 192, 1: 64}, id="divided by the gcd"),
        pytest.param((1, 0, 1), {0: 128, 2: 128}, id="quiescent has none"),
        pytest.param((1, 1, 1), {0: 86, 1: 85, 2: 85}, id="the remainder goes to the first"),
        pytest.param((1000, 999), {0: 129, 1: 127}, id="scaled to fit"),
        pytest.param((65535, 1), {0: 255, 1: 1}, id="the smallest has at least one"),
        pytest.param((0, 0), {}, id="none"),
    ],
)
def test_buckets_follow_weights(weights, expected, make) -> None:
    scheduler = SourceHash(1)
    scheduler.update(make(*weights))
    assert buckets(scheduler) == expected


def test_buckets_are_dealt_in_turn(make) -> None:
    scheduler = SourceHash(1)
    scheduler.update(make(2, 1))
    assert [dest.id for dest in scheduler.table[:6]] == [0, 0, 1, 0, 0, 1]
    assert len(scheduler.table) == BUCKETS


def test_more_dests_than_buckets(make) -> None:
    scheduler = SourceHash(1)
    scheduler.update(make(*[1] * 300))
    assert len(scheduler.table) == BUCKETS


def test_a_client_keeps_its_dest_whatever_its_port(make, clients) -> None:
    scheduler = SourceHash(1)
    scheduler.update(make(1, 1, 1))
    pkt = Packet()
    for client in clients[:50]:
        pkt.saddr = client
        found = set()
        for port in range(1000, 1010):
            pkt.sport = port
            found.add(scheduler.schedule(pkt, 0))
        assert len(found) == 1


@pytest.mark.parametrize("high", [0, 0xFD00_0000_0000_0000], ids=["v4", "v6"])
def test_neighbouring_clients_spread_evenly(high, make, picks, clients) -> None:
    scheduler = SourceHash(42)
    scheduler.update(make(1, 1, 2))
    shares = Counter(picks(scheduler, clients=clients, high=high))
    assert [shares[i] for i in range(3)] == pytest.approx([1024, 1024, 2048], rel=0.1)


def test_the_seed_keys_the_hash(make, picks, clients) -> None:
    found = []
    for seed in (1, 1, 2):
        scheduler = SourceHash(seed)
        scheduler.update(make(1, 1))
        found.append(picks(scheduler, clients=clients[:256]))
    assert found[0] == found[1]
    same = sum(a == b for a, b in zip(found[0], found[2], strict=True))
    assert same == pytest.approx(128, abs=40)


def test_clients_of_an_invalid_dest_spread_over_the_others(make, picks, clients) -> None:
    scheduler = SourceHash(3)
    dests = make(1, 1, 1, 1)
    scheduler.update(dests)
    before = picks(scheduler, clients=clients)
    dests[1].available = False
    after = picks(scheduler, clients=clients)
    moved = Counter(b for a, b in zip(before, after, strict=True) if a == 1)
    assert all(a == b for a, b in zip(before, after, strict=True) if a != 1)
    assert [moved[i] for i in (0, 2, 3)] == pytest.approx([before.count(1) / 3] * 3, rel=0.2)


def test_the_only_valid_one_of_many_is_found(make, picks, clients) -> None:
    scheduler = SourceHash(3)
    dests = make(*[1] * 250)
    scheduler.update(dests)
    for dest in dests[:77] + dests[78:]:
        dest.available = False
    assert set(picks(scheduler, clients=clients[:200])) == {77}


@pytest.mark.parametrize(
    ("seed", "high", "low", "offset", "expected"),
    [
        pytest.param(0, 0, 0, 0, 0, id="zero"),
        pytest.param(1, 0, 0xFFFF_0A00_0001, 0, None, id="v4"),
        pytest.param(2**64 - 1, 2**64 - 1, 2**64 - 1, 32, None, id="all ones"),
    ],
)
def test_the_hash_is_the_same_on_both_builds(seed, high, low, offset, expected) -> None:
    """Against the formula with Python's unbounded integers."""
    mask = 2**64 - 1
    mix1, mix2 = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53
    h = (seed + offset * 0x9E3779B97F4A7C15) & mask
    h = (h ^ high) * mix1 & mask
    h ^= h >> 32
    h = (h ^ low ^ seed) * mix2 & mask
    h ^= h >> 33
    h = h * mix1 & mask
    h ^= h >> 33
    h = h * mix2 & mask
    h ^= h >> 33
    pkt = Packet()
    pkt.saddr_hi, pkt.saddr = high, low
    assert source_hash(seed, pkt, offset) == (h if expected is None else expected)
