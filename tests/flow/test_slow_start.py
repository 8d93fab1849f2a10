"""A dest that joins a running service gets its share in steps."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from tests.flow.kit import V4, Conn, Line, Net, Rig, dest, network, one, service, text, the_dest
from tunlb.counters import Gauge
from tunlb.ipvs.dest import CONNS
from tunlb.testing.flow import Memory
from tunlb.testing.frames import vnet

SLOW_S = 90  # a step is 10 s
PORTS = count(1000)


def config(net: Net, *dests: Line, scheduler: str = "wrr", **keys: Any) -> str:
    line = service(net, scheduler=scheduler, **{"slow_start_s": SLOW_S, **keys})
    return text(*network(net), line, *dests)


def shares(rig: Rig, net: Net, conns: int = 110) -> list[int]:
    """How many of so many new conns each dest gets."""
    addresses = (net.dest, net.dest2)
    before = [the_dest(rig, address).stats[CONNS] for address in addresses]
    for _ in range(conns):
        probe = Conn(rig, net, cport=next(PORTS))
        for flags in "SA":  # established: half-open ones weigh next to nothing
            one(rig.receive("wan", vnet(probe.frame(probe.outside, flags, b"", False))))
    after = [the_dest(rig, address).stats[CONNS] for address in addresses]
    return [b - a for a, b in zip(before, after, strict=True)]


def weights(rig: Rig, net: Net) -> list[int]:
    return [the_dest(rig, address).weight for address in (net.dest, net.dest2)]


def test_a_dest_that_joins(net: Net) -> None:
    old, new = dest(net), dest(net, daddr=net.dest2)
    rig = Rig(config(net, old))
    rig.reload(config(net, old, new))
    seen = []
    for _ in range(9):
        seen.append(weights(rig, net)[1])
        rig.advance(10_000)
    assert seen == list(range(1, 10))
    rig.advance(5_000)
    assert weights(rig, net) == [1, 1]
    rig.director.tick(rig.now)
    assert rig.director.counters.gauge(Gauge.RAMPS) == 0
    assert shares(rig, net) == [55, 55]


def test_its_share_follows(net: Net) -> None:
    old, new = dest(net), dest(net, daddr=net.dest2)
    rig = Rig(config(net, old))
    rig.reload(config(net, old, new))
    assert shares(rig, net) == [100, 10]
    rig.advance(41_000)
    assert weights(rig, net) == [10, 5]
    first, second = shares(rig, net, 150)
    assert abs(first - 100) <= 2
    assert abs(second - 50) <= 2


def test_no_herd_at_a_dest_of_wlc(net: Net) -> None:
    """Which without slow start gets every new conn until it has as many as the other."""
    old, new = dest(net), dest(net, daddr=net.dest2)
    for slow, expected in ((0, 100), (SLOW_S, 18)):
        rig = Rig(config(net, old, scheduler="wlc", slow_start_s=slow))
        for _ in range(100):
            Conn(rig, net, cport=next(PORTS)).establish()
        rig.reload(config(net, old, new, scheduler="wlc", slow_start_s=slow))
        assert shares(rig, net, 100)[1] == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("how", ["weight-0", "removed"])
def test_a_dest_that_comes_back(net: Net, how: str) -> None:
    old, back = dest(net), dest(net, daddr=net.dest2, weight=4)
    away = [old] if how == "removed" else [old, dest(net, daddr=net.dest2, weight=0)]
    rig = Rig(config(net, old, back))
    assert weights(rig, net) == [1, 4]
    rig.reload(config(net, *away))
    rig.reload(config(net, old, back))
    assert weights(rig, net) == [10, 4]
    rig.advance(50_000)
    assert weights(rig, net) == [10, 24]
    rig.advance(50_000)
    assert weights(rig, net) == [1, 4]


def test_who_starts_with_the_service_has_all_at_once(net: Net) -> None:
    both = dest(net), dest(net, daddr=net.dest2, weight=3)
    rig = Rig(config(net, *both))
    assert weights(rig, net) == [1, 3]
    rig = Rig(text(*network(net)))
    rig.reload(config(net, *both))
    assert weights(rig, net) == [1, 3]
    rig = Rig(config(net, dest(net, weight=0), dest(net, daddr=net.dest2, weight=0)))
    rig.reload(config(net, *both))
    assert weights(rig, net) == [1, 3]


def test_a_reload_in_the_middle_keeps_the_ramp(net: Net) -> None:
    """Also one that changes its weight, and nothing starts anew."""
    old, new = dest(net), dest(net, daddr=net.dest2)
    rig = Rig(config(net, old))
    rig.reload(config(net, old, new))
    rig.advance(41_000)
    for _ in range(3):
        rig.reload(config(net, old, new, drain_s=7))
        assert weights(rig, net) == [10, 5]
        rig.reload(config(net, old, new))
    rig.reload(config(net, old, dest(net, daddr=net.dest2, weight=2)))
    assert weights(rig, net) == [10, 10]
    rig.advance(55_000)
    assert weights(rig, net) == [1, 2]


def test_without_the_key_the_ramp_ends(net: Net) -> None:
    old, new = dest(net), dest(net, daddr=net.dest2)
    rig = Rig(config(net, old))
    rig.reload(config(net, old, new))
    rig.reload(config(net, old, new, slow_start_s=0))
    assert weights(rig, net) == [1, 1]
    rig.advance(1000)
    assert rig.director.counters.gauge(Gauge.RAMPS) == 0


def test_quiescent_in_the_middle(net: Net) -> None:
    old = dest(net)
    rig = Rig(config(net, old))
    rig.reload(config(net, old, dest(net, daddr=net.dest2)))
    rig.reload(config(net, old, dest(net, daddr=net.dest2, weight=0)))
    assert weights(rig, net) == [1, 0]
    rig.advance(30_000)
    assert weights(rig, net) == [1, 0]
    rig.reload(text(*network(net)))
    rig.advance(30_000)
    assert rig.director.counters.gauge(Gauge.RAMPS) == 0


def test_great_weights_stay_in_range(net: Net) -> None:
    old, new = dest(net, weight=65535), dest(net, daddr=net.dest2, weight=65535)
    rig = Rig(config(net, old, scheduler="twos"))
    rig.reload(config(net, old, new, scheduler="twos"))
    assert weights(rig, net) == [65535, 6553]
    first, second = shares(rig, net, 400)
    assert first > 5 * second > 0


@pytest.mark.parametrize("scheduler", ["wrr", "wlc", "sed", "nq", "twos"])
def test_every_scheduler_that_may(scheduler: str) -> None:
    """While it ramps it gets less than half, and afterwards about half."""
    net = V4
    old, new = dest(net), dest(net, daddr=net.dest2)
    rig = Rig(config(net, old, scheduler=scheduler))
    for _ in range(40):
        Conn(rig, net, cport=next(PORTS)).establish()
    rig.reload(config(net, old, new, scheduler=scheduler))
    assert 0 < shares(rig, net, 100)[1] <= 30


def test_every_worker_and_successor_ramps_alike(net: Net) -> None:
    """By the time of the reload, not their own."""
    old, new = dest(net), dest(net, daddr=net.dest2)
    memory = Memory(64)
    rig = Rig(config(net, old), memory=memory)
    at = rig.now
    rig.reload(config(net, old, new))
    rig.advance(41_000)
    later = Rig(config(net, old), memory=memory, now=at - 3000)
    assert later.now == at
    later.reload(config(net, old, new))
    assert weights(later, net) == [10, 1]
    later.now = rig.now
    later.director.adopt(later.now)
    later.advance(250)
    assert weights(later, net) == [10, 5]
