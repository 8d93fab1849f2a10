"""The director: the engine of one worker, made of the pipeline, the neighbours and IPVS (see
docs/architecture.md).

Four verbs: :meth:`Director.receive` takes a packet that a port loaded, :meth:`Director.tick` lets
time pass, :meth:`Director.begin` takes a new configuration, in steps between bursts, and ``outbox``
holds frames of our own to be written after a burst. ``now`` is milliseconds of a monotonic clock,
always an argument.

Of several workers each has a director of its own, made from the same configuration. ``peers`` holds
messages for the others, :meth:`Director.hear` takes theirs. A worker that died is replaced by one
whose director starts over the same memory and takes its conns back (:meth:`Director.adopt`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import cython
import msgspec

from tunlb.catalog import Catalog, DestKey, Draft
from tunlb.conf import Config, Neigh
from tunlb.counters import Counters, Event, Gauge
from tunlb.hook import Hook, Point
from tunlb.ipvs.conn import ConnTable
from tunlb.ipvs.core import Defence, Ipvs, IpvsIn
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.life import Life
from tunlb.ipvs.proto import tcp, udp
from tunlb.ipvs.service import Service
from tunlb.ipvs.sharding import Sharding
from tunlb.ipvs.xmit import find as find_mode
from tunlb.ipvs.xmit import names as mode_names
from tunlb.neigh import NeighTable
from tunlb.netif import Addresses, Netif
from tunlb.outbox import Outbox
from tunlb.packet import Packet
from tunlb.peers import Peers
from tunlb.pipeline.hooks import ErrorHandler
from tunlb.pipeline.icmp import IcmpErrors
from tunlb.pipeline.ingress import Ingress
from tunlb.pipeline.ip import Ip
from tunlb.route import RouteTable
from tunlb.wiring import Owned, Wiring, pair

TIMER_BUDGET = (
    4096  #: timers fired per tick, so that a wave of expiries does not hold up the packets
)
ANNOUNCE_MS = (0, 1000, 2000)  #: the burst of gratuitous announcements after a start or a takeover
SWEEP_MS = 10_000
PIECE = 16  #: services freed in one step


class Adopted(NamedTuple):
    """What became of a former worker's rows."""

    kept: int
    dropped: int


_NO_MORE: Final = object()


