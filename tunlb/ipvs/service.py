"""Services, and how a packet finds its own: exact port, then port range, then any port (IPVS
order).
"""

from __future__ import annotations

from bisect import bisect_right

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.ipvs.timeouts import Timeouts


class Service:
    """One VIP, protocol and port (or range, or 0..65535 for any), with its dests.

    ``laddrs`` are (hi, lo) pairs, used in turn; ``drain_ms`` is how long the conns of a removed or
    quiescent dest live on.
    """

    def __init__(
        self,
        name: str,
        af: int,
        proto: int,
        vaddr: tuple[int, int],
        first_port: int,
        last_port: int,
        scheduler: Scheduler,
        timeouts: Timeouts,
        laddrs: tuple[tuple[int, int], ...] = (),
        drain_ms: int = 300_000,
    ) -> None:
        self.name = name
        self.af = af
        self.proto = proto
        self.vaddr = vaddr
        self.first_port = first_port
        self.last_port = last_port
        self.scheduler = scheduler
        self.timeouts = timeouts
        self.laddrs = laddrs
        self.drain_ms = drain_ms
        self.dests: list[Dest] = []
        self.next_laddr = 0

    def set_dests(self, dests: list[Dest]) -> None:
        for dest in dests:
            dest.timeouts = self.timeouts
            dest.service_name = self.name
        self.dests = dests
        self.scheduler.update(dests)


class ServiceTable:
    """Lookup by (proto, vaddr, vport)."""

    def __init__(self) -> None:
        self._exact: dict[tuple[int, int, int, int], Service] = {}
        self._ranges: dict[tuple[int, int, int], tuple[list[int], list[Service]]] = {}
        self._any: dict[tuple[int, int, int], Service] = {}
        self._protos: dict[tuple[int, int], set[int]] = {}

    def add(self, service: Service) -> None:
        hi, lo = service.vaddr
        key = (service.proto, hi, lo)
        if service.first_port == service.last_port:
            self._exact[service.proto, hi, lo, service.first_port] = service
        elif (service.first_port, service.last_port) == (0, 65535):
            self._any[key] = service
        else:
            firsts, services = self._ranges.setdefault(key, ([], []))
            at = bisect_right(firsts, service.first_port)
            firsts.insert(at, service.first_port)
            services.insert(at, service)
        self._protos.setdefault((hi, lo), set()).add(service.proto)

    def lookup(
        self, proto: cython.int, hi: cython.ulonglong, lo: cython.ulonglong, port: cython.int
    ) -> Service | None:
        found = self._exact.get((proto, hi, lo, port))
        if found is not None:
            return found
        ranges = self._ranges.get((proto, hi, lo))
        if ranges is not None:
            firsts, services = ranges
            at: cython.int = bisect_right(firsts, port) - 1
            if at >= 0:
                candidate: Service = services[at]
                if port <= candidate.last_port:
                    return candidate
        return self._any.get((proto, hi, lo))

    def vip_has(self, proto: cython.int, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
        """Has the VIP a service of this protocol, on any port?"""
        protos = self._protos.get((hi, lo))
        return protos is not None and proto in protos
