"""conhash: the ring is its formula, shares follow weights, and only a dest's own clients move."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from hashlib import blake2b

import pytest

from tunlb.ipvs.sched.conhash import POINTS, RING, ConsistentHash
from tunlb.ipvs.sched.sh import source_hash
from tunlb.packet import Packet

SEED = 0x0123_4567_89AB_CDEF


def made(dests, seed: int = SEED) -> ConsistentHash:
    scheduler = ConsistentHash(seed)
    scheduler.update(dests)
    return scheduler


def points(scheduler: ConsistentHash) -> dict[int, int]:
    """How many points each dest has."""
    return Counter(scheduler.order[word & 0xFFFF].id for word in scheduler.ring)


def test_the_ring_is_the_formula(make) -> None:
    dests = make(2, 1)
    expected = []
    for number, (dest, count) in enumerate(zip(dests, (320, 160), strict=True)):
        name = b"".join(n.to_bytes(8, "big") for n in (dest.daddr_hi, dest.daddr, dest.dport))
        for i in range(count):
            block = name + (i // 10).to_bytes(4, "big")
            digest = blake2b(block, digest_size=60, key=SEED.to_bytes(8, "big")).digest()
            place = int.from_bytes(digest[i % 10 * 6 : i % 10 * 6 + 6], "big")
            expected.append(place << 16 | number)
    scheduler = made(dests)
    assert list(scheduler.ring) == sorted(expected)
    assert scheduler.order == dests


def test_a_client_belongs_to_the_next_point(make, picks, clients) -> None:
    scheduler = made(make(1, 3, 2))
    ring = list(scheduler.ring)
    pkt = Packet()
    expected = []
    for client in clients[:1000]:
        pkt.saddr = client
        wanted = source_hash(SEED, pkt, 0)
        word = next((word for word in ring if word >= wanted), ring[0])
        expected.append(scheduler.order[word & 0xFFFF].id)
    assert picks(scheduler, clients=clients[:1000]) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param((1,), {0: POINTS}, id="one dest"),
        pytest.param((30, 10, 20), {0: 480, 1: 160, 2: 320}, id="divided by the gcd"),
        pytest.param((5, 0, 5), {0: POINTS, 2: POINTS}, id="quiescent has none"),
        pytest.param((65535, 1), {0: 262140, 1: 4}, id="scaled to fit"),
        pytest.param((65535, *[1] * 9), {0: 262108} | dict.fromkeys(range(1, 10), 3), id="uneven"),
        pytest.param((*[65535] * 8, 1), dict.fromkeys(range(8), 32767) | {8: 1}, id="at least one"),
    ],
)
def test_points_follow_weights(weights, expected, make) -> None:
    assert points(made(make(*weights))) == expected


def test_many_dests_share_a_ring_of_a_fixed_size(make) -> None:
    found = points(made(make(*[1] * 2000)))
    assert set(found.values()) == {RING // 2000}


@pytest.mark.parametrize("high", [0, 0xFD00_0000_0000_0000], ids=["v4", "v6"])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4)])
def test_clients_follow_weights(weights, high, make, picks, clients) -> None:
    """160 points each: a share has a standard deviation of some 8 % (1 / sqrt(160))."""
    shares = Counter(picks(made(make(*weights)), clients=clients, high=high))
    expected = [len(clients) * weight / sum(weights) for weight in weights]
    assert [shares[i] for i in range(4)] == pytest.approx(expected, rel=0.25)


def test_the_order_of_the_configuration_does_not_matter(make, picks, clients) -> None:
    dests = make(*[1, 2, 3] * 5)
    shuffled = random.Random(1).sample(dests, len(dests))
    assert picks(made(dests), clients=clients) == picks(made(shuffled), clients=clients)


def test_the_seed_and_the_port_decide(make, picks, clients) -> None:
    def found(seed: int, port: int) -> list[int]:
        dests = make(1, 1, 1, 1)
        for dest in dests:
            dest.dport = port
        ids: list[int] = picks(made(dests, seed), clients=clients)
        return ids

    assert found(1, 80) == found(1, 80)
    for other in (found(2, 80), found(1, 81)):
        same = sum(a == b for a, b in zip(found(1, 80), other, strict=True))
        assert same == pytest.approx(len(clients) / 4, rel=0.25)


@pytest.mark.parametrize("how", ["removed", "quiescent", "quiescent, not told", "full", "away"])
def test_only_the_clients_of_a_dest_that_goes_move(how, make, picks, clients) -> None:
    """And all five ways to go lead them to the same dests."""
    dests = make(*[1] * 10)
    scheduler = made(dests)
    before = picks(scheduler, clients=clients)
    if how == "removed":
        scheduler.update(dests[:3] + dests[4:])
    elif how == "full":
        dests[3].max_conn, dests[3].inactconns = 1, 1
    elif how == "away":
        dests[3].available = False
    else:
        dests[3].weight = 0
        if how == "quiescent":
            scheduler.update(dests)
    after = picks(scheduler, clients=clients)
    moved = [new for old, new in zip(before, after, strict=True) if old == 3]
    assert all(new == old for old, new in zip(before, after, strict=True) if old != 3)
    assert set(moved) == {0, 1, 2, 4, 5, 6, 7, 8, 9}
    assert after == picks(made(make(*[1] * 3, 0, *[1] * 6)), clients=clients)


def test_a_dest_that_comes_takes_its_share_and_no_more(make, picks, clients) -> None:
    dests = make(*[1] * 10)
    scheduler = made(dests[:9])
    before = picks(scheduler, clients=clients)
    scheduler.update(dests)
    after = picks(scheduler, clients=clients)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(changed) == {9}
    assert len(changed) == pytest.approx(len(clients) / 10, rel=0.3)


def test_more_weight_only_gains(make, picks, clients) -> None:
    dests = make(1, 2, 2)
    scheduler = made(dests)
    before = picks(scheduler, clients=clients)
    dests[0].weight = 3
    scheduler.update(dests)
    after = picks(scheduler, clients=clients)
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {0}


def test_the_two_valid_ones_of_many_share(make, picks, clients) -> None:
    scheduler = made(make(*[1] * 500))
    for dest in scheduler.dests[2:]:
        dest.available = False
    shares = Counter(picks(scheduler, clients=clients[:1000]))
    assert set(shares) == {0, 1}
    assert min(shares.values()) > 300


def test_the_only_valid_one_of_very_many_is_found(make, picks, clients) -> None:
    """Most clients pass STEPS points without meeting it."""
    scheduler = made(make(*[1] * 5000))
    for dest in scheduler.dests[1:]:
        dest.available = False
    assert set(picks(scheduler, clients=clients[:20])) == {0}
    scheduler.dests[0].available = False
    assert set(picks(scheduler, clients=clients[:20])) == {-1}


def test_prepared_in_pieces_it_takes_over_at_once(make, picks, clients) -> None:
    dests = make(*[1] * 20)
    scheduler = made(dests[:10])
    before = picks(scheduler, clients=clients)
    pieces = 0
    weights = [1] * 10 + [0] * 5 + [2] * 5  # not the dests' yet
    for _ in scheduler.prepare(dests, weights):
        pieces += 1
        if pieces % 16 == 0:
            assert picks(scheduler, clients=clients[:64]) == before[:64]
    assert pieces > 20
    assert picks(scheduler, clients=clients) == before
    for dest, weight in zip(dests, weights, strict=True):
        dest.weight = weight
    ring = scheduler.ring
    scheduler.update(dests)
    assert scheduler.ring is not ring
    assert picks(scheduler, clients=clients) == picks(made(dests), clients=clients)


def test_another_list_than_was_prepared_is_not_taken_for_it(make, picks, clients) -> None:
    dests = make(1, 1, 1)
    scheduler = made(dests)
    for _ in scheduler.prepare(dests[:1], [1]):
        pass
    scheduler.update(dests[1:])
    assert set(picks(scheduler, clients=clients)) == {1, 2}


def test_what_did_not_change_is_not_computed_again(make) -> None:
    dests = make(3, 3, 0)
    scheduler = made(dests)
    ring = scheduler.ring
    for dest in dests:
        dest.weight *= 2
    scheduler.update(dests[::-1])
    assert scheduler.ring is ring
    scheduler.update([])
    scheduler.update(dests)
    assert scheduler.ring is ring


def test_every_build_and_machine_picks_alike(make, picks, clients) -> None:
    """A fixed digest of 4096 picks: nodes of one seed must agree, today's with last year's too."""
    ids = bytes(picks(made(make(*[1, 2, 3, 0, 7] * 8)), clients=clients))
    assert hashlib.sha256(ids).hexdigest()[:16] == "f4ed2e4d32cad994"
