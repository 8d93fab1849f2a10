"""nq: an idle dest first, else sed."""

from __future__ import annotations

import pytest

from tunlb.ipvs.sched.nq import NeverQueue


@pytest.mark.parametrize(
    ("weights", "active", "expected"),
    [
        pytest.param((1, 100), (0, 0), 0, id="the first idle one, whatever its weight"),
        pytest.param((100, 1), (1, 0), 1, id="a slow idle one before a fast busy one"),
        pytest.param((100, 1), (3, 1), 0, id="none is idle: 4/100 is shorter than 2/1"),
        pytest.param((0, 1), (0, 7), 1, id="quiescent is not idle"),
        pytest.param((0, 0), (0, 0), -1, id="none"),
    ],
)
def test_idle_before_fast(weights, active, expected, picked) -> None:
    assert picked(NeverQueue(), weights, active) == expected


def test_a_full_idle_dest_is_passed_over(make, picks) -> None:
    """Full of half-open conns, which are not active."""
    scheduler = NeverQueue()
    dests = make(1, 1)
    dests[0].max_conn, dests[0].inactconns = 4, 4
    dests[1].actconns = 9
    scheduler.update(dests)
    assert picks(scheduler, 1) == [1]


def test_everyone_has_one_before_anyone_has_two(make, picks) -> None:
    scheduler = NeverQueue()
    dests = make(9, 1, 1, 1)
    scheduler.update(dests)
    for _ in range(4):
        dests[picks(scheduler, 1)[0]].actconns += 1
    assert [dest.actconns for dest in dests] == [1, 1, 1, 1]
    for _ in range(8):
        dests[picks(scheduler, 1)[0]].actconns += 1
    assert [dest.actconns for dest in dests] == [9, 1, 1, 1]
