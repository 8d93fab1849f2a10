"""twos: two draws by weight, the less loaded one; the sequence follows from the seed."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from tunlb.ipvs.sched.twos import PowerOfTwo

SEED = 0x0123_4567_89AB_CDEF


def test_the_sequence_is_splitmix64() -> None:
    """The first words for seed 1234567, as other implementations print them."""
    scheduler = PowerOfTwo(1234567)
    assert [scheduler.draw() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def drawn(seed: int, weights: tuple[int, ...]) -> tuple[int, int]:
    """The formula: two places in [0, total), each in whose share of the weights it falls."""
    shares = [i for i, weight in enumerate(weights) for _ in range(weight)]
    word = PowerOfTwo(seed).draw()
    low, high = word & 0xFFFF_FFFF, word >> 32
    return shares[low * len(shares) >> 32], shares[high * len(shares) >> 32]


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (5, 0, 1, 2), (1, 100, 3, 7)])
@pytest.mark.parametrize("loads", [(0, 0, 0, 0), (9, 9, 1, 5), (0, 3, 300, 2)])
def test_the_less_loaded_of_two(weights, loads, make, picks) -> None:
    dests = make(*weights)
    for dest, load in zip(dests, loads, strict=True):
        dest.actconns, dest.inactconns = divmod(load, 2)
    for seed in range(200):
        scheduler = PowerOfTwo(seed)
        scheduler.update(dests)
        first, second = drawn(seed, weights)
        better = (
            dests[second].overhead() / weights[second] < dests[first].overhead() / weights[first]
        )
        assert picks(scheduler, 1) == [second if better else first]


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 2, 3, 4), (0, 1, 0, 3)])
def test_without_conns_picks_follow_weights(weights, make, picks) -> None:
    scheduler = PowerOfTwo(SEED)
    scheduler.update(make(*weights))
    shares = Counter(picks(scheduler, 20_000))
    expected = [20_000 * weight / sum(weights) for weight in weights]
    assert [shares[i] for i in range(4)] == pytest.approx(expected, rel=0.05)


def test_conns_end_up_more_even_than_by_one_draw(make, picks) -> None:
    """A single draw would leave a spread of some sqrt(1000), 100 of 10 standard deviations."""
    scheduler = PowerOfTwo(SEED)
    dests = make(*[1] * 100)
    scheduler.update(dests)
    for _ in range(100_000):
        dests[picks(scheduler, 1)[0]].actconns += 1
    counts = [dest.actconns for dest in dests]
    assert max(counts) - min(counts) <= 12
    assert sum(counts) == 100_000


def test_conns_end_up_by_weight(make, picks) -> None:
    scheduler = PowerOfTwo(SEED)
    dests = make(1, 2, 5)
    scheduler.update(dests)
    for _ in range(8000):
        dests[picks(scheduler, 1)[0]].actconns += 1
    assert [dest.actconns for dest in dests] == pytest.approx([1000, 2000, 5000], rel=0.02)


def test_an_update_goes_on_with_the_sequence(make, picks) -> None:
    one, other = PowerOfTwo(SEED), PowerOfTwo(SEED)
    for scheduler in (one, other):
        scheduler.update(make(1, 1, 1))
    whole = picks(one, 40)
    halves = picks(other, 20)
    other.update(other.dests)
    assert halves + picks(other, 20) == whole


def test_the_largest_weights(make, picks) -> None:
    scheduler = PowerOfTwo(SEED)
    scheduler.update(make(*[65535] * 65535))
    found = picks(scheduler, 20)
    assert min(found) >= 0
    assert max(found) > 32768


def test_every_build_picks_alike(make, picks) -> None:
    scheduler = PowerOfTwo(SEED)
    scheduler.update(make(1, 2, 3, 0, 7))
    assert hashlib.sha256(bytes(picks(scheduler, 4096))).hexdigest()[:16] == "6981bb7c067f0a55"
