"""One file a scheduler: its module's name is how the configuration calls it."""

from __future__ import annotations

import pytest

from tunlb.ipvs import sched
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


@pytest.mark.parametrize("name", sched.names())
def test_every_scheduler_is_found_and_stands_an_empty_list(name: str) -> None:
    scheduler = sched.find(name)(7)
    assert isinstance(scheduler, Scheduler)
    assert scheduler.schedule(Packet(), 0) is None
    scheduler.update([])
    assert scheduler.schedule(Packet(), 0) is None


@pytest.mark.parametrize("name", sched.names())
def test_only_valid_dests_are_picked(name: str, make, picks, clients) -> None:
    scheduler = sched.find(name)(7)
    dests = make(1, 0, 2, 1, 1)
    scheduler.update(dests)
    dests[2].available = False
    dests[3].max_conn, dests[3].inactconns = 5, 5
    assert set(picks(scheduler, clients=clients[:64])) <= {0, 4}
    dests[0].weight = 0  # without update(): a pick must look at the dest itself
    assert set(picks(scheduler, clients=clients[:64])) == {4}
    dests[4].available = False
    assert set(picks(scheduler, clients=clients[:4])) == {-1}
    dests[2].available = True
    assert set(picks(scheduler, clients=clients[:64])) == {2}


def test_the_main_schedulers_are_there() -> None:
    assert {"rr", "wrr", "lc", "wlc", "sh", "mh"} <= set(sched.names())
    with pytest.raises(KeyError):
        sched.find("nosuch")
