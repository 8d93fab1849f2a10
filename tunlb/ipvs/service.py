"""Services, and how a packet finds its own: exact port, then port range, then any port (IPVS
order).
"""

from __future__ import annotations

from bisect import bisect_right

import cython

from tunlb.ipvs.dest import KEEP, Dest
from tunlb.ipvs.match import Match
from tunlb.ipvs.scheduler import Scheduler
from tunlb.ipvs.synpolicy import SynPolicy
from tunlb.ipvs.tally import Tally
from tunlb.ipvs.telling import NOTHING
from tunlb.ipvs.timeouts import Timeouts
from tunlb.netif import AddressKey

if cython.compiled:
    from cython.cimports.tunlb.netif import address_key
else:
    from tunlb.netif import address_key

ServiceKey = int | tuple[int, int, int, int]  #: see :func:`service_key`

_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)


class Service:
    """One VIP, protocol and port (or range, or 0..65535 for any), with its dests; or, without a
    VIP, what ``match`` says (see ipvs/matches.py).

    ``bypass`` stands for a packet's own destination, where the conn goes that no dest may take.

    ``laddrs`` are (hi, lo) pairs, used in turn; ``drain_ms`` is how long the conns of a removed or
    quiescent dest live on, unless ``expire_nodest`` and ``expire_quiescent`` say otherwise. What is
    not an argument is set by who wants it: 0 or False means that nothing of the kind is done.
    """

    def __init__(
        self,
        name: str,
        af: int,
        proto: int,
        vaddr: tuple[int, int] | None,
        first_port: int,
        last_port: int,
        scheduler: Scheduler,
        timeouts: Timeouts,
        laddrs: tuple[tuple[int, int], ...] = (),
        drain_ms: int = 300_000,
        match: Match | None = None,
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
        v4 = tuple((hi, lo) for hi, lo in laddrs if hi == 0 and lo >> 32 == 0xFFFF)
        self._laddrs_v4 = v4
        self._laddrs_v6 = tuple(laddr for laddr in laddrs if laddr not in v4)
        self.drain_ms = drain_ms
        self.telling = NOTHING  # how dests learn the client's address
        self.fallback = False  # the scheduler also answers for packets of conns that we do not know
        self.match = match
        self.bypass: Dest | None = None
        self.snat = False
        self.expire_nodest = KEEP
        self.expire_quiescent = KEEP
        self.persistence_ms = 0
        # of client addresses, with persistence
        self.mask_hi = 0xFFFF_FFFF_FFFF_FFFF
        self.mask = 0xFFFF_FFFF_FFFF_FFFF
        self.ops = False
        self.max_conn = 0
        self.reset_on_expire = False
        self.remembers = False  # sequence numbers, so that both sides can be reset
        self.slow_start_ms = 0
        self.carried = Tally()  #: conns of its dests, see Dest; kept where it has a max_conn
        self.dests: list[Dest] = []
        self.next_laddr = 0
        self.mss_clamp = 0  #: of its dests, see ipvs/mss.py
        self.half_open = Tally()  #: of its conns; kept where it has a SYN proxy
        self.synproxy: SynPolicy | None = None
        self.conn_rate = 0  # new conns a second of one source; 0: any number
        self.conn_burst = 0

    def laddrs_of(self, af: cython.int) -> tuple[tuple[int, int], ...]:
        """Those of one family: what a dest of that family may be spoken to with."""
        return self._laddrs_v4 if af == 4 else self._laddrs_v6

    def set_dests(self, dests: list[Dest], bypass: Dest | None = None) -> None:
        for dest in dests if bypass is None else [*dests, bypass]:
            dest.timeouts = self.timeouts
            dest.reset_on_expire = self.reset_on_expire
            dest.limited = dest.max_conn != 0 or self.max_conn != 0
            if dest.carried is not self.carried:
                dest.carried.count -= dest.load()
                self.carried.count += dest.load()
                dest.carried = self.carried
            dest.service_name = self.name
            dest.mss_clamp = self.mss_clamp
            dest.telling = self.telling
            dest.count_in(None if self.synproxy is None else self.half_open)
        self.bypass = bypass
        self.dests = dests
        self.scheduler.update(dests)


def service_key(
    proto: cython.ulonglong, hi: cython.ulonglong, lo: cython.ulonglong, port: cython.ulonglong
) -> ServiceKey:
    """Where the service of a vaddr and port is found; as netif.address_key."""
    if hi == 0 and lo >> 32 == 0xFFFF:
        return ((lo & _MASK32) << 24) | (port << 8) | proto
    return (proto, hi, lo, port)


class ServiceTable:
    """Lookup by (proto, vaddr, vport); what takes several ports is found by port 0."""

    def __init__(self) -> None:
        self._exact: dict[ServiceKey, Service] = {}
        self._ranges: dict[ServiceKey, tuple[list[int], list[Service]]] = {}
        self._any: dict[ServiceKey, Service] = {}
        self._protos: dict[AddressKey, set[int]] = {}
        self.any_fallback = False
        self._by_dest: dict[tuple[int, int, int, int], tuple[Service, Dest]] = {}

    def add(self, service: Service) -> None:
        if service.vaddr is None:
            return
        hi, lo = service.vaddr
        key = service_key(service.proto, hi, lo, 0)
        if service.first_port == service.last_port:
            self._exact[service_key(service.proto, hi, lo, service.first_port)] = service
        elif (service.first_port, service.last_port) == (0, 65535):
            self._any[key] = service
        else:
            firsts, services = self._ranges.setdefault(key, ([], []))
            at = bisect_right(firsts, service.first_port)
            firsts.insert(at, service.first_port)
            services.insert(at, service)
        self._protos.setdefault(address_key(hi, lo), set()).add(service.proto)

    def lookup(
        self, proto: cython.int, hi: cython.ulonglong, lo: cython.ulonglong, port: cython.int
    ) -> Service | None:
        found = self._exact.get(service_key(proto, hi, lo, port))
        if found is not None or not (self._ranges or self._any):
            return found
        key = service_key(proto, hi, lo, 0)
        ranges = self._ranges.get(key)
        if ranges is not None:
            firsts, services = ranges
            at: cython.int = bisect_right(firsts, port) - 1
            if at >= 0:
                candidate: Service = services[at]
                if port <= candidate.last_port:
                    return candidate
        return self._any.get(key)

    def add_fallback(self, service: Service, dest: Dest) -> None:
        """Remember whose ``dest`` is: it may answer without a conn that we know. Only that of a NAT
        service, whose answers pass us, and only where its port tells the vport.
        """
        self.any_fallback = True
        if dest.dport == 0 or service.first_port == service.last_port:
            key = (service.proto, dest.daddr_hi, dest.daddr, dest.dport)
            self._by_dest[key] = (service, dest)

    def dest_of(
        self, proto: cython.int, hi: cython.ulonglong, lo: cython.ulonglong, port: cython.int
    ) -> tuple[Service | None, Dest | None]:
        """The dest at this endpoint and its service, among those of :meth:`add_fallback`."""
        found = self._by_dest.get((proto, hi, lo, port))
        if found is not None:
            return found
        found = self._by_dest.get((proto, hi, lo, 0))
        if found is not None and found[0].first_port <= port <= found[0].last_port:
            return found
        return None, None

    def vip_has(self, proto: cython.int, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
        """Has the VIP a service of this protocol, on any port?"""
        protos = self._protos.get(address_key(hi, lo))
        return protos is not None and proto in protos
