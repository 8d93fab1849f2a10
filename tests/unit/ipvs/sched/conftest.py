"""Dests and clients for scheduler tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet
from tunlb.wire.ipv4 import MAPPED

Make = Callable[..., list[Dest]]
Picks = Callable[..., list[int]]
PicksFor = Callable[..., list[int]]
Picked = Callable[[Scheduler, Sequence[int], Sequence[int]], int]


@pytest.fixture
def make() -> Make:
    """``make(3, 1, 0)``: dests 0, 1, 2 of these weights at 10.0.0.1, .2, .3, port 80."""

    def build(*weights: int) -> list[Dest]:
        base = MAPPED | 10 << 24 | 1
        return [Dest(i, 4, 0, base + i, 80, weight=weight) for i, weight in enumerate(weights)]

    return build


@pytest.fixture
def picks() -> Picks:
    """The ids that a scheduler picks for a number of conns, -1 for none.

    ``clients`` are low halves of source addresses; without them every conn comes from one client.
    """

    def pick(
        scheduler: Scheduler, count: int = 0, clients: Iterable[int] = (), high: int = 0
    ) -> list[int]:
        pkt = Packet()
        found = []
        for client in clients or [MAPPED] * count:
            pkt.saddr_hi, pkt.saddr = high, client
            dest = scheduler.schedule(pkt, 0)
            found.append(-1 if dest is None else dest.id)
        return found

    return pick


@pytest.fixture
def picked(make: Make, picks: Picks) -> Picked:
    """The id that a new scheduler picks first, of dests with these weights and active conns."""

    def pick(scheduler: Scheduler, weights: Sequence[int], active: Sequence[int]) -> int:
        dests = make(*weights)
        for dest, count in zip(dests, active, strict=True):
            dest.actconns = count
        scheduler.update(dests)
        return picks(scheduler, 1)[0]

    return pick


@pytest.fixture
def picks_for() -> PicksFor:
    """The ids that a scheduler picks, -1 for none, for destination addresses (low halves) at
    ``now``.
    """

    def pick(scheduler: Scheduler, wanted: Iterable[int], now: int = 0, high: int = 0) -> list[int]:
        pkt = Packet()
        found = []
        for address in wanted:
            pkt.daddr_hi, pkt.daddr = high, address
            dest = scheduler.schedule(pkt, now)
            found.append(-1 if dest is None else dest.id)
        return found

    return pick


@pytest.fixture
def clients() -> range:
    """4096 neighbouring client addresses, 192.168.0.0 and on."""
    return range(MAPPED | 0xC0A80000, (MAPPED | 0xC0A80000) + 4096)
