"""Direct routing: only L2 changes. The dest holds the VIP and answers the client directly."""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import H_FLAGS, NO_REWRITE, ONEWAY, ConnTable
from tunlb.ipvs.dest import FWD_DR, Dest
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

if cython.compiled:
    from cython.cimports.tunlb.ipvs.mode import keep_client
else:
    from tunlb.ipvs.mode import keep_client

FLAGS = ONEWAY | NO_REWRITE
_FLAGS = cython.declare(cython.int, FLAGS)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)


class DirectRouting(Mode):
    number = FWD_DR
    flags = FLAGS

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


XMIT = DirectRouting
