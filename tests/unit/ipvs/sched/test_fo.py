"""fo: the highest weight that is valid."""

from __future__ import annotations

import pytest

from tunlb.ipvs.sched.fo import Failover


@pytest.mark.parametrize(
    ("weights", "gone", "expected"),
    [
        pytest.param((1, 3, 2), (), 1, id="the highest"),
        pytest.param((1, 3, 2), (1,), 2, id="the next"),
        pytest.param((1, 3, 2), (1, 2), 0, id="the last"),
        pytest.param((1, 3, 2), (0, 1, 2), -1, id="none"),
        pytest.param((5, 5), (), 0, id="the first of equals"),
        pytest.param((0, 1), (), 1, id="quiescent stands by for nobody"),
        pytest.param((0, 0), (), -1, id="all quiescent"),
    ],
)
def test_highest_weight(weights, gone, expected, make, picks) -> None:
    scheduler = Failover()
    dests = make(*weights)
    for index in gone:
        dests[index].available = False
    scheduler.update(dests)
    assert picks(scheduler, 3) == [expected] * 3


def test_conns_do_not_matter_until_it_is_full(make, picks) -> None:
    scheduler = Failover()
    dests = make(2, 1)
    dests[0].max_conn, dests[0].actconns = 1000, 999
    scheduler.update(dests)
    assert picks(scheduler, 1) == [0]
    dests[0].inactconns = 1
    assert picks(scheduler, 1) == [1]
    dests[0].actconns = 0
    assert picks(scheduler, 1) == [0]
