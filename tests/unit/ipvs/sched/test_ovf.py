"""ovf: the highest weight that has room left under it."""

from __future__ import annotations

import pytest

from tunlb.ipvs.sched.ovf import Overflow


@pytest.mark.parametrize(
    ("weights", "active", "expected"),
    [
        pytest.param((10, 20), (0, 0), 1, id="the highest"),
        pytest.param((10, 20), (0, 20), 1, id="as many conns as its weight are room yet"),
        pytest.param((10, 20), (0, 21), 0, id="one more flows over"),
        pytest.param((10, 20), (11, 21), -1, id="all are above"),
        pytest.param((7, 7), (3, 0), 0, id="the first of equals"),
        pytest.param((0, 1), (0, 0), 1, id="quiescent has no capacity"),
        pytest.param((65535, 65534), (65536, 65534), 1, id="the largest weights"),
    ],
)
def test_highest_weight_with_room(weights, active, expected, picked) -> None:
    assert picked(Overflow(), weights, active) == expected


def test_inactive_conns_do_not_count(make, picks) -> None:
    scheduler = Overflow()
    dests = make(1, 2)
    dests[1].inactconns = 10**6
    scheduler.update(dests)
    assert picks(scheduler, 1) == [1]


def test_one_fills_up_before_the_next_begins(make, picks) -> None:
    scheduler = Overflow()
    dests = make(2, 5, 3)
    scheduler.update(dests)
    order = []
    while (picked := picks(scheduler, 1)[0]) >= 0:
        order.append(picked)
        dests[picked].actconns += 1
    assert order == [1] * 6 + [2] * 4 + [0] * 3
