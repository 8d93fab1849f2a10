"""sed: (active + 1) / weight, the first of equals."""

from __future__ import annotations

import pytest

from tunlb.ipvs.sched.sed import ShortestExpectedDelay


@pytest.mark.parametrize(
    ("weights", "active", "expected"),
    [
        pytest.param((1, 1), (0, 0), 0, id="the first of equals"),
        pytest.param((1, 3), (0, 0), 1, id="1/1 is longer than 1/3"),
        pytest.param((1, 3), (0, 1), 1, id="1/1 is longer than 2/3"),
        pytest.param((1, 3), (0, 2), 0, id="1/1 is 3/3, and comes first"),
        pytest.param((2, 3), (1, 3), 0, id="2/2 is shorter than 4/3"),
        pytest.param((0, 1), (0, 500), 1, id="quiescent has no delay at all"),
        pytest.param((65535, 65534), (10**9, 10**9), 0, id="nothing overflows"),
        pytest.param((0, 0), (0, 0), -1, id="none"),
    ],
)
def test_shortest_delay(weights, active, expected, picked) -> None:
    assert picked(ShortestExpectedDelay(), weights, active) == expected


def test_inactive_conns_do_not_count(make, picks) -> None:
    scheduler = ShortestExpectedDelay()
    dests = make(1, 1)
    dests[0].inactconns = 10**6
    scheduler.update(dests)
    assert picks(scheduler, 1) == [0]


def test_conns_end_up_by_weight(make, picks) -> None:
    scheduler = ShortestExpectedDelay()
    dests = make(1, 2, 3)
    scheduler.update(dests)
    for _ in range(600):
        dests[picks(scheduler, 1)[0]].actconns += 1
    assert [dest.actconns for dest in dests] == [100, 200, 300]
