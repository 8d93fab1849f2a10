"""mh: shares, order independence, small disruption, and the same picks everywhere."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from tunlb.ipvs.sched.mh import MaglevHash
from tunlb.packet import Packet

SEED = 0x0123_4567_89AB_CDEF


def owners(scheduler: MaglevHash) -> list[int]:
    """The id of every slot's dest."""
    return [scheduler.order[slot - 1].id for slot in scheduler.table]


def reference(scheduler: MaglevHash, turns: dict[int, int]) -> list[int]:
    """The paper's population loop, over whole permutations."""
    size = scheduler.table_size
    wishes = {}
    for dest in scheduler.order:
        digest = scheduler.digest(dest)
        offset = int.from_bytes(digest[:8], "big") % size
        skip = int.from_bytes(digest[8:], "big") % (size - 1) + 1
        wishes[dest.id] = iter([(offset + i * skip) % size for i in range(size)])
    table: dict[int, int] = {}
    while True:
        for dest in scheduler.order:
            for _ in range(turns[dest.id]):
                slot = next(slot for slot in wishes[dest.id] if slot not in table)
                table[slot] = dest.id
                if len(table) == size:
                    return [table[i] for i in range(size)]


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        pytest.param((1, 1, 1), (1, 1, 1), id="equal"),
        pytest.param((30, 10, 20), (3, 1, 2), id="divided by the gcd"),
        pytest.param((1000, 1), (62, 1), id="shifted to six bits, at least one"),
        pytest.param((63, 64), (31, 32), id="seven bits are one too many"),
        pytest.param((5, 0, 5), (1, 0, 1), id="quiescent has no turn"),
    ],
)
def test_table_is_the_formula(weights, turns, make) -> None:
    scheduler = MaglevHash(SEED, 251)
    scheduler.update(make(*weights))
    assert owners(scheduler) == reference(scheduler, dict(enumerate(turns)))


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4), (100, 0, 50, 50)])
def test_slots_follow_weights(weights, make) -> None:
    scheduler = MaglevHash(SEED)
    scheduler.update(make(*weights))
    slots = Counter(owners(scheduler))
    expected = [65537 * weight / sum(weights) for weight in weights]
    assert [slots[i] for i in range(4)] == pytest.approx(expected, rel=0.001, abs=100)


def test_clients_spread_evenly(make, picks, clients) -> None:
    scheduler = MaglevHash(SEED)
    scheduler.update(make(1, 1, 2))
    shares = Counter(picks(scheduler, clients=clients))
    assert [shares[i] for i in range(3)] == pytest.approx([1024, 1024, 2048], rel=0.1)


def test_the_order_of_the_configuration_does_not_matter(make) -> None:
    dests = make(*[1, 2, 3] * 5)
    first, second = MaglevHash(SEED, 4093), MaglevHash(SEED, 4093)
    first.update(dests)
    second.update(random.Random(1).sample(dests, len(dests)))
    assert owners(first) == owners(second)


def test_the_seed_and_the_port_decide_the_table(make) -> None:
    def table(seed: int, port: int) -> list[int]:
        dests = make(1, 1, 1)
        for dest in dests:
            dest.dport = port
        scheduler = MaglevHash(seed, 4093)
        scheduler.update(dests)
        return owners(scheduler)

    assert table(1, 80) == table(1, 80)
    for other in (table(2, 80), table(1, 8080)):
        same = sum(a == b for a, b in zip(table(1, 80), other, strict=True))
        assert same == pytest.approx(4093 / 3, rel=0.2)


@pytest.mark.parametrize("how", ["removed", "weight 0"])
def test_a_dest_that_goes_disturbs_few_others(how, make) -> None:
    dests = make(*[1] * 10)
    scheduler = MaglevHash(SEED)
    scheduler.update(dests)
    before = owners(scheduler)
    if how == "removed":
        scheduler.update(dests[:3] + dests[4:])
    else:
        dests[3].weight = 0
        scheduler.update(dests)
    after = owners(scheduler)
    assert 3 not in after
    moved = sum(a != b for a, b in zip(before, after, strict=True) if a != 3)
    # the paper's figure 12: a few per cent at 65537 slots
    assert moved / 65537 < 0.03


