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

from tunlb.catalog import Catalog, Draft
from tunlb.conf import Config, Neigh
from tunlb.counters import Counters, Event, Gauge
from tunlb.destids import DestKey
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.conn import ConnTable
from tunlb.ipvs.core import Ipvs, IpvsIn
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.life import Life
from tunlb.ipvs.nat64 import Nat64
from tunlb.ipvs.outer import PATH
from tunlb.ipvs.persist import HOLD
from tunlb.ipvs.proto import icmp, sctp, tcp, udp
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
from tunlb.pipeline.host_fragments import HostFragments
from tunlb.pipeline.icmp import IcmpErrors
from tunlb.pipeline.ingress import Ingress
from tunlb.pipeline.ip import Ip
from tunlb.pipeline.originate import Originate
from tunlb.protection import Draft as ProtectionDraft
from tunlb.protection import Protection
from tunlb.route import RouteTable
from tunlb.wiring import Owned, Wiring, hosts_of, mirror, pair

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
    exception it raised. ``dest_stats`` (STATS_SIZE * DEST_IDS bytes), ``neigh_rows`` and ``rates``
    (RATES_SIZE bytes) may be shared memory, as the buffers of ``conns`` and ``counters`` may.
    ``sharding`` is None for the only worker; of several, ``fleet`` are all ``dest_stats``, ours
    among them, and ``rates`` are the same for all.
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
        fleet: Sequence[memoryview] = (),
        rates: memoryview | None = None,
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
        # A backup's queue carries the frames of the port that it stands by for.
        self.carried = [*self.netifs]
        for i, port in enumerate(config.ports):
            for netif in self.netifs:
                if netif.name == port.backup_of:
                    self.carried[i] = netif
        hosts = hosts_of(config, self.netifs)
        self.netifs += hosts
        self.carried += hosts
        addresses = Addresses()
        routes = RouteTable()
        self.neighs = NeighTable(counters, addresses, self.outbox, self.peers, neigh_rows)
        self.ip = Ip(counters, addresses, routes, self.neighs, on_error)
        self.sender = Originate(counters, self.ip, self.outbox)
        self.icmp = IcmpErrors(counters, addresses, self.sender)
        self.ingress = Ingress(self.ip, self.neighs)
        pools = LportPools() if sharding is None else LportPools(sharding.workers, sharding.worker)
        protocols = [
            tcp.PROTOCOL(),
            udp.PROTOCOL(),
            sctp.PROTOCOL(),
            icmp.PROTOCOL(),
            icmp.PROTOCOL_V6(),
        ]
        modes = [find_mode(name)(pools) for name in mode_names()]
        modes.append(Nat64(pools, counters, self.sender))
        life = Life(counters, conns, pools, protocols, modes)
        self.ipvs = Ipvs(
            counters, life, self.neighs, routes, addresses, self.sender, sharding, rates
        )
        self.ipvs.outer.peers = self.peers
        self.ipvs.birth.persistence.peers = self.peers
        self._ipvs_in = IpvsIn(self.ipvs)
        workers = 1 if sharding is None else sharding.workers
        self.protection = Protection(counters, self.ipvs, self.ip, self.outbox, workers)
        beside = [HostFragments(self.ip)] if hosts else []
        for hook in (*beside, self.protection.defence, self._ipvs_in, *hooks):
            self.ip.chain(Point(hook.point)).register(hook)
        self._catalog = Catalog(
            self.ipvs,
            {protocol.name: protocol for protocol in protocols},
            seed,
            dest_stats,
            fleet,
            on_error,
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

    def segment(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """The verdict on the next segment of a packet that :meth:`receive` gave back as STOLEN with
        CUT in ``owner``; -1: that was all.
        """
        verdict: cython.int = self.ipvs.transmit.next_segment(pkt, now)
        if verdict == 1:
            verdict = self.ip.resume(pkt, self._ipvs_in, now)
        if verdict == 0:
            self.counters.drop(pkt.reason)
        return verdict

    def resume(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """As :meth:`receive`, for a later fragment that waited for its first one: loaded again, it
        goes on where it was held. Hooks have seen it.
        """
        verdict: cython.int = 0
        reason: cython.int = self.ip.reread(pkt)
        if reason != 0:
            pkt.drop(reason)
        else:
            verdict = self.protection.fragments.resume(pkt, now)
            if verdict == Verdict.STOP:
                verdict = self.ip.rcv_fin(pkt, now)
        if verdict == 0:
            self.counters.drop(pkt.reason)
        return verdict

    def wake(self, now: cython.longlong) -> None:
        """What the outbox asked for (see Outbox.wake_at). Frames may wait there afterwards."""
        self.protection.wake(now)

    def tick(self, now: cython.longlong) -> None:
        """Let time pass; call it every 50 to 250 ms. Frames may wait in the outbox afterwards, and
        work for :meth:`step`.
        """
        self.ipvs.life.timers.advance(now, TIMER_BUDGET)
        self.neighs.advance(now, TIMER_BUDGET)
        self.ipvs.outer.expire(now)
        self.protection.tick(now)
        if self._announcements and now >= self._announcements[0]:
            self._announcements.pop(0)
            self.neighs.announce()
        # What is begun may count on what a sweep would forget.
        if now - self._swept >= SWEEP_MS and not self._work:
            self._swept = now
            self._sweep(now)
        if self._catalog.lapsing and not self._work:
            self._catalog.lapsing = False
            self._work.append(self.ipvs.lapse.sweep(now))
        self._catalog.publish()
        if self._catalog.ramps.due(now) and not self._work:
            self._work.append(self._catalog.ramps.turn(now))
        self.counters.set(Gauge.CONNS, self.ipvs.conns.count)
        self.counters.set(Gauge.TEMPLATES, self.ipvs.life.templates)
        self.counters.set(Gauge.RAMPS, self._catalog.ramps.count)
        self.counters.set(Gauge.NEIGHS, len(self.neighs))
        self.counters.set(Gauge.LPORT_POOLS, len(self.ipvs.life.pools))
        self.counters.set(Gauge.SYNPROXY_HELD, self.ipvs.birth.synproxy.held.count)
        self.counters.set(Gauge.HEARTBEAT, now)

    def hear(self, message: bytes, now: int) -> None:
        """A message that another worker's director put into its ``peers``."""
        if message[:1] == bytes((PATH,)):
            self.ipvs.outer.hear(message, now)
        elif message[:1] == bytes((HOLD,)):
            birth = self.ipvs.birth
            birth.persistence.hear(message, birth.services, now)
        else:
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
        yield from wiring.draw(
            config,
            self._owned(draft.services, lingering),
            self.ip.addresses,
            catalog.local_addresses(),
        )
        guard = ProtectionDraft()
        yield from self.protection.draw(guard, config, wiring)
        # What did not change is the former object: the other one is garbage, and so is the rest of
        # what ran until now. Freed at once that would take as long as a burst may not wait.
        garbage = [*config.services, *self.config.services, *self.config.acls]
        config = msgspec.structs.replace(config, services=tuple(draft.lines.values()))
        former = [*catalog.services.values(), *draft.changes]
        # No piece ends here: from one packet to the next everything is new.
        self._lingering = lingering
        self._wire(wiring, config, now)
        catalog.adopt(draft, config)
        self.protection.adopt(guard, config)
        self.config = config
        yield
        yield from catalog.drain(draft)
        yield from self.protection.drain()
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
                until = draft.now + service.drain_ms
                yield Owned(service.vaddr, service.laddrs, service.snat, until)

    def _owned(self, services: Mapping[str, Service], lingering: list[Owned]) -> Iterator[Owned]:
        for service in services.values():
            yield Owned(service.vaddr, service.laddrs, service.snat)
        yield from lingering

    def _wire(self, wiring: Wiring, config: Config, now: int) -> None:
        """Have packets go by ``wiring``, and by the static neighbours of ``config``."""
        if wiring.announce:
            self.announce(now)
        self.netifs = wiring.netifs
        for netif in self.netifs:
            netif.vlans = wiring.vlans.get(netif.index, {})
        mirror(config, wiring.by_name)
        self.ip.addresses = wiring.addresses
        self.ip.routes = wiring.routes
        self.icmp.addresses = wiring.addresses
        self.ipvs.rewire(wiring.addresses, wiring.routes)
        self.neighs.addresses = wiring.addresses
        self.neighs.netifs = dict(self._by_queue())
        if config.neighs != self._static:
            self._static = config.neighs
            self.neighs.forget_static()
            for static in config.neighs:
                netif = wiring.by_name[static.port]
                self.neighs.add_static(netif, *pair(static.addr), bytes(static.mac))
        self.neighs.epoch += 1

    def _by_queue(self) -> Iterator[tuple[tuple[int, int], Netif]]:
        """What peers and rows call each interface; one of a bond by the queue of any device."""
        for queue, netif in enumerate(self.carried):
            yield (queue, 0), netif
            for vid, vlan in netif.vlans.items():
                yield (queue, vid), vlan

    def activate(self, queue: int, now: int) -> None:
        """The device with this queue is the active one of its bond from now on: frames leave by it,
        and whoever is behind it is told.
        """
        netif = self.carried[queue]
        for each in (netif, *netif.vlans.values()):
            each.queue = queue
        self.announce(now)

    def _sweep(self, now: int) -> None:
        """Forget drained dests without conns, empty lport pools, and addresses that only drained
        services needed.
        """
        self._catalog.sweep()
        self.ipvs.life.pools.sweep()
        staying = [addresses for addresses in self._lingering if addresses.until > now]
        if len(staying) < len(self._lingering):
            self._work.append(self._rewiring(staying, now))

    def _rewiring(self, lingering: list[Owned], now: int) -> Iterator[None]:
        wiring = Wiring(self.netifs)
        owned = self._owned(self._catalog.services, lingering)
        local = self._catalog.local_addresses()
        yield from wiring.draw(self.config, owned, self.ip.addresses, local)
        gone = {laddr for former in self._lingering for laddr in former.laddrs}
        self._lingering = lingering
        self._wire(wiring, self.config, now)
        for staying in self._owned(self._catalog.services, lingering):
            gone.difference_update(staying.laddrs)
        yield from self.ipvs.lapse.withdraw(gone)

    # -- looking in

    def services(self) -> Iterator[Service]:
        return iter(self._catalog.services.values())