class Director:
    """Everything that a worker does with frames, without a device or a clock.

    ``macs`` maps port names to our MAC addresses (48-bit integers, absent for a TUN). ``seed`` is
    the 64-bit seed shared by directors for consistent hashing. ``on_error`` gets a hook and the
    exception it raised. ``dest_stats`` (STATS_SIZE * DEST_IDS bytes) and ``neigh_rows`` may be
    shared memory, as the buffers of ``conns`` and ``counters`` may. ``sharding`` is None for the
    only worker.
    """

    def __init__(
        self,
        config: Config,
        macs: Mapping[str, int],
        conns: ConnTable,
        counters: Counters,
        *,
        seed: int,
        on_error: ErrorHandler,
        hooks: Sequence[Hook] = (),
        dest_stats: memoryview | None = None,
        neigh_rows: memoryview | None = None,
        sharding: Sharding | None = None,
    ) -> None:
        self.config = config
        self.counters = counters
        self.seed = seed
        self.packet = Packet()
        self.outbox = Outbox(counters)
        self.peers = (
            None if sharding is None else Peers(sharding.worker, sharding.workers, counters)
        )
        self.netifs = [
            Netif(i, port.name, macs.get(port.name, 0), port.mtu, tun=port.type == "tun")
            for i, port in enumerate(config.ports)
        ]
        addresses = Addresses()
        routes = RouteTable()
        self.neighs = NeighTable(counters, addresses, self.outbox, self.peers, neigh_rows)
        self.ip = Ip(counters, addresses, routes, self.neighs, on_error)
        self.icmp = IcmpErrors(counters, addresses, self.ip, self.outbox)
        self.ingress = Ingress(self.ip, self.neighs)
        pools = LportPools() if sharding is None else LportPools(sharding.workers, sharding.worker)
        protocols = [tcp.PROTOCOL(), udp.PROTOCOL()]
        modes = [find_mode(name)(pools) for name in mode_names()]
        life = Life(counters, conns, pools, protocols, modes)
        self.ipvs = Ipvs(counters, life, self.neighs, routes, addresses, sharding)
        for hook in (Defence(), IpvsIn(self.ipvs), *hooks):
            self.ip.chain(Point(hook.point)).register(hook)
        self._catalog = Catalog(
            self.ipvs, {protocol.name: protocol for protocol in protocols}, seed, dest_stats
        )
        self._work: list[Iterator[None]] = []
        self._lingering: list[Owned] = []
        self._static: tuple[Neigh, ...] = ()
        self._announcements: list[int] = []
        self._swept = 0

    # -- the packet path

    def receive(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """The verdict on a frame that a port loaded into ``pkt``: ACCEPT means write it to
        ``pkt.oif``.

        The one place where drops are counted and senders told.
        """
        verdict: cython.int = self.ingress.receive(pkt, now)
        if verdict == 0:
            self.counters.drop(pkt.reason)
            if pkt.err_type >= 0:
                self.icmp.send(pkt, now)
        return verdict

    def tick(self, now: cython.longlong) -> None:
        """Let time pass; call it every 50 to 250 ms. Frames may wait in the outbox afterwards, and
        work for :meth:`step`.
        """
        self.ipvs.timers.advance(now, TIMER_BUDGET)
        self.neighs.advance(now, TIMER_BUDGET)
        if self._announcements and now >= self._announcements[0]:
            self._announcements.pop(0)
            self.neighs.announce()
        # What is begun may count on what a sweep would forget.
        if now - self._swept >= SWEEP_MS and not self._work:
            self._swept = now
            self._sweep(now)
        self.counters.set(Gauge.CONNS, self.ipvs.conns.count)
        self.counters.set(Gauge.NEIGHS, len(self.neighs))
        self.counters.set(Gauge.LPORT_POOLS, len(self.ipvs.pools))
        self.counters.set(Gauge.HEARTBEAT, now)

    def hear(self, message: bytes, now: int) -> None:
        """A message that another worker's director put into its ``peers``."""
        self.neighs.hear(message, now)

    # -- configuration

    def start(self, now: int, ids: Mapping[DestKey, int] | None = None) -> None:
        """Apply the configuration that the director was made with."""
        self.apply(self.config, now, ids)

    def adopt(self, now: int) -> Adopted:
        """Go on with the conns and neighbours of a former worker, before the first packet."""
        self.neighs.adopt(now)
        dropped = int(self.ipvs.life.adopt(now))
        kept = int(self.ipvs.conns.count)
        self.counters.add(Event.CONN_ADOPTED, kept)
        return Adopted(kept, dropped)

    def announce(self, now: int) -> None:
        """Tell every neighbour that our addresses are here: at the start, at a takeover, when a
        link comes up.
        """
        self._announcements = [now + delay for delay in ANNOUNCE_MS]

    def begin(self, config: Config, now: int, ids: Mapping[DestKey, int] | None = None) -> None:
        """Start to take a new configuration, which :meth:`step` goes on with. Conns survive; dests
        that are gone or quiescent drain from ``now`` on.

        ``ids`` are the numbers of its dests (see DestIds), None where nobody else knows them: then
        raises ValueError when there are not enough left.
        """
        numbers = self._catalog.ids.assign(config) if ids is None else ids
        self._work.append(self._applying(config, now, numbers))

    @property
    def busy(self) -> bool:
        """Whether there is something to do for :meth:`step`."""
        return bool(self._work)

    def step(self) -> bool:
        """Do a piece of what was begun, between two bursts; whether there is more to do.

        Packets see the old configuration up to some step, and all of the new one from there.
        """
        if self._work and next(self._work[0], _NO_MORE) is _NO_MORE:
            self._work.pop(0)
        return bool(self._work)

    def apply(self, config: Config, now: int, ids: Mapping[DestKey, int] | None = None) -> None:
        """Begin, and take all the steps at once."""
        self.begin(config, now, ids)
        while self.step():
            pass

    def _applying(self, config: Config, now: int, ids: Mapping[DestKey, int]) -> Iterator[None]:
        catalog = self._catalog
        draft = Draft(now)
        yield from catalog.draw_up(draft, config, ids)
        lingering = [*self._lingering, *self._left_behind(draft)]
        wiring = Wiring(self.netifs)
        yield from wiring.draw(config, self._owned(draft.services, lingering), self.ip.addresses)
        # What did not change is the former object: the other one is garbage, and so is the rest of
        # what ran until now. Freed at once that would take as long as a burst may not wait.
        garbage = [*config.services, *self.config.services]
        config = msgspec.structs.replace(config, services=tuple(draft.lines.values()))
        former = [*catalog.services.values(), *draft.changes]
        # No piece ends here: from one packet to the next everything is new.
        self._lingering = lingering
        self._wire(wiring, config, now)
        catalog.adopt(draft, config)
        self.config = config
        yield
        yield from catalog.drain(draft)
        del draft
        for rest in (former, garbage):
            while rest:
                del rest[-PIECE:]
                yield

    def _left_behind(self, draft: Draft) -> Iterator[Owned]:
        """The addresses of services that are removed or get others."""
        for name, service in self._catalog.services.items():
            fresh = draft.services.get(name)
            if fresh is not service and (
                fresh is None or fresh.vaddr != service.vaddr or fresh.laddrs != service.laddrs
            ):
                yield Owned(service.vaddr, service.laddrs, draft.now + service.drain_ms)

    def _owned(self, services: Mapping[str, Service], lingering: list[Owned]) -> Iterator[Owned]:
        for service in services.values():
            yield Owned(service.vaddr, service.laddrs)
        yield from lingering

    def _wire(self, wiring: Wiring, config: Config, now: int) -> None:
        """Have packets go by ``wiring``, and by the static neighbours of ``config``."""
        if wiring.announce:
            self.announce(now)
        self.netifs = wiring.netifs
        for netif in self.netifs:
            netif.vlans = wiring.vlans.get(netif.index, {})
        self.ip.addresses = wiring.addresses
        self.ip.routes = wiring.routes
        self.icmp.addresses = wiring.addresses
        self.ipvs.addresses = wiring.addresses
        self.ipvs.routes = wiring.routes
        self.neighs.addresses = wiring.addresses
        self.neighs.netifs = {(netif.queue, netif.vid): netif for netif in self.netifs}
        if config.neighs != self._static:
            self._static = config.neighs
            self.neighs.forget_static()
            for static in config.neighs:
                netif = wiring.by_name[static.port]
                self.neighs.add_static(netif, *pair(static.addr), bytes(static.mac))
        self.neighs.epoch += 1

    def _sweep(self, now: int) -> None:
        """Forget drained dests without conns, empty lport pools, and addresses that only drained
        services needed.
        """
        self._catalog.sweep()
        self.ipvs.pools.sweep()
        staying = [addresses for addresses in self._lingering if addresses.until > now]
        if len(staying) < len(self._lingering):
            self._work.append(self._rewiring(staying, now))

    def _rewiring(self, lingering: list[Owned], now: int) -> Iterator[None]:
        wiring = Wiring(self.netifs)
        owned = self._owned(self._catalog.services, lingering)
        yield from wiring.draw(self.config, owned, self.ip.addresses)
        self._lingering = lingering
        self._wire(wiring, self.config, now)

    # -- looking in

    def services(self) -> Iterator[Service]:
        return iter(self._catalog.services.values())

    def statistics(self) -> dict[str, int]:
        """Gauges beside the counters: rows, neighbours, pools."""
        return {
            "conns": self.ipvs.conns.count,
            "conn_max": self.ipvs.conns.conn_max,
            "neighs": len(self.neighs),
            "lport_pools": len(self.ipvs.pools),
        }
