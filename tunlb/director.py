"""The director: the engine of one worker, made of the pipeline, the neighbours and IPVS (see
docs/architecture.md).

Four verbs: :meth:`Director.receive` takes a packet that a port loaded, :meth:`Director.tick` lets
time pass, :meth:`Director.apply` takes a new configuration between two bursts, and ``outbox`` holds
frames of our own to be written after a burst. ``now`` is milliseconds of a monotonic clock, always
an argument.

Of several workers each has a director of its own, made from the same configuration. ``peers`` holds
messages for the others, :meth:`Director.hear` takes theirs. A worker that died is replaced by one
whose director starts over the same memory and takes its conns back (:meth:`Director.adopt`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import cython

from tunlb.conf import Config, IPAddress
from tunlb.conf import Dest as DestConf
from tunlb.conf import Service as ServiceConf
from tunlb.counters import Counters, Event, Gauge
from tunlb.hook import Hook, Point
from tunlb.ipvs.conn import ConnTable
from tunlb.ipvs.core import Defence, Ipvs, IpvsIn
from tunlb.ipvs.dest import NO_DEST, STATS_SIZE, Dest
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.life import Life
from tunlb.ipvs.proto import tcp, udp
from tunlb.ipvs.sched import find as find_scheduler
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.sharding import Sharding
from tunlb.ipvs.xmit import find as find_mode
from tunlb.ipvs.xmit import names as mode_names
from tunlb.neigh import NeighTable
from tunlb.netif import ADDRESS, LADDR, VIP, Addresses, Netif
from tunlb.outbox import Outbox
from tunlb.packet import Packet
from tunlb.peers import Peers
from tunlb.pipeline.hooks import ErrorHandler
from tunlb.pipeline.icmp import IcmpErrors
from tunlb.pipeline.ingress import Ingress
from tunlb.pipeline.ip import Ip
from tunlb.route import Route, RouteTable

TIMER_BUDGET = (
    4096  #: timers fired per tick, so that a wave of expiries does not hold up the packets
)
ANNOUNCE_MS = (0, 1000, 2000)  #: the burst of gratuitous announcements after a start or a takeover
SWEEP_MS = 10_000
DEST_IDS = 65536  #: dests of all services, those that still drain included

DestKey = tuple[str, str, int, int, int]  #: service, proto, daddr, dport


class Adopted(NamedTuple):
    """What became of a former worker's rows."""

    kept: int
    dropped: int


