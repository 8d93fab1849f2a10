"""IPVS' two hooks: Defence, and IpvsIn, which finds or makes the conn of a packet (DPVS:
src/ipvs/ip_vs_core.c).

IpvsIn, for a packet addressed to this station: an ICMP error about a conn's packet is translated; a
packet of a known conn moves its state and is rewritten; another one that may open a conn is
scheduled. Everything that may refuse the packet (TTL, MTU, no dest, table full) comes before the
rewrite, so that an ICMP error quotes what its sender wrote.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.conn import (
    ACTIVE,
    B_STATE,
    D_DEST,
    D_EPOCH,
    D_LAST_SEEN,
    D_PACKETS,
    D_TIMEOUT,
    H_FLAGS,
    H_MTU,
    H_NEIGH,
    INBOUND,
    ONEWAY,
)
from tunlb.ipvs.dest import (
    ACTCONNS,
    CONNS,
    IN_BYTES,
    IN_PACKETS,
    INACTCONNS,
    OUT_BYTES,
    OUT_PACKETS,
    Dest,
)
from tunlb.ipvs.life import Life
from tunlb.ipvs.protocol import (
    DIR_INPUT,
    DIR_INPUT_ONLY,
    DIR_OUTPUT,
    ESTABLISHED,
    Protocol,
)
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.sharding import Sharding
from tunlb.neigh import NeighEntry, NeighTable
from tunlb.netif import Addresses
from tunlb.packet import HOST, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, Packet
from tunlb.route import Route, RouteTable
from tunlb.wire.icmp import (
    ERR_NET_UNREACHABLE,
    ERR_PORT_UNREACHABLE,
    ERR_TIME_EXCEEDED,
    ERR_TOO_BIG,
)

if cython.compiled:
    from cython.cimports.tunlb.ipvs import related, rewrite
    from cython.cimports.tunlb.wire import icmp, ipv4, ipv6
else:
    from tunlb.ipvs import related, rewrite
    from tunlb.wire import icmp, ipv4, ipv6

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_DROP = cython.declare(cython.int, Verdict.DROP)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_HOST = cython.declare(cython.int, HOST)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)
_INBOUND = cython.declare(cython.int, INBOUND)
_ONEWAY = cython.declare(cython.int, ONEWAY)
_ACTIVE = cython.declare(cython.int, ACTIVE)
_ESTABLISHED = cython.declare(cython.int, ESTABLISHED)
_DIR_INPUT = cython.declare(cython.int, DIR_INPUT)
_DIR_OUTPUT = cython.declare(cython.int, DIR_OUTPUT)
_DIR_INPUT_ONLY = cython.declare(cython.int, DIR_INPUT_ONLY)
_FRAGMENT = cython.declare(cython.int, DropReason.FRAGMENT)
_TTL_EXCEEDED = cython.declare(cython.int, DropReason.TTL_EXCEEDED)
_MTU_EXCEEDED = cython.declare(cython.int, DropReason.MTU_EXCEEDED)
_NO_ROUTE = cython.declare(cython.int, DropReason.NO_ROUTE)
_NEIGH_TABLE_FULL = cython.declare(cython.int, DropReason.NEIGH_TABLE_FULL)
_TCP_NOT_SYN = cython.declare(cython.int, DropReason.TCP_NOT_SYN)
_UDP_TO_TCP_VIP = cython.declare(cython.int, DropReason.UDP_TO_TCP_VIP)
_NO_DEST = cython.declare(cython.int, DropReason.NO_DEST)
_DEST_GONE = cython.declare(cython.int, DropReason.DEST_GONE)
_MARTIAN = cython.declare(cython.int, DropReason.MARTIAN)
_ERR_TTL = cython.declare(cython.int, ERR_TIME_EXCEEDED)
_ERR_PORT = cython.declare(cython.int, ERR_PORT_UNREACHABLE)
_ERR_NET = cython.declare(cython.int, ERR_NET_UNREACHABLE)
_ERR_MTU = cython.declare(cython.int, ERR_TOO_BIG)
_IN_PACKETS = cython.declare(cython.int, Event.IPVS_IN_PACKETS)
_IN_BYTES = cython.declare(cython.int, Event.IPVS_IN_BYTES)
_CONN_NEW = cython.declare(cython.int, Event.CONN_NEW)
_CONN_REUSED = cython.declare(cython.int, Event.CONN_REUSED)
_DEST_CONNS = cython.declare(cython.int, CONNS)
_DEST_IN_PACKETS = cython.declare(cython.int, IN_PACKETS)
_DEST_OUT_PACKETS = cython.declare(cython.int, OUT_PACKETS)
_DEST_IN_BYTES = cython.declare(cython.int, IN_BYTES)
_DEST_OUT_BYTES = cython.declare(cython.int, OUT_BYTES)
_ACTCONNS = cython.declare(cython.int, ACTCONNS)
_INACTCONNS = cython.declare(cython.int, INACTCONNS)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)

# Words of a row, see ipvs/conn.py.
_B_STATE = cython.declare(cython.longlong, B_STATE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_H_NEIGH = cython.declare(cython.longlong, H_NEIGH)
_H_MTU = cython.declare(cython.longlong, H_MTU)
_D_LAST_SEEN = cython.declare(cython.longlong, D_LAST_SEEN)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_PACKETS = cython.declare(cython.longlong, D_PACKETS)
_D_EPOCH = cython.declare(cython.longlong, D_EPOCH)


class Ipvs:
    """Services, dests and conns of one worker, and what happens to their packets.

    ``sharding`` says which worker a flow belongs to; None where there is only one.
    """

    def __init__(
        self,
        counters: Counters,
        life: Life,
        neighs: NeighTable,
        routes: RouteTable,
        addresses: Addresses,
        sharding: Sharding | None = None,
    ) -> None:
        self.counters = counters
        self.life = life
        self.conns = life.conns
        self.dests = life.dests
        self.protocols = life.protocols
        self.timers = life.timers
        self.pools = life.pools
        self.neighs = neighs
        self.routes = routes
        self.addresses = addresses
        self.sharding = sharding
        self.services = ServiceTable()
        self.quiescent = False  # take no new conns: tunlb is about to stop

    # -- the packet path

    def receive(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """The verdict on a packet at PRE_ROUTING; ACCEPT with ``neigh`` set when it is ours to
        send.
        """
        if pkt.l2_type != _HOST:
            return _ACCEPT
        if pkt.proto == (_ICMP if pkt.af == 4 else _ICMPV6):
            if icmp.is_error(pkt):
                return self._related(pkt, now)
            return _ACCEPT
        protocol: Protocol | None = self.protocols[pkt.proto]
        if protocol is None:
            return _ACCEPT
        conns = self.conns
        entry: cython.longlong = conns.lookup(pkt)
        if entry < 0:
            if self.sharding is not None and self._elsewhere(
                pkt,
                self.sharding.owner(
                    self.addresses,
                    pkt.saddr_hi,
                    pkt.saddr,
                    pkt.sport,
                    pkt.daddr_hi,
                    pkt.daddr,
                    pkt.dport,
                ),
            ):
                return _STOLEN
            return self._schedule(pkt, protocol, now)
        row: cython.longlong = entry >> 1
        direction: cython.int = entry & 1
        if direction == _INBOUND and protocol.reopens(pkt, conns.b[row * 128 + _B_STATE]):
            self.life.end(row)
            self.counters.add(_CONN_REUSED, 1)
            return self._schedule(pkt, protocol, now)
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        if dest.drain_until >= 0 and now > dest.drain_until:
            self.life.end(row)
            return pkt.drop(_DEST_GONE)
        reason: cython.int = self._admit(pkt, row, direction, now)
        if reason != 0:
            return _DROP
        self._track(pkt, protocol, row, direction, dest, now)
        return self._send(pkt, row, direction, dest)

    def _elsewhere(self, pkt: Packet, owner: cython.int) -> cython.bint:
        """Hand the packet of an unknown conn over to the worker that may know it (DPVS: redirect);
        False when that is nobody, or us.
        """
        sharding = self.sharding
        if sharding is None or owner < 0 or owner == sharding.worker or pkt.handed:
            return False
        pkt.owner = owner
        return True

    def _admit(
        self, pkt: Packet, row: cython.longlong, direction: cython.int, now: cython.longlong
    ) -> cython.int:
        """May the packet leave? Sets ``neigh``; else not 0, with the reason and the ICMP error on
        the packet.
        """
        conns = self.conns
        if conns.d[row * 32 + _D_EPOCH] != self.neighs.epoch:
            self._resolve(row, now)
        neigh: cython.int = conns.h[row * 64 + _H_NEIGH + direction]
        if neigh == 0:
            # Nothing learnt: look again at the next packet, the table may have room by then.
            conns.d[row * 32 + _D_EPOCH] = 0
            if conns.h[row * 64 + _H_MTU + direction] == 0:
                icmp.refuse(pkt, _NO_ROUTE, _ERR_NET, 0)
            else:
                pkt.drop(_NEIGH_TABLE_FULL)
            return 1
        if pkt.ttl <= 1:
            icmp.refuse(pkt, _TTL_EXCEEDED, _ERR_TTL, 0)
            return 1
        if pkt.wire_length() > conns.h[row * 64 + _H_MTU + direction]:
            icmp.refuse(pkt, _MTU_EXCEEDED, _ERR_MTU, conns.h[row * 64 + _H_MTU + direction])
            return 1
        pkt.neigh = neigh
        return 0

    def _resolve(self, row: cython.longlong, now: cython.longlong) -> None:
        """Route and neighbour of both directions: INBOUND towards the dest, OUTBOUND towards the
        client.
        """
        conns = self.conns
        direction: cython.int
        at: cython.longlong
        route: Route | None
        index: cython.int
        entry: NeighEntry
        # Read first: to make room for one neighbour the table may forget the other.
        epoch: cython.uint = self.neighs.epoch
        for direction in range(1 if conns.h[row * 64 + _H_FLAGS] & _ONEWAY else 2):
            at = row * 16 + (1 - direction) * 4
            conns.h[row * 64 + _H_NEIGH + direction] = 0
            conns.h[row * 64 + _H_MTU + direction] = 0
            route = self.routes.lookup(conns.q[at], conns.q[at + 1])
            if route is None:
                continue
            if route.on_link:
                index = self.neighs.resolve(route.netif, conns.q[at], conns.q[at + 1], now)
            else:
                index = self.neighs.resolve(route.netif, route.via_hi, route.via, now)
            conns.h[row * 64 + _H_MTU + direction] = route.mtu
            conns.h[row * 64 + _H_NEIGH + direction] = index
            if index != 0:
                entry = self.neighs.entries[index]
                entry.pinned = True
        if self.neighs.epoch != epoch:
            # The second made its room at the first one's cost: neither the packet nor the row may
            # trust that index.
            conns.h[row * 64 + _H_NEIGH] = 0
        conns.d[row * 32 + _D_EPOCH] = epoch

    def _track(
        self,
        pkt: Packet,
        protocol: Protocol,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> None:
        """Move the conn's state, and confirm the neighbour whose ACK this is."""
        conns = self.conns
        state: cython.int = conns.b[row * 128 + _B_STATE]
        column: cython.int = _DIR_OUTPUT
        if direction == _INBOUND:
            column = _DIR_INPUT_ONLY if conns.h[row * 64 + _H_FLAGS] & _ONEWAY else _DIR_INPUT
        new: cython.int = protocol.next_state(pkt, state, column)
        conns.d[row * 32 + _D_LAST_SEEN] = now & _MASK32
        if new != state:
            self._set_state(protocol, row, new, dest, now)
        if pkt.proto == _TCP and pkt.tcp_flags & 0x10:
            behind: cython.int = conns.h[row * 64 + _H_NEIGH + 1 - direction]
            if behind != 0:
                entry: NeighEntry = self.neighs.entries[behind]
                entry.confirmed = now

    def _set_state(
        self,
        protocol: Protocol,
        row: cython.longlong,
        state: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> None:
        conns = self.conns
        conns.b[row * 128 + _B_STATE] = state
        flags: cython.int = conns.h[row * 64 + _H_FLAGS]
        if protocol.kind(state) == _ESTABLISHED:
            if not flags & _ACTIVE:
                conns.h[row * 64 + _H_FLAGS] = flags | _ACTIVE
                dest.v[_ACTCONNS] += 1
                dest.v[_INACTCONNS] -= 1
        elif flags & _ACTIVE:
            conns.h[row * 64 + _H_FLAGS] = flags & ~_ACTIVE
            dest.v[_ACTCONNS] -= 1
            dest.v[_INACTCONNS] += 1
        timeout: cython.uint = dest.timeouts.of(state)
        if timeout < conns.d[row * 32 + _D_TIMEOUT]:
            self.timers.schedule(row, now, timeout)
        conns.d[row * 32 + _D_TIMEOUT] = timeout

    def _send(
        self, pkt: Packet, row: cython.longlong, direction: cython.int, dest: Dest
    ) -> cython.int:
        """Rewrite, lower the TTL, count; the pipeline does the rest."""
        length: cython.int = pkt.end - pkt.l3
        rewrite.apply(pkt, self.conns, row, direction)
        if pkt.af == 4:
            ipv4.decrement_ttl(pkt)
        else:
            ipv6.decrement_hop_limit(pkt)
        at: cython.longlong = row * 32 + _D_PACKETS + direction
        self.conns.d[at] = (self.conns.d[at] + 1) & _MASK32
        if direction == _INBOUND:
            dest.v[_DEST_IN_PACKETS] += 1
            dest.v[_DEST_IN_BYTES] += length
        else:
            dest.v[_DEST_OUT_PACKETS] += 1
            dest.v[_DEST_OUT_BYTES] += length
        self.counters.add(_IN_PACKETS + direction, 1)
        self.counters.add(_IN_BYTES + direction, length)
        return _ACCEPT

    def _forged(self, pkt: Packet) -> cython.bint:
        """Is the source nobody's, or one of our own addresses?"""
        if pkt.saddr_hi == 0 and pkt.saddr == 0:
            return True
        return self.addresses.is_local(pkt.saddr_hi, pkt.saddr)

    def _related(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """An ICMP error about a packet of a conn goes on to the side that sent that packet."""
        entry: cython.longlong = related.find(pkt, self.conns)
        if entry == -1:
            if self.sharding is not None and self._elsewhere(
                pkt, related.owner(pkt, self.sharding, self.addresses)
            ):
                return _STOLEN
            if self.addresses.is_local(pkt.daddr_hi, pkt.daddr):
                return pkt.drop(DropReason.ICMP_UNRELATED)
            return _ACCEPT
        if entry < 0:
            return pkt.drop(DropReason.ICMP_INVALID)
        if self._forged(pkt):
            return pkt.drop(_MARTIAN)
        row: cython.longlong = entry >> 1
        direction: cython.int = entry & 1
        if self._admit(pkt, row, direction, now) != 0:
            return _DROP
        related.translate(pkt, self.conns, row, direction)
        if pkt.af == 4:
            ipv4.decrement_ttl(pkt)
        else:
            ipv6.decrement_hop_limit(pkt)
        self.counters.add(Event.ICMP_RELATED, 1)
        return _ACCEPT

    # -- the birth of a conn

    def _schedule(self, pkt: Packet, protocol: Protocol, now: cython.longlong) -> cython.int:
        """A packet of no conn: find its service, pick a dest, make the conn, send it on."""
        service: Service | None = self.services.lookup(
            pkt.proto, pkt.daddr_hi, pkt.daddr, pkt.dport
        )
        if service is None:
            if (
                pkt.proto == _UDP
                and self.services.vip_has(_TCP, pkt.daddr_hi, pkt.daddr)
                and not self.services.vip_has(_UDP, pkt.daddr_hi, pkt.daddr)
            ):
                return pkt.drop(_UDP_TO_TCP_VIP)
            return _ACCEPT
        if not protocol.opens(pkt):
            return pkt.drop(_TCP_NOT_SYN)
        if self._forged(pkt):
            # Replies to such a client would come back to us: checked here once, so that packets of
            # conns need not be.
            return pkt.drop(_MARTIAN)
        if pkt.ttl <= 1:
            return icmp.refuse(pkt, _TTL_EXCEEDED, _ERR_TTL, 0)
        dest: Dest | None = None if self.quiescent else service.scheduler.schedule(pkt, now)
        if dest is None:
            return icmp.refuse(pkt, _NO_DEST, _ERR_PORT, 0)
        row: cython.longlong = self.life.new(pkt, service, dest, now)
        if row < 0:
            return _DROP
        if self._admit(pkt, row, _INBOUND, now) != 0:
            self.life.end(row)
            return _DROP
        dest.v[_DEST_CONNS] += 1
        self.counters.add(_CONN_NEW, 1)
        self._track(pkt, protocol, row, _INBOUND, dest, now)
        self.timers.schedule(row, now, self.conns.d[row * 32 + _D_TIMEOUT])
        return self._send(pkt, row, _INBOUND, dest)


class Defence(Hook):
    """Before IpvsIn: what would not survive it (DPVS: dp_vs_pre_routing)."""

    point = Point.PRE_ROUTING
    priority = 99

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        if pkt.fragment != 0:
            return pkt.drop(_FRAGMENT)
        return _ACCEPT


class IpvsIn(Hook):
    """IPVS at PRE_ROUTING (DPVS: dp_vs_in)."""

    point = Point.PRE_ROUTING
    priority = 100

    def __init__(self, ipvs: Ipvs) -> None:
        self.ipvs = ipvs

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        return self.ipvs.receive(pkt, now)
