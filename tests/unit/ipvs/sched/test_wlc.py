"""wlc: overhead for its weight, compared exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sched.wlc import WeightedLeastConn
from tunlb.packet import Packet


@pytest.mark.parametrize(
    ("weights", "active", "expected"),
    [
        pytest.param([1, 1], [0, 0], 0, id="the first of equals"),
        pytest.param([1, 2], [1, 2], 0, id="equal for their weight"),
        pytest.param([1, 2], [1, 1], 1, id="twice the weight"),
        pytest.param([0, 1], [0, 9], 1, id="quiescent is passed over"),
        pytest.param([3, 1], [2, 1], 0, id="two thirds before one"),
    ],
)
def test_least_for_its_weight(weights, active, expected, picked) -> None:
    assert picked(WeightedLeastConn(), weights, active) == expected


rows = st.tuples(st.integers(0, 65535), st.integers(0, 2**21), st.integers(0, 2**21), st.booleans())


@given(st.lists(rows, min_size=1, max_size=8))
def test_is_the_formula(rows: list[tuple[int, int, int, bool]]) -> None:
    dests = []
    for i, (weight, active, inactive, available) in enumerate(rows):
        dest = Dest(i, 4, 0, i + 1, 80, weight=weight)
        dest.actconns, dest.inactconns, dest.available = active, inactive, available
        dests.append(dest)
    scheduler = WeightedLeastConn()
    scheduler.update(dests)
    valid = [dest for dest in dests if dest.available and dest.weight]
    expected = min(
        valid,
        key=lambda dest: Fraction(256 * dest.actconns + dest.inactconns, dest.weight),
        default=None,
    )
    assert scheduler.schedule(Packet(), 0) is expected


def test_conns_end_up_in_the_ratio_of_weights(make, picks) -> None:
    scheduler = WeightedLeastConn()
    dests = make(1, 2, 5)
    scheduler.update(dests)
    for _ in range(800):
        dests[picks(scheduler, 1)[0]].actconns += 1
    assert [dest.actconns for dest in dests] == [100, 200, 500]
