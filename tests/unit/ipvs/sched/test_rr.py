"""rr: in turn, whatever the weight."""

from __future__ import annotations

import pytest

from tunlb.ipvs.sched.rr import RoundRobin


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param((1, 1, 1), [0, 1, 2, 0, 1, 2], id="in turn"),
        pytest.param((5, 1, 100), [0, 1, 2, 0, 1, 2], id="weights do not matter"),
        pytest.param((1, 0, 1), [0, 2, 0, 2, 0, 2], id="quiescent is passed over"),
        pytest.param((0, 0, 3), [2, 2, 2, 2, 2, 2], id="a single one"),
        pytest.param((0, 0, 0), [-1, -1, -1, -1, -1, -1], id="none"),
    ],
)
def test_sequence(weights, expected, make, picks) -> None:
    scheduler = RoundRobin()
    scheduler.update(make(*weights))
    assert picks(scheduler, 6) == expected


@pytest.mark.parametrize(
    ("taken", "left", "expected"),
    [
        pytest.param(2, (0, 1, 2, 3), [2, 3, 0], id="the same list"),
        pytest.param(2, (0, 2, 3), [2, 3, 0], id="the last pick went"),
        pytest.param(2, (2, 3), [2, 3, 2], id="all picked ones went"),
        pytest.param(2, (3, 2, 1, 0), [0, 3, 2], id="another order"),
        pytest.param(4, (0, 1), [0, 1, 0], id="the rest went"),
        pytest.param(0, (0, 1, 2, 3), [0, 1, 2], id="nothing picked yet"),
    ],
)
def test_update_keeps_the_place(taken, left, expected, make, picks) -> None:
    scheduler = RoundRobin()
    dests = make(1, 1, 1, 1)
    scheduler.update(dests)
    picks(scheduler, taken)
    scheduler.update([dests[i] for i in left])
    assert picks(scheduler, 3) == expected


def test_a_new_dest_joins_without_restarting(make, picks) -> None:
    scheduler = RoundRobin()
    dests = make(1, 1, 1)
    scheduler.update(dests[:2])
    assert picks(scheduler, 1) == [0]
    scheduler.update(dests)
    assert picks(scheduler, 3) == [1, 2, 0]
