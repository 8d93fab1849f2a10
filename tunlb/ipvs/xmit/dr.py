"""Direct routing: only L2 changes. The dest holds the VIP and answers the client directly."""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import H_FLAGS, NO_REWRITE, ONEWAY, ConnTable
from tunlb.ipvs.dest import FWD_DR, Dest
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

if cython.compiled:
    from cython.cimports.tunlb.ipvs.mode import dport_of, set_outbound
else:
    from tunlb.ipvs.mode import dport_of, set_outbound

_FLAGS = cython.declare(cython.int, ONEWAY | NO_REWRITE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)


class DirectRouting(Mode):
    number = FWD_DR

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        at: cython.longlong = row * 16
        set_outbound(
            conns,
            row,
            dest,
            conns.q[at],
            conns.q[at + 1],
            dport_of(conns, row, dest),
            conns.d[row * 32 + 16] >> 16,
        )
        conns.h[row * 64 + _H_FLAGS] |= _FLAGS
        return 0


XMIT = DirectRouting
