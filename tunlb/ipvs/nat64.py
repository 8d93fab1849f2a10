"""NAT64: full NAT between the families, for the dests of a service whose address is of the other
one (RFC 7915; DPVS: the v6 to v4 half of src/ipvs/ip_vs_xmit.c).

Nobody names this mode: an ``fnat`` dest has it when its family is not its vaddr's. The keys of a
row fit as they are, because an IPv4 address is kept as ``::ffff:a.b.c.d``. The families differ by
20 bytes of header, which is all that the MTUs of the two sides have to know. What is too long for
IPv6, and has a sender who may not listen when told so, is cut here.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, Event
from tunlb.ipvs.conn import (
    B_AF,
    D_PORTS,
    H_DELTA,
    H_FLAGS,
    H_MTU,
    NO_REWRITE,
    XMIT,
    ConnTable,
)
from tunlb.ipvs.dest import FWD_NAT64, Dest
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.service import Service
from tunlb.ipvs.xmit.fnat import FullNat
from tunlb.netif import Addresses
from tunlb.outbox import Sender
from tunlb.packet import IPPROTO_SCTP, LATER_FRAGMENT, Packet
from tunlb.route import Route, RouteTable
from tunlb.wire.translate import PIECE

if cython.compiled:
    from cython.cimports.tunlb.ipvs import nat64_errors
    from cython.cimports.tunlb.ipvs.mode import dport_of
    from cython.cimports.tunlb.wire import pieces, sctp, translate
else:
    from tunlb.ipvs import nat64_errors
    from tunlb.ipvs.mode import dport_of
    from tunlb.wire import pieces, sctp, translate

FLAGS = XMIT | NO_REWRITE
HEADERS_DIFFER = 20  #: bytes
MTU_MAX = 65535  #: what a row has room for

_FLAGS = cython.declare(cython.int, FLAGS)
_SCTP = cython.declare(cython.int, IPPROTO_SCTP)
_LATER = cython.declare(cython.int, LATER_FRAGMENT)
_PIECE = cython.declare(cython.int, PIECE)
_WHOLE = cython.declare(cython.int, PIECE + 8)  # without the fragment header
_TRANSLATED = cython.declare(cython.int, Event.NAT64_PACKETS)
_CHECKSUMMED = cython.declare(cython.int, Event.NAT64_CHECKSUMS)
_CUT = cython.declare(cython.int, Event.NAT64_CUT)
_B_AF = cython.declare(cython.longlong, B_AF)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_H_DELTA = cython.declare(cython.longlong, H_DELTA)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_H_MTU = cython.declare(cython.longlong, H_MTU)


class Nat64(FullNat):
    """Its number is our own: neither IPVS nor DPVS tells it from FNAT."""

    number = FWD_NAT64
    flags = FLAGS
    takes_fragments = True
    divides = True

    def __init__(self, pools: LportPools, counters: Counters, sender: Sender) -> None:
        super().__init__(pools)
        self.counters = counters
        self.sender = sender
        self.routes = RouteTable()
        self._piece = Packet()  # not the sender's, which may be the one to cut
        # Workers may share a laddr, and an identification must not be used twice at a time. A
        # successor begins anew, which only matters to datagrams that are in fragments right then.
        self._ident = pools.residue

    def rewire(self, addresses: Addresses, routes: RouteTable) -> None:
        super().rewire(addresses, routes)
        self.routes = routes

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        reason: cython.int = FullNat.bind(self, conns, row, service, dest, now)
        if reason == 0:
            conns.h[row * 64 + _H_FLAGS] |= _FLAGS
        return reason

    def fits(self, conns: ConnTable, row: cython.longlong, dest: Dest) -> cython.bint:
        at: cython.longlong = row * 16 + 4
        v4: cython.bint = conns.q[at + 2] == 0 and conns.q[at + 3] >> 32 == 0xFFFF
        return (
            dest.af + conns.b[row * 128 + _B_AF] == 10
            and v4 == (dest.af == 4)
            and conns.q[at] == dest.daddr_hi
            and conns.q[at + 1] == dest.daddr
            and conns.d[row * 32 + _D_PORTS + 1] >> 16 == dport_of(conns, row, dest)
            and self.speaks(conns, row)
        )

    def path_mtu(self, dest: Dest, direction: cython.int, mtu: cython.int) -> cython.int:
        """An IPv6 packet is shorter on the other side, an IPv4 one longer."""
        if (dest.af == 4) == (direction == 0):
            return min(mtu + HEADERS_DIFFER, MTU_MAX)
        return mtu - HEADERS_DIFFER

    def xmit(
        self,
        pkt: Packet,
        conns: ConnTable,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        reason: cython.int = translate.refused(pkt)
        if reason != 0:
            return reason
        q = conns.q
        at: cython.longlong = row * 16 + (1 - direction) * 4
        pkt.saddr_hi = q[at + 2]
        pkt.saddr = q[at + 3]
        pkt.daddr_hi = q[at]
        pkt.daddr = q[at + 1]
        self._ident += self.pools.step
        if self._ident > 0xFFFF:
            self._ident = self.pools.residue
        apart: cython.bint = pkt.af == 4 and self._apart(pkt, conns, row, direction)
        translate.network(pkt, self._ident, apart)
        ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
        ports = (ports >> 16) | (ports & 0xFFFF) << 16
        pkt.sport = ports >> 16
        pkt.dport = ports & 0xFFFF
        if pkt.fragment == _LATER:
            pass  # it has no ports
        elif pkt.proto == _SCTP:
            sctp.put_ports(pkt, pkt.l4, ports, pkt.end - pkt.l4, pkt.end)
        elif translate.transport(
            pkt,
            ports,
            conns.h[row * 64 + _H_DELTA + 2 * direction],
            conns.h[row * 64 + _H_DELTA + 2 * direction + 1],
        ):
            self.counters.add(_CHECKSUMMED, 1)
        self.counters.add(_TRANSLATED, 1)
        if apart:
            self._cut(pkt, now)
        return 0

    def _apart(
        self, pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int
    ) -> cython.bint:
        """Must an IPv4 packet be cut for IPv6 (RFC 7915 section 4)? A fragment must when not every
        IPv6 link takes it, a whole one without DF when the path may not. ``daddr`` is the one that
        it will have.
        """
        length: cython.int = pkt.end - pkt.l4
        if pkt.fragment != 0:
            return length > _PIECE
        if length <= _WHOLE or pkt.p[pkt.l3 + 6] & 0x40 != 0 or pkt.gso_type != 0:
            return False
        route: Route | None = self.routes.lookup(pkt.daddr_hi, pkt.daddr)
        if route is None or not route.mtu_known:
            return True
        return pkt.end - pkt.l3 > conns.h[row * 64 + _H_MTU + direction]

    def _cut(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Shorten it to its first piece, and send the others behind it."""
        pieces.finish(pkt)
        self.counters.add(_CUT, 1)
        out: Packet = self._piece
        begin: cython.int = _PIECE
        while begin < pkt.end - pkt.l4:
            out.reset(0, 0)
            out.iif = pkt.iif
            out.oif = None
            translate.piece(pkt, begin, out)
            self.sender.send(out, now)
            begin += _PIECE
        translate.shorten(pkt)
        return 0

    def relate(
        self,
        pkt: Packet,
        conns: ConnTable,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        return nat64_errors.translate(pkt, conns, row, direction)
