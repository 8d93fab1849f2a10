"""IPVS' hook at PRE_ROUTING, which finds or makes the conn of a packet (DPVS:
src/ipvs/ip_vs_core.c).

For a packet addressed to this station: an ICMP error about a conn's packet is translated; a packet
of a known conn moves its state and is rewritten; another one that may open a conn is scheduled.
Everything that may refuse the packet (TTL, MTU, no dest, table full) comes before the rewrite, so
that an ICMP error quotes what its sender wrote.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.birth import Birth
from tunlb.ipvs.conn import B_FWDMODE, B_STATE, D_DEST, H_FLAGS, INBOUND, XMIT
from tunlb.ipvs.cookie import cookie_key
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.expiry import Expiry
from tunlb.ipvs.lapse import Lapse
from tunlb.ipvs.life import Life
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.ops import NO_ROOM
from tunlb.ipvs.outer import OuterErrors
from tunlb.ipvs.persist import Persistence
from tunlb.ipvs.protocol import Protocol
from tunlb.ipvs.resets import Resets
from tunlb.ipvs.sharding import Sharding
from tunlb.ipvs.synproxy import SynProxy
from tunlb.ipvs.transmit import Transmit
from tunlb.neigh import NeighTable
from tunlb.netif import Addresses
from tunlb.outbox import Sender
from tunlb.packet import HOST, IPPROTO_ICMP, IPPROTO_ICMPV6, Packet
from tunlb.route import RouteTable

if cython.compiled:
    from cython.cimports.tunlb.ipvs import matches, ops, related
    from cython.cimports.tunlb.wire import icmp, ipv4, ipv6
else:
    from tunlb.ipvs import matches, ops, related
    from tunlb.wire import icmp, ipv4, ipv6

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_DROP = cython.declare(cython.int, Verdict.DROP)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_HOST = cython.declare(cython.int, HOST)
_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)
_INBOUND = cython.declare(cython.int, INBOUND)
_XMIT = cython.declare(cython.int, XMIT)
_NO_ROOM = cython.declare(cython.int, NO_ROOM)
_CONN_TABLE_FULL = cython.declare(cython.int, DropReason.CONN_TABLE_FULL)
_MARTIAN = cython.declare(cython.int, DropReason.MARTIAN)
_CONN_REUSED = cython.declare(cython.int, Event.CONN_REUSED)

# Words of a row, see ipvs/conn.py.
_B_STATE = cython.declare(cython.longlong, B_STATE)
_B_FWDMODE = cython.declare(cython.longlong, B_FWDMODE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_D_DEST = cython.declare(cython.longlong, D_DEST)


class Ipvs:
    """Services, dests and conns of one worker, and what happens to their packets.

    ``sender`` sends packets of our own. ``sharding`` says which worker a flow belongs to; None
    where there is only one. ``rates`` is memory for ConnRates, None where nobody shares it.
    """

    def __init__(
        self,
        counters: Counters,
        life: Life,
        neighs: NeighTable,
        routes: RouteTable,
        addresses: Addresses,
        sender: Sender,
        sharding: Sharding | None = None,
        rates: memoryview | None = None,
    ) -> None:
        self.counters = counters
        self.life = life
        self.conns = life.conns
        self.dests = life.dests
        self.protocols = life.protocols
        self.transmit = Transmit(counters, life, neighs, routes, sender)
        self.outer = OuterErrors(counters, life, neighs, sharding)
        # The table's secret is what all workers and their successors have in common.
        key = cookie_key(self.conns.secret())
        synproxy = SynProxy(counters, life, self.transmit, sender, key)
        self.transmit.proxying = life.proxying = synproxy
        persistence = Persistence(counters, life, sharding)
        resets = Resets(counters, life, sender)
        self.birth = Birth(counters, life, self.transmit, addresses, synproxy, persistence, rates)
        self.lapse = Lapse(counters, life, resets)
        life.ending = Expiry(counters, life, persistence, resets)
        self.addresses = addresses
        self.sender = sender
        self.sharding = sharding

    def rewire(self, addresses: Addresses, routes: RouteTable) -> None:
        """Go by these from the next packet on."""
        self.addresses = addresses
        self.birth.addresses = addresses
        self.transmit.routes = routes
        mode: Mode
        for mode in self.life.modes:
            mode.rewire(addresses, routes)

    def receive(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """The verdict on a packet at PRE_ROUTING; ACCEPT with ``neigh`` set when it is ours to
        send.
        """
        if pkt.l2_type != _HOST:
            return _ACCEPT
        if pkt.proto == (_ICMP if pkt.af == 4 else _ICMPV6):
            if icmp.is_error(pkt):
                return self._related(pkt, now)
            if not icmp.is_echo(pkt):
                return _ACCEPT
        protocol: Protocol | None = self.protocols[pkt.proto]
        if protocol is None:
            return _ACCEPT
        conns = self.conns
        entry: cython.longlong = conns.lookup(pkt)
        if entry < 0:
            if self.sharding is not None and self._elsewhere(pkt, self._owner(pkt)):
                return _STOLEN
            return self.birth.schedule(pkt, protocol, now)
        row: cython.longlong = entry >> 1
        direction: cython.int = entry & 1
        if direction == _INBOUND and protocol.reopens(pkt, conns.b[row * 128 + _B_STATE]):
            self.life.end(row)
            self.counters.add(_CONN_REUSED, 1)
            return self.birth.schedule(pkt, protocol, now)
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        if dest.drain_until >= 0 and now > dest.drain_until:
            if self.lapse.meet(pkt, protocol, row, direction, dest, now):
                return self.birth.schedule(pkt, protocol, now)
            return _DROP
        reason: cython.int = self.transmit.admit(pkt, row, direction, now)
        if reason != 0:
            return _DROP
        self.transmit.track(pkt, protocol, row, direction, dest, now)
        return self.transmit.send(pkt, row, direction, dest, now)

    def _owner(self, pkt: Packet) -> cython.int:
        """The worker that a packet of an unknown conn belongs to; -1 when there is only one."""
        sharding = self.sharding
        if sharding is None:
            return -1
        return matches.owner(
            sharding,
            self.birth.matches,
            self.addresses,
            self.transmit.routes,
            pkt.iif,
            pkt.af,
            pkt.proto,
            pkt.saddr_hi,
            pkt.saddr,
            pkt.sport,
            pkt.daddr_hi,
            pkt.daddr,
            pkt.dport,
        )

    def _elsewhere(self, pkt: Packet, owner: cython.int) -> cython.bint:
        """Hand the packet of an unknown conn over to the worker that may know it (DPVS: redirect);
        False when that is nobody, or us.
        """
        sharding = self.sharding
        if sharding is None or owner < 0 or owner == sharding.worker or pkt.handed:
            return False
        pkt.owner = owner
        return True

    def _related(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """An ICMP error about a packet of a conn goes on to the side that sent that packet."""
        entry: cython.longlong = related.find(pkt, self.conns)
        if entry == -1:
            verdict: cython.int = self.outer.receive(pkt, self.addresses, self.birth.services, now)
            if verdict >= 0:
                return verdict
            if self.sharding is not None and self._elsewhere(
                pkt,
                related.owner(
                    pkt,
                    self.sharding,
                    self.birth.matches,
                    self.addresses,
                    self.transmit.routes,
                ),
            ):
                return _STOLEN
            entry = ops.quoted(pkt, self.life, self.birth.services, now)
            if entry >= 0:
                verdict = self._pass_on(pkt, entry, now)
                ops.forget(self.life, entry >> 1)
                return verdict
            if entry == _NO_ROOM:
                return pkt.drop(_CONN_TABLE_FULL)
            if self.addresses.is_local(pkt.daddr_hi, pkt.daddr) and not self.addresses.hosted(
                pkt.daddr_hi, pkt.daddr
            ):
                return pkt.drop(DropReason.ICMP_UNRELATED)
            return _ACCEPT
        if entry < 0:
            return pkt.drop(DropReason.ICMP_INVALID)
        return self._pass_on(pkt, entry, now)

    def _pass_on(self, pkt: Packet, entry: cython.longlong, now: cython.longlong) -> cython.int:
        """The verdict on an ICMP error that travels in the direction of ``entry``."""
        if self.birth.forged(pkt):
            return pkt.drop(_MARTIAN)
        row: cython.longlong = entry >> 1
        direction: cython.int = entry & 1
        if self.transmit.admit(pkt, row, direction, now) != 0:
            return _DROP
        if pkt.af == 4:
            ipv4.decrement_ttl(pkt)
        else:
            ipv6.decrement_hop_limit(pkt)
        conns = self.conns
        if conns.h[row * 64 + _H_FLAGS] & _XMIT:
            mode: Mode = self.life.modes[conns.b[row * 128 + _B_FWDMODE]]
            dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
            reason: cython.int = mode.relate(pkt, conns, row, direction, dest, now)
            if reason != 0:
                return pkt.drop(reason)
        else:
            related.translate(pkt, conns, row, direction)
        self.counters.add(Event.ICMP_RELATED, 1)
        return _ACCEPT


class IpvsIn(Hook):
    """IPVS at PRE_ROUTING (DPVS: dp_vs_in)."""

    point = Point.PRE_ROUTING
    priority = 100

    def __init__(self, ipvs: Ipvs) -> None:
        self.ipvs = ipvs

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        return self.ipvs.receive(pkt, now)
