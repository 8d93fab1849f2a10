"""What a drain does after a burst besides frames: fragments that go on, and a wish to be woken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.flow.fragmenting import cut, framed, joined
from tests.flow.kit import ROUTER_MAC, V4, WAN_MAC, balanced, text
from tests.unit.test_tap import Wire, never
from tunlb.director import Director
from tunlb.loop import Worker
from tunlb.pace import Pace
from tunlb.tap import Drain, Port, monotonic_ms
from tunlb.testing.checkers import check, ip, udp
from tunlb.testing.flow import make_director
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import udp as datagram

DATA = bytes(5000)


class Site:
    """A director on two wires."""

    def __init__(self, config: str) -> None:
        self.director = make_director(config, conn_max=64)
        self.director.start(monotonic_ms())
        counters = self.director.counters
        self.wires = [Wire(0, counters), Wire(1, counters)]
        ports = zip(self.director.netifs, self.wires, strict=True)
        self.ports = [Port(netif, wire.port.fd, counters) for netif, wire in ports]

    def close(self) -> None:
        for wire in self.wires:
            wire.close()


def site_of(*lines: dict[str, object]) -> Site:
    return Site(balanced(V4, "udp", "nat") + "\n" + text(*lines))


@pytest.fixture
def site() -> Iterator[Site]:
    made = site_of()
    yield made
    made.close()


def pieces() -> list[bytes]:
    whole = packet(V4.remote, V4.vip, datagram(40000, 80, DATA))
    return [framed(part, WAN_MAC, ROUTER_MAC)[10:] for part in cut(whole)]


def test_fragments_that_waited_are_written_behind_the_first(site: Site) -> None:
    drain = Drain(site.director, site.ports, never)
    parts = pieces()
    site.wires[0].send(*parts[1:], parts[0])
    drain.run(site.ports[0], monotonic_ms())
    written = site.wires[1].received()
    seen = check(joined(written), ip(daddr=V4.dest), udp(dport=8080))
    assert seen.payload == DATA
    check(written[0], ip(mf=True, fragment=0))
    assert not site.director.outbox.waiting


def test_an_empty_outbox_is_not_looked_at(site: Site) -> None:
    drain = Drain(site.director, site.ports, never)
    assert drain.flush() == 0
    site.director.outbox.wake(5)
    woken: list[int] = []
    drain.on_wake = woken.append
    assert drain.flush() == 0
    assert drain.flush() == 0
    assert woken == [5]


def test_a_worker_wakes_its_director_while_something_waits() -> None:
    """Within milliseconds: long before the tick."""
    made = site_of({"kind": "tc", "port": "lan", "rate": "10mbit", "burst": 1})

    async def life(director: Director) -> float:
        loop = asyncio.get_running_loop()
        worker = Worker(director, made.ports, _lost, Pace(_failed))
        worker.start()
        begun = loop.time()
        parts = pieces()
        made.wires[0].send(*parts)
        got: list[bytes] = []
        while len(got) < len(parts) and loop.time() < begun + 5:
            await asyncio.sleep(0.001)
            got += [x for x in made.wires[1].received() if x[22:24] == b"\x08\x00"]  # no ARP
        taken = loop.time() - begun
        worker.stop()
        assert check(joined(got)).payload == DATA
        return taken

    try:
        taken = asyncio.run(life(made.director))
        # 5 KB at 10 Mbit/s are 4 ms.
        assert made.director.counters.snapshot()["TC_QUEUED"] == 3
        assert 0.002 < taken < 0.09
    finally:
        made.close()


def _lost(index: int) -> None:
    raise AssertionError(f"port {index} was called lost")


def _failed(error: BaseException) -> None:
    raise error
