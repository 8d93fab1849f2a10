"""Full NAT: the dest sees one of our local addresses, so it needs no route back through us but the
ordinary one.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.ipvs.conn import B_PROTO, D_PORTS, ConnTable
from tunlb.ipvs.dest import FWD_FNAT, Dest
from tunlb.ipvs.laddr import LportPool
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

if cython.compiled:
    from cython.cimports.tunlb.ipvs.mode import dport_of, set_outbound
else:
    from tunlb.ipvs.mode import dport_of, set_outbound

_EXHAUSTED = cython.declare(cython.int, DropReason.LPORT_EXHAUSTED)
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)


class FullNat(Mode):
    """Takes the service's laddrs in turn; a laddr whose pool towards the dest is empty is passed
    over.
    """

    number = FWD_FNAT

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        laddrs = service.laddrs_of(dest.af)
        n: cython.int = len(laddrs)
        dport: cython.uint = dport_of(conns, row, dest)
        key: cython.uint = (dport << 8) | conns.b[row * 128 + _B_PROTO]
        lport: cython.int
        pool: LportPool
        laddr_hi: cython.ulonglong
        laddr: cython.ulonglong
        for _ in range(n):
            laddr_hi, laddr = laddrs[service.next_laddr % n]
            service.next_laddr = (service.next_laddr + 1) % n
            pool = self.pools.pool(laddr_hi, laddr, dest.daddr_hi, dest.daddr, key)
            lport = pool.take()
            if lport != 0:
                set_outbound(conns, row, dest, laddr_hi, laddr, dport, lport)
                return 0
        return _EXHAUSTED

    def unbind(self, conns: ConnTable, row: cython.longlong) -> None:
        pool: LportPool | None = self._pool(conns, row)
        if pool is not None:
            pool.give(conns.d[row * 32 + _D_PORTS + 1] & 0xFFFF)

    def rebind(self, conns: ConnTable, row: cython.longlong) -> cython.bint:
        pool: LportPool | None = self._pool(conns, row)
        return pool is not None and pool.claim(conns.d[row * 32 + _D_PORTS + 1] & 0xFFFF)

    def fits(self, conns: ConnTable, row: cython.longlong, dest: Dest) -> cython.bint:
        return Mode.fits(self, conns, row, dest) and self.speaks(conns, row)

    def speaks(self, conns: ConnTable, row: cython.longlong) -> cython.bint:
        """Is the row's laddr still ours? Else nobody would bring us the answers."""
        return self.addresses.is_local(conns.q[row * 16 + 6], conns.q[row * 16 + 7])

    def _pool(self, conns: ConnTable, row: cython.longlong) -> LportPool | None:
        """The pool that the row's lport is of; None when bind took none."""
        at: cython.longlong = row * 16 + 4
        if conns.q[at + 3] == 0:
            return None
        return self.pools.pool(
            conns.q[at + 2],
            conns.q[at + 3],
            conns.q[at],
            conns.q[at + 1],
            ((conns.d[row * 32 + _D_PORTS + 1] >> 16) << 8) | conns.b[row * 128 + _B_PROTO],
        )


XMIT = FullNat
