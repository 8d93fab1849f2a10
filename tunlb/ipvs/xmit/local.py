"""The host itself is the dest (IPVS: LOCALNODE): packets go to it as they came, and its answers go
out without us.

The address of such a dest is one of the host's; the route to it leads to the host's TAP.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import H_FLAGS, NO_REWRITE, ONEWAY, ConnTable
from tunlb.ipvs.dest import FWD_LOCAL, Dest
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

if cython.compiled:
    from cython.cimports.tunlb.ipvs.mode import keep_client
else:
    from tunlb.ipvs.mode import keep_client

FLAGS = ONEWAY | NO_REWRITE
_FLAGS = cython.declare(cython.int, FLAGS)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)


class LocalNode(Mode):
    number = FWD_LOCAL
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


XMIT = LocalNode
