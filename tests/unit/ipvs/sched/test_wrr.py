"""wrr: the interleaved sequence, its shares, and that it always finds a valid dest."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sched.wrr import WeightedRoundRobin
from tunlb.packet import Packet


def cycle(weights: list[int]) -> list[int]:
    """The formula: levels from the highest weight down in steps of the gcd, each a turn."""
    levels = range(max(weights), 0, -math.gcd(*weights))
    return [i for level in levels for i, weight in enumerate(weights) if weight >= level]


def dests_of(weights: list[int]) -> list[Dest]:
    return [Dest(i, 4, 0, i + 1, 80, weight=weight) for i, weight in enumerate(weights)]


def take(scheduler: WeightedRoundRobin, count: int) -> list[int]:
    found = (scheduler.schedule(Packet(), 0) for _ in range(count))
    return [-1 if dest is None else dest.id for dest in found]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param((4, 2, 1), [0, 0, 0, 1, 0, 1, 2], id="4 2 1"),
        pytest.param((1, 1), [0, 1, 0, 1], id="equal"),
        pytest.param((300, 100), [0, 0, 0, 1], id="steps of the gcd"),
        pytest.param((2, 0, 1), [0, 0, 2, 0, 0, 2], id="quiescent is passed over"),
        pytest.param((0, 0), [-1, -1], id="none"),
    ],
)
def test_sequence(weights, expected, make, picks) -> None:
    scheduler = WeightedRoundRobin()
    scheduler.update(make(*weights))
    assert picks(scheduler, len(expected)) == expected


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any))
def test_sequence_is_the_formula(weights: list[int]) -> None:
    scheduler = WeightedRoundRobin()
    scheduler.update(dests_of(weights))
    expected = cycle(weights)
    assert take(scheduler, 2 * len(expected)) == expected * 2


@given(
    weights=st.lists(st.integers(0, 65535), min_size=1, max_size=6),
    available=st.lists(st.booleans(), min_size=6, max_size=6),
    before=st.integers(0, 20),
)
def test_a_pick_is_found_at_once_if_there_is_one(
    weights: list[int], available: list[bool], before: int
) -> None:
    """However far the level is from what the valid dests weigh."""
    scheduler = WeightedRoundRobin()
    dests = dests_of(weights)
    scheduler.update(dests)
    take(scheduler, before)
    for dest, is_available in zip(dests, available, strict=False):
        dest.available = is_available
    valid = {dest.id for dest in dests if dest.valid()} or {-1}
    assert set(take(scheduler, 5)) <= valid


def test_the_level_falls_at_once_to_what_valid_dests_weigh(make, picks) -> None:
    scheduler = WeightedRoundRobin()
    dests = make(3, 1)
    scheduler.update(dests)
    assert picks(scheduler, 1) == [0]
    dests[0].available = False
    assert picks(scheduler, 2) == [1, 1]


def test_a_weight_change_shows_at_once_and_keeps_the_place(make, picks) -> None:
    scheduler = WeightedRoundRobin()
    dests = make(3, 3)
    scheduler.update(dests)
    assert picks(scheduler, 3) == [0, 1, 0]
    dests[0].weight = 1
    scheduler.update(dests)
    shares = Counter(picks(scheduler, 400))
    assert shares[1] == pytest.approx(300, abs=3)


def test_a_new_dest_takes_its_share(make, picks) -> None:
    scheduler = WeightedRoundRobin()
    dests = make(2, 1, 5)
    scheduler.update(dests[:2])
    picks(scheduler, 2)
    scheduler.update(dests)
    shares = Counter(picks(scheduler, 800))
    assert [shares[i] for i in range(3)] == pytest.approx([200, 100, 500], abs=6)


def test_dests_that_come_back_are_served(make, picks) -> None:
    scheduler = WeightedRoundRobin()
    dests = make(1, 1)
    scheduler.update(dests)
    for dest in dests:
        dest.available = False
    assert picks(scheduler, 3) == [-1, -1, -1]
    for dest in dests:
        dest.available = True
    assert Counter(picks(scheduler, 10)) == {0: 5, 1: 5}