class DestIds:
    """Gives each dest a number that every worker, and every successor of one, knows it by.

    Whoever runs several directors has one of these for all of them.
    """

    def __init__(self, taken: Mapping[DestKey, int] | None = None) -> None:
        self.taken: dict[DestKey, int] = dict(taken or {})
        used = set(self.taken.values())
        self._next = max(used, default=-1) + 1
        self._free = sorted(set(range(self._next)) - used, reverse=True)

    def assign(self, config: Config) -> dict[DestKey, int]:
        """The numbers of a configuration's dests, those known before as before.

        Raises ValueError when there are not enough left.
        """
        keys = [dest_key(service, dest) for service in config.services for dest in service.dests]
        fresh = [key for key in dict.fromkeys(keys) if key not in self.taken]
        left = len(self._free) + DEST_IDS - self._next
        if len(fresh) > left:
            raise ValueError(
                f"{len(fresh)} new dests, and only {left} of {DEST_IDS} numbers are left: "
                "removed dests keep theirs until their conns have ended"
            )
        for key in fresh:
            if self._free:
                self.taken[key] = self._free.pop()
            else:
                self.taken[key] = self._next
                self._next += 1
        return {key: self.taken[key] for key in keys}

    def forget(self, key: DestKey) -> None:
        """No director has this dest any more."""
        index = self.taken.pop(key, None)
        if index is not None:
            self._free.append(index)


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
        self._dest_stats = dest_stats
        self._ids = DestIds()
        self.netifs = [
            Netif(i, port.name, macs.get(port.name, 0), port.mtu, tun=port.type == "tun")
            for i, port in enumerate(config.ports)
        ]
        self._n_ports = len(self.netifs)
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
        self._modes = {name: find_mode(name).number for name in mode_names()}
        self._protocols = {protocol.name: protocol for protocol in protocols}
        self._services: dict[str, Service] = {}
        self._dests: dict[DestKey, Dest] = {}
        self._lingering: list[tuple[int, ServiceConf]] = []
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
        """Let time pass; call it every 50 to 250 ms. Frames may wait in the outbox afterwards."""
        self.ipvs.timers.advance(now, TIMER_BUDGET)
        self.neighs.advance(now, TIMER_BUDGET)
        if self._announcements and now >= self._announcements[0]:
            self._announcements.pop(0)
            self.neighs.announce()
        if now - self._swept >= SWEEP_MS:
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

    def apply(self, config: Config, now: int, ids: Mapping[DestKey, int] | None = None) -> None:
        """Take a new configuration. Conns survive; dests that are gone or quiescent drain.

        ``ids`` are the numbers of its dests (see DestIds), None where nobody else knows them.
        """
        staying = {service.name: (service.vaddr, service.laddrs) for service in config.services}
        for service in self.config.services:
            # Clients still speak to the VIP, and dests to the laddrs, of what is removed.
            if staying.get(service.name) != (service.vaddr, service.laddrs):
                self._lingering.append((now + round(service.drain_s * 1000), service))
        self.config = config
        self._wire(now)
        self._apply_services(config, now, self._ids.assign(config) if ids is None else ids)

    def _wire(self, now: int) -> None:
        """Interfaces, addresses, routes and static neighbours, made anew from the configuration."""
        addresses = Addresses()
        routes = RouteTable()
        by_name = self._link_vlans()
        prefixes: list[tuple[int, int, int, Netif]] = []
        for port in self.config.ports:
            for name, interfaces in port.subports():
                netif = by_name[name]
                for interface in interfaces:
                    hi, lo = pair(interface.ip)
                    addresses.add(netif, interface.version, hi, lo, ADDRESS)
                    length = interface.network.prefixlen + (96 if interface.version == 4 else 0)
                    routes.add(hi, lo, length, Route(netif))
                    if interface.version == 4 and length < 127:
                        routes.add_broadcast(pair(interface.network.broadcast_address)[1])
                    prefixes.append((length, hi, lo, netif))
        for line in self.config.routes:
            hi, lo = pair(line.dst.network_address)
            length = line.dst.prefixlen + (96 if line.dst.version == 4 else 0)
            via = None if line.via is None else pair(line.via)
            routes.add(hi, lo, length, Route(by_name[line.port], via, line.mtu or 0))
        self._lingering = [(until, service) for until, service in self._lingering if until > now]
        for service in (*self.config.services, *(service for _, service in self._lingering)):
            for kind, address in owned(service):
                hi, lo = pair(address)
                netif_of = self._owner(prefixes, hi, lo)
                if netif_of is not None:
                    addresses.add(netif_of, address.version, hi, lo, kind)
        if any(not self.ip.addresses.is_local(hi, lo) for _, hi, lo, _ in addresses.items()):
            self.announce(now)
        self.ip.addresses = addresses
        self.ip.routes = routes
        self.icmp.addresses = addresses
        self.ipvs.addresses = addresses
        self.ipvs.routes = routes
        self.neighs.addresses = addresses
        self.neighs.netifs = {(netif.queue, netif.vid): netif for netif in self.netifs}
        self.neighs.forget_static()
        for static in self.config.neighs:
            self.neighs.add_static(by_name[static.port], *pair(static.addr), bytes(static.mac))
        self.neighs.epoch += 1

    def _link_vlans(self) -> dict[str, Netif]:
        """VLAN sub-ports come and go with a reload; a port itself stays as it was at the start."""
        ports = {netif.name: netif for netif in self.netifs[: self._n_ports]}
        known = {netif.name: netif for netif in self.netifs}
        for port in self.config.ports:
            parent = ports.get(port.name)
            if parent is None:
                continue
            parent.vlans = {}
            for vlan in port.vlans:
                name = f"{port.name}.{vlan.id}"
                if name not in known:
                    known[name] = Netif(
                        len(self.netifs),
                        name,
                        parent.mac,
                        parent.mtu,
                        vid=vlan.id,
                        queue=parent.queue,
                    )
                    self.netifs.append(known[name])
                parent.vlans[vlan.id] = known[name]
        return known

    def _owner(self, prefixes: list[tuple[int, int, int, Netif]], hi: int, lo: int) -> Netif | None:
        """The port whose subnet holds an address, by the longest prefix; else a TUN, where it is
        simply routed.
        """
        value = hi << 64 | lo
        holding = [
            (length, netif)
            for length, p_hi, p_lo, netif in prefixes
            if (value ^ (p_hi << 64 | p_lo)) >> (128 - length) == 0
        ]
        if holding:
            return max(holding, key=lambda found: found[0])[1]
        return next((netif for netif in self.netifs if netif.tun), None)

    def _apply_services(self, config: Config, now: int, ids: Mapping[DestKey, int]) -> None:
        table = ServiceTable()
        services: dict[str, Service] = {}
        kept: set[DestKey] = set()
        for line in config.services:
            service = self._make_service(config, line)
            services[line.name] = service
            dests = []
            for dest_line in line.dests:
                key = dest_key(line, dest_line)
                kept.add(key)
                dest = self._make_dest(key, ids[key], dest_line.daddr.version)
                self._set_weight(dest, dest_line.weight, service, now)
                dest.fwdmode = self._modes[dest_line.fwdmode]
                dest.max_conn = dest_line.max_conn
                dests.append(dest)
            service.set_dests(dests)
            table.add(service)
        for key, dest in self._dests.items():
            if key not in kept and dest.available:
                dest.available = False
                drain = self._services.get(key[0])
                dest.drain_until = now + (0 if drain is None else drain.drain_ms)
        self._services = services
        self.ipvs.services = table

    def _make_service(self, config: Config, line: ServiceConf) -> Service:
        """A new Service; it keeps the old one's scheduler and counters where it can."""
        old = self._services.get(line.name)
        cls = find_scheduler(line.scheduler)
        scheduler = (
            old.scheduler
            if old is not None
            and type(old.scheduler) is cls
            and old.scheduler.table_size == line.mh_table_size
            else cls(self.seed, line.mh_table_size)
        )
        protocol = self._protocols[line.proto]
        service = Service(
            line.name,
            line.vaddr.version,
            protocol.number,
            pair(line.vaddr),
            line.vport.first,
            line.vport.last,
            scheduler,
            protocol.timeouts(config.timeouts_ms(line)),
            tuple(pair(address) for address in line.laddrs_expanded),
            round(line.drain_s * 1000),
        )
        if old is not None:
            service.next_laddr = old.next_laddr % max(1, len(service.laddrs))
        return service

    def _make_dest(self, key: DestKey, index: int, af: int) -> Dest:
        """The dest with this identity, known or new; a removed one that comes back is available
        again.
        """
        dest = self._dests.get(key)
        if dest is None:
            stats = self._dest_stats
            if stats is not None:
                stats = stats[index * STATS_SIZE : (index + 1) * STATS_SIZE]
            dest = Dest(index, af, *key[2:], stats=stats)
            dests = self.ipvs.dests
            dests.extend([NO_DEST] * (index + 1 - len(dests)))
            dests[index] = dest
            self._dests[key] = dest
        elif not dest.available:
            dest.available = True
            dest.drain_until = -1
        return dest

    def _set_weight(self, dest: Dest, weight: int, service: Service, now: int) -> None:
        """Weight 0 makes a dest quiescent: no new conns, and its old ones get ``drain_ms``."""
        if weight > 0:
            dest.drain_until = -1
        elif dest.drain_until < 0:
            dest.drain_until = now + service.drain_ms
        dest.weight = weight

    def _sweep(self, now: int) -> None:
        """Forget drained dests without conns, empty lport pools, and addresses that only drained
        services needed.
        """
        for key, dest in list(self._dests.items()):
            if not dest.available and dest.load() == 0:
                del self._dests[key]
                self._ids.forget(key)
                if self.ipvs.dests[dest.id] is dest:
                    self.ipvs.dests[dest.id] = NO_DEST
        self.ipvs.pools.sweep()
        if any(until <= now for until, _ in self._lingering):
            self._wire(now)

    # -- looking in

    def services(self) -> Iterator[Service]:
        return iter(self._services.values())

    def statistics(self) -> dict[str, int]:
        """Gauges beside the counters: rows, neighbours, pools."""
        return {
            "conns": self.ipvs.conns.count,
            "conn_max": self.ipvs.conns.conn_max,
            "neighs": len(self.neighs),
            "lport_pools": len(self.ipvs.pools),
        }


def dest_key(service: ServiceConf, dest: DestConf) -> DestKey:
    """What tells a dest from all others."""
    return service.name, service.proto, *pair(dest.daddr), dest.dport or 0


def pair(address: IPAddress) -> tuple[int, int]:
    """An address as (hi, lo); IPv4 as ``::ffff:a.b.c.d``."""
    value = int(address)
    if address.version == 4:
        return 0, 0xFFFF_0000_0000 | value
    return value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF


def owned(service: ServiceConf) -> Iterator[tuple[int, IPAddress]]:
    """(kind, address) of the VIP and laddrs of a service."""
    yield VIP, service.vaddr
    for address in service.laddrs_expanded:
        yield LADDR, address
