"""The Mode type: what a forwarding mode makes of a conn when it is born.

A mode fills the OUTBOUND key (daddr, laddr, dport, lport) and flags of a row whose INBOUND key is
in place. For most modes the packet path knows nothing else of them: see rewrite.py. A mode that
does more to a packet than change addresses and ports sets XMIT in the row.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import B_AF, D_PORTS, ConnTable
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.service import Service
from tunlb.netif import Addresses
from tunlb.packet import Packet
from tunlb.route import RouteTable

if cython.compiled:
    from cython.cimports.tunlb.ipvs import related
else:
    from tunlb.ipvs import related

_B_AF = cython.declare(cython.longlong, B_AF)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)


class Mode:
    """A forwarding mode; ``number`` is IPVS' (see ipvs.dest), ``flags`` what it sets in a row.

    ``cuts``: offloaded frames come to :meth:`xmit` in segments, and IPv4 packets that are too large
    in fragments.
    """

    number = -1
    flags = 0
    takes_fragments = False  # XMIT: xmit may be given one, the first or a later one
    divides = False  # XMIT: what came over IPv4, without DF, and is too large, is cut

    def __init__(self, pools: LportPools) -> None:
        self.pools = pools
        self.addresses = Addresses()
        self.cuts = False

    def rewire(self, addresses: Addresses, routes: RouteTable) -> None:
        """Go by these from the next packet on."""
        self.addresses = addresses

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        """Fill the row; 0, or the DropReason for which the conn cannot be."""
        raise NotImplementedError

    def unbind(self, conns: ConnTable, row: cython.longlong) -> None:
        """The conn ends: give back what bind took."""

    def rebind(self, conns: ConnTable, row: cython.longlong) -> cython.bint:
        """Take again what bind took for a conn of a former worker; False when it cannot be had."""
        return True

    def fits(self, conns: ConnTable, row: cython.longlong, dest: Dest) -> cython.bint:
        """Could :meth:`bind` have filled this row of a former worker for ``dest``?"""
        return (
            dest.af == conns.b[row * 128 + _B_AF]
            and conns.q[row * 16 + 4] == dest.daddr_hi
            and conns.q[row * 16 + 5] == dest.daddr
            and conns.d[row * 32 + _D_PORTS + 1] >> 16 == dport_of(conns, row, dest)
        )

    def rival(
        self, conns: ConnTable, row: cython.longlong, service: Service, at: cython.int
    ) -> cython.longlong:
        """A mode without pools: the conn that holds the ``at``-th lport that bind tried, or -1."""
        return -1

    def path_mtu(self, dest: Dest, direction: cython.int, mtu: cython.int) -> cython.int:
        """XMIT: bytes that a packet may have before :meth:`xmit`, where the route takes ``mtu``."""
        return mtu

    def xmit(
        self,
        pkt: Packet,
        conns: ConnTable,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        """XMIT: the last word on a packet, after its rewrite and TTL, before POST_ROUTING; 0, or a
        DropReason.
        """
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
        """XMIT: have an ICMP error about a packet of the conn say the same to who sent that packet,
        its TTL lowered already; 0, or a DropReason.
        """
        related.translate(pkt, conns, row, direction)
        return 0


def set_outbound(
    conns: ConnTable,
    row: cython.longlong,
    dest: Dest,
    laddr_hi: cython.ulonglong,
    laddr: cython.ulonglong,
    dport: cython.uint,
    lport: cython.uint,
) -> None:
    """The OUTBOUND key: what the dest will answer."""
    at: cython.longlong = row * 16 + 4
    conns.q[at] = dest.daddr_hi
    conns.q[at + 1] = dest.daddr
    conns.q[at + 2] = laddr_hi
    conns.q[at + 3] = laddr
    conns.d[row * 32 + _D_PORTS + 1] = (dport << 16) | lport


def dport_of(conns: ConnTable, row: cython.longlong, dest: Dest) -> cython.uint:
    """The dest's port for this conn: its own, or the one that the client asked for."""
    return dest.dport if dest.dport != 0 else conns.d[row * 32 + _D_PORTS] & 0xFFFF


def keep_client(conns: ConnTable, row: cython.longlong, dest: Dest) -> None:
    """The OUTBOUND key of a mode in which the dest sees the client's own address and port."""
    at: cython.longlong = row * 16
    cport: cython.uint = conns.d[row * 32 + _D_PORTS] >> 16
    set_outbound(conns, row, dest, conns.q[at], conns.q[at + 1], dport_of(conns, row, dest), cport)
