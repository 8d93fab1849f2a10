"""NAT (IPVS: masquerading): the dest sees the client and answers through us, its gateway."""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import ConnTable
from tunlb.ipvs.dest import FWD_NAT, Dest
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

if cython.compiled:
    from cython.cimports.tunlb.ipvs.mode import dport_of, set_outbound
else:
    from tunlb.ipvs.mode import dport_of, set_outbound


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
        return 0


XMIT = Nat
