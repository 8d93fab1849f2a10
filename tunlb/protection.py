"""What a configuration says about protection: lists, fragments, defence and traffic control of one
director, and how those of a new configuration take their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tunlb.conf import Config
from tunlb.counters import Counters, Gauge
from tunlb.ipvs.acl import Acl, AclFilter
from tunlb.ipvs.core import Ipvs
from tunlb.ipvs.defence import Defence
from tunlb.ipvs.fragments import Fragments
from tunlb.ipvs.tc import TcClass, TcPort, TrafficControl
from tunlb.netif import Netif
from tunlb.outbox import Outbox
from tunlb.pipeline.ip import Ip
from tunlb.wiring import Wiring, pair

PIECE = 64  #: lines entered in one piece of work

#: Modes whose packets pass between addresses of which none is ours.
_TRANSIT = frozenset({"nat", "snat", "bypass"})


class Draft:
    """What :meth:`Protection.adopt` puts in place; None where there are no lines."""

    def __init__(self) -> None:
        self.acl: AclFilter | None = None
        self.ports: list[TcPort] = []
        self.transit = False


class Protection:
    """The hooks of one director that are there only while the configuration asks for them.
    ``workers`` share the rates of tc lines.
    """

    def __init__(
        self, counters: Counters, ipvs: Ipvs, ip: Ip, outbox: Outbox, workers: int = 1
    ) -> None:
        self.counters = counters
        self.fragments = Fragments(counters, ipvs, outbox)
        self.defence = Defence(self.fragments)
        self.tc: TrafficControl | None = None
        self._ipvs = ipvs
        self._ip = ip
        self._outbox = outbox
        self._workers = workers
        self._former: AclFilter | None = None

    def draw(self, draft: Draft, config: Config, wiring: Wiring) -> Iterator[None]:
        """Fill ``draft`` with what ``config`` means, in pieces."""
        if config.acls:
            every, own = Acl(), dict[str, Acl]()
            for count, line in enumerate(config.acls):
                acl = every if line.service is None else own.setdefault(line.service, Acl())
                sources = acl.deny if line.action == "deny" else acl.allow
                hi, lo = pair(line.src.network_address)
                af = line.src.version
                sources.add(hi, lo, line.src.prefixlen + (96 if af == 4 else 0), af)
                if count % PIECE == 0:
                    yield
            for acl in (every, *own.values()):
                yield from acl.deny.seal()
                yield from acl.allow.seal()
            draft.acl = AclFilter(self._ipvs.birth, every, own)
        draft.ports = self._classes(config, wiring.by_name)
        for service in config.services:
            modes = {service.fwdmode, *(dest.fwdmode for dest in service.dests)}
            draft.transit = draft.transit or not _TRANSIT.isdisjoint(modes)
            yield

    def _classes(self, config: Config, netifs: Mapping[str, Netif]) -> list[TcPort]:
        classes: dict[str, list[TcClass]] = {}
        for line in config.tcs:
            rate = 0 if line.rate is None else max(1, line.rate // self._workers)
            one = TcClass(line.service or "", rate, line.burst_bytes(), line.limit, line.priority)
            classes.setdefault(line.port, []).append(one)
        return [TcPort(netifs[name], ones) for name, ones in classes.items()]

    def adopt(self, draft: Draft, config: Config) -> None:
        """Put it in place, between two packets."""
        birth = self._ipvs.birth
        birth.defence_tcp = config.tunlb.defence_tcp
        birth.defence_udp = config.tunlb.defence_udp
        fragments = self.fragments
        fragments.tracking = config.tunlb.fragments == "track"
        # Conns outlive the last service of their mode.
        fragments.transit = fragments.transit or draft.transit
        self._former = fragments.acl
        if fragments.acl is not None:
            self._ip.pre_routing.remove(fragments.acl)
        fragments.acl = draft.acl
        if draft.acl is not None:
            self._ip.pre_routing.register(draft.acl)
        self._adopt_tc(draft.ports)

    def drain(self) -> Iterator[None]:
        """Free the lists that ran until now, in pieces."""
        former, self._former = self._former, None
        if former is not None:
            while former.own:
                former.own.popitem()
                yield

    def _adopt_tc(self, ports: list[TcPort]) -> None:
        old, self.tc = self.tc, None
        if old is None and not ports:
            return
        ipvs = self._ipvs
        fresh = TrafficControl(
            self.counters, ipvs.conns, ipvs.dests, ipvs.transmit.neighs, self._outbox, ports
        )
        if old is not None:
            self._ip.post_routing.remove(old)
            fresh.inherit(old)
        if ports:
            self.tc = fresh
            self._ip.post_routing.register(fresh)

    def tick(self, now: int) -> None:
        """Let time pass: every tick of the director."""
        self.fragments.tick(now)
        self.wake(now)
        self.counters.set(Gauge.FRAGMENTS_WAITING, self.fragments.held)
        self.counters.set(Gauge.TC_WAITING, 0 if self.tc is None else self.tc.waiting)

    def wake(self, now: int) -> None:
        """Let time pass: when the outbox asked for it."""
        if self.tc is not None:
            self.tc.advance(now)