def test_a_dest_that_comes_back_gets_its_slots_back(make) -> None:
    dests = make(*[1] * 5)
    scheduler = MaglevHash(SEED, 4093)
    scheduler.update(dests)
    before = owners(scheduler)
    scheduler.update(dests[1:])
    scheduler.update(dests)
    assert owners(scheduler) == before


def test_what_is_prepared_is_what_an_update_builds(make) -> None:
    """In pieces, with weights that the dests do not have yet, and packets meet the old table."""
    dests = make(1, 1, 1)
    scheduler = MaglevHash(SEED)
    scheduler.update(dests)
    before = owners(scheduler)
    fresh = list(dests)
    pieces = len(list(scheduler.prepare(fresh, [4, 0, 2])))
    assert pieces > 3
    assert owners(scheduler) == before
    for dest, weight in zip(dests, (4, 0, 2), strict=True):
        dest.weight = weight
    scheduler.update(fresh)
    other = MaglevHash(SEED)
    other.update(list(dests))
    assert owners(scheduler) == owners(other) != before


@pytest.mark.parametrize("prepared", [True, False])
def test_the_same_dests_keep_the_table(prepared: bool, make) -> None:
    dests = make(1, 2, 0)
    scheduler = MaglevHash(SEED, 4093)
    scheduler.update(dests)
    table = scheduler.table
    again = dests[::-1]
    if prepared:
        assert list(scheduler.prepare(again, [0, 2, 1])) == []
    scheduler.update(again)
    assert scheduler.table is table


def test_what_was_prepared_for_others_is_not_used(make) -> None:
    one, other = make(1, 1, 1), make(1, 5, 1)
    scheduler, plain = MaglevHash(SEED, 4093), MaglevHash(SEED, 4093)
    list(scheduler.prepare(one, [1, 1, 1]))
    scheduler.update(other)
    plain.update(other)
    assert owners(scheduler) == owners(plain)


def test_none_has_a_weight_and_then_one_has(make) -> None:
    dests = make(0, 0)
    scheduler = MaglevHash(SEED, 251)
    scheduler.update(dests)
    assert scheduler.schedule(Packet(), 0) is None
    dests[1].weight = 1
    scheduler.update(dests)
    assert set(owners(scheduler)) == {1}


def test_clients_of_an_invalid_dest_spread_over_the_others(make, picks, clients) -> None:
    scheduler = MaglevHash(SEED)
    dests = make(1, 1, 1, 1)
    scheduler.update(dests)
    before = picks(scheduler, clients=clients)
    dests[1].max_conn, dests[1].actconns = 1, 1
    after = picks(scheduler, clients=clients)
    moved = Counter(b for a, b in zip(before, after, strict=True) if a == 1)
    assert all(a == b for a, b in zip(before, after, strict=True) if a != 1)
    assert [moved[i] for i in (0, 2, 3)] == pytest.approx([before.count(1) / 3] * 3, rel=0.2)


def test_the_two_valid_ones_of_many_share(make, picks, clients) -> None:
    scheduler = MaglevHash(SEED)
    dests = make(*[1] * 500)
    scheduler.update(dests)
    for dest in dests[2:]:
        dest.available = False
    shares = Counter(picks(scheduler, clients=clients[:1000]))
    assert set(shares) == {0, 1}
    assert min(shares.values()) > 400


def test_more_dests_than_slots(make, picks, clients) -> None:
    scheduler = MaglevHash(SEED, 251)
    scheduler.update(make(*[1] * 300))
    assert len(set(owners(scheduler))) == 251
    assert -1 not in picks(scheduler, clients=clients[:100])


def test_every_build_and_machine_picks_alike(make, picks, clients) -> None:
    """A fixed digest of 4096 picks: nodes of one seed must agree, today's with last year's too."""
    scheduler = MaglevHash(SEED)
    scheduler.update(make(*[1, 2, 3, 0, 7] * 8))
    ids = bytes(picks(scheduler, clients=clients))
    assert hashlib.sha256(ids).hexdigest()[:16] == "c56fb14d94388f81"


@pytest.mark.parametrize("size", [0, 1, 4, 65536, 251 * 251])
def test_a_table_size_must_be_prime(size: int) -> None:
    with pytest.raises(ValueError, match="not a prime"):
        MaglevHash(SEED, size)
