"""The Mode type: what a forwarding mode makes of a conn when it is born.

A mode fills the OUTBOUND key (daddr, laddr, dport, lport) and flags of a row whose INBOUND key is
in place. The packet path knows nothing else of modes: see rewrite.py.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import D_PORTS, ConnTable
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.service import Service

_D_PORTS = cython.declare(cython.longlong, D_PORTS)


class Mode:
    """A forwarding mode; ``number`` is IPVS' (see ipvs.dest), ``flags`` what it sets in a row."""

    number = -1
    flags = 0

    def __init__(self, pools: LportPools) -> None:
        self.pools = pools

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
