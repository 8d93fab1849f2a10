"""TUNNEL: a packet goes to its dest inside an outer header, and the dest, which holds the VIP,
answers the client directly (IPVS: ip_vs_tunnel_xmit).
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.ipvs.conn import (
    B_AF,
    B_PROTO,
    D_PORTS,
    H_FLAGS,
    NO_REWRITE,
    ONEWAY,
    ConnTable,
)
from tunlb.ipvs.conn import (
    XMIT as XMIT_FLAG,
)
from tunlb.ipvs.dest import FWD_TUNNEL, Dest
from tunlb.ipvs.far import FarEnd, Paths
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service
from tunlb.netif import ADDRESS, LADDR, Addresses
from tunlb.packet import Packet
from tunlb.route import RouteTable

if cython.compiled:
    from cython.cimports.tunlb.ipvs.mode import dport_of, keep_client
    from cython.cimports.tunlb.wire import encap
else:
    from tunlb.ipvs.mode import dport_of, keep_client
    from tunlb.wire import encap

from tunlb.wire.encap import GUE

FLAGS = ONEWAY | NO_REWRITE | XMIT_FLAG

_FLAGS = cython.declare(cython.int, FLAGS)
_GUE = cython.declare(cython.int, GUE)
_LOOP = cython.declare(cython.int, DropReason.TUNNEL_LOOP)
_SOURCE = cython.declare(cython.int, DropReason.TUNNEL_SOURCE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_B_AF = cython.declare(cython.longlong, B_AF)
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)


class Tunnel(Mode):
    """``paths`` are the path MTUs that were learnt, ``ends`` the far ends that were sent to since
    the addresses last changed, by address.

    Both are private: a successor's first packet that is too large learns them again.
    """

    number = FWD_TUNNEL
    flags = FLAGS
    takes_fragments = True
    divides = True

    def __init__(self, pools: LportPools) -> None:
        super().__init__(pools)
        self.cuts = True
        self.routes = RouteTable()
        self.paths = Paths()
        self.ends: dict[tuple[int, int], FarEnd] = {}
        # Workers share the outer addresses, and an identification must not be used twice at a time.
        self._ident = pools.residue

    def rewire(self, addresses: Addresses, routes: RouteTable) -> None:
        super().rewire(addresses, routes)
        self.routes = routes
        self.ends = {}

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        keep_client(conns, row, dest)
        conns.h[row * 64 + _H_FLAGS] |= _FLAGS
        return 0

    def fits(self, conns: ConnTable, row: cython.longlong, dest: Dest) -> cython.bint:
        far = dest.far
        return (
            far is not None
            and far.inner_af == conns.b[row * 128 + _B_AF]
            and conns.q[row * 16 + 4] == dest.daddr_hi
            and conns.q[row * 16 + 5] == dest.daddr
            and conns.d[row * 32 + _D_PORTS + 1] >> 16 == dport_of(conns, row, dest)
        )

    def path_mtu(self, dest: Dest, direction: cython.int, mtu: cython.int) -> cython.int:
        far = dest.far
        if far is None:
            return mtu
        known: cython.int = self.paths.mtu(dest.daddr_hi, dest.daddr)
        if 0 < known < mtu:
            mtu = known
        far.narrow = far.leaves_df_out(mtu)
        return far.room(mtu)

    def xmit(
        self,
        pkt: Packet,
        conns: ConnTable,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        far = dest.far
        if far is None:
            return _SOURCE
        if far.known is not self.addresses:
            self._wire(dest, far)
        if far.reason != 0:
            return far.reason
        flow: cython.uint = 0
        if far.af == 6 or far.kind == _GUE:
            flow = self._flow(conns, row)
        ident: cython.int = -1
        if far.af == 4 and (far.narrow or (pkt.af == 4 and not pkt.p[pkt.l3 + 6] & 0x40)):
            ident = self._ident
            self._ident += self.pools.step
            if self._ident > 0xFFFF:
                self._ident = self.pools.residue
        pkt.saddr_hi = far.src_hi
        pkt.saddr = far.src
        pkt.daddr_hi = dest.daddr_hi
        pkt.daddr = dest.daddr
        encap.push(pkt, far.kind, far.af, far.csum, far.port, flow, ident)
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
        """As it is, by the same way as the conn's own packets."""
        return self.xmit(pkt, conns, row, direction, dest, now)

    def _flow(self, conns: ConnTable, row: cython.longlong) -> cython.uint:
        """The same for every packet of a conn."""
        at: cython.longlong = row * 16
        return conns.hash_tuple(
            conns.q[at],
            conns.q[at + 1],
            conns.q[at + 2],
            conns.q[at + 3],
            conns.d[row * 32 + _D_PORTS],
            conns.b[row * 128 + _B_PROTO],
        )

    def _wire(self, dest: Dest, far: FarEnd) -> None:
        """Choose the outer source, and look whether the way out leads out at all."""
        far.known = self.addresses
        far.reason = 0
        hi, lo = dest.daddr_hi, dest.daddr
        if self.addresses.is_local(hi, lo):
            far.reason = _LOOP
            return
        source = far.wanted
        if source == (0, 0):
            route = self.routes.lookup(hi, lo)
            found = None if route is None else self.addresses.primary(route.netif, far.af)
            source = (0, 0) if found is None else found
        if self.addresses.kind(source[0], source[1]) not in (ADDRESS, LADDR):
            far.reason = _SOURCE  # a VIP is the dest's own address: it would refuse the packet
            return
        far.src_hi, far.src = source
        self.ends[hi, lo] = far


XMIT = Tunnel
