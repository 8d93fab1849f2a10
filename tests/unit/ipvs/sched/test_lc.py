"""lc: 256 x active + inactive, the first of equals."""

from __future__ import annotations

import pytest

from tunlb.ipvs.sched.lc import LeastConn


@pytest.mark.parametrize(
    ("conns", "expected"),
    [
        pytest.param([(0, 0), (0, 0)], 0, id="the first of equals"),
        pytest.param([(1, 0), (0, 255)], 1, id="one active outweighs 255 inactive"),
        pytest.param([(1, 0), (0, 256)], 0, id="256 inactive are one active"),
        pytest.param([(1, 0), (0, 257)], 0, id="257 inactive are more"),
        pytest.param([(5, 9), (5, 8), (5, 8)], 1, id="inactive decide"),
        pytest.param([(10**7, 0), (10**7, 1)], 0, id="many"),
    ],
)
def test_least_overhead(conns, expected, make, picks) -> None:
    scheduler = LeastConn()
    dests = make(*[1] * len(conns))
    for dest, (active, inactive) in zip(dests, conns, strict=True):
        dest.actconns, dest.inactconns = active, inactive
    scheduler.update(dests)
    assert picks(scheduler, 1) == [expected]


def test_weights_do_not_matter_but_zero(make, picks) -> None:
    scheduler = LeastConn()
    dests = make(0, 1, 1000)
    dests[2].actconns = 1
    scheduler.update(dests)
    assert picks(scheduler, 1) == [1]


def test_conns_end_up_even(make, picks) -> None:
    scheduler = LeastConn()
    dests = make(1, 1, 1)
    scheduler.update(dests)
    for _ in range(300):
        dests[picks(scheduler, 1)[0]].actconns += 1
    assert [dest.actconns for dest in dests] == [100, 100, 100]
