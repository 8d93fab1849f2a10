"""NAT (IPVS: masquerading): the dest sees the client and answers through us, its gateway."""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import ConnTable
from tunlb.ipvs.dest import FWD_NAT, Dest
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

if cython.compiled:
    from cython.cimports.tunlb.ipvs.mode import keep_client
else:
    from tunlb.ipvs.mode import keep_client


class Nat(Mode):
    number = FWD_NAT

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        keep_client(conns, row, dest)
        return 0


XMIT = Nat
