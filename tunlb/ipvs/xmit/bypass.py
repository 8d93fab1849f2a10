"""Bypass: to where the packet was going anyway, as it came (IPVS: ip_vs_bypass_xmit).

For a transparent cache that is not there. The answers pass us as well, where we are the gateway,
and are forwarded like the rest: known, so that no match takes them for something new.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import B_AF, D_PORTS, H_FLAGS, NO_REWRITE, ConnTable
from tunlb.ipvs.dest import FWD_BYPASS, Dest
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service

FLAGS = NO_REWRITE
_FLAGS = cython.declare(cython.int, FLAGS)
_B_AF = cython.declare(cython.longlong, B_AF)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)


class Bypass(Mode):
    """The OUTBOUND key is the INBOUND one reversed."""

    number = FWD_BYPASS
    flags = FLAGS

    def bind(
        self,
        conns: ConnTable,
        row: cython.longlong,
        service: Service,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        at: cython.longlong = row * 16
        ports: cython.uint = conns.d[row * 32 + _D_PORTS]
        conns.q[at + 4] = conns.q[at + 2]
        conns.q[at + 5] = conns.q[at + 3]
        conns.q[at + 6] = conns.q[at]
        conns.q[at + 7] = conns.q[at + 1]
        conns.d[row * 32 + _D_PORTS + 1] = ((ports & 0xFFFF) << 16) | (ports >> 16)
        conns.h[row * 64 + _H_FLAGS] |= _FLAGS
        return 0

    def fits(self, conns: ConnTable, row: cython.longlong, dest: Dest) -> cython.bint:
        at: cython.longlong = row * 16
        ports: cython.uint = conns.d[row * 32 + _D_PORTS]
        return (
            dest.af == conns.b[row * 128 + _B_AF]
            and conns.q[at + 4] == conns.q[at + 2]
            and conns.q[at + 5] == conns.q[at + 3]
            and conns.q[at + 6] == conns.q[at]
            and conns.q[at + 7] == conns.q[at + 1]
            and conns.d[row * 32 + _D_PORTS + 1] >> 16 == ports & 0xFFFF
            and conns.d[row * 32 + _D_PORTS + 1] & 0xFFFF == ports >> 16
        )


XMIT = Bypass
