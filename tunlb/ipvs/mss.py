"""The MSS option of a conn's SYNs, lowered to what the path takes (RFC 9293 section 3.7.1)."""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import H_MTU, ConnTable
from tunlb.packet import IPPROTO_TCP, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

AUTO = -1  #: of a dest: from the path MTU of each conn
SYN = 0x02

_TCP = cython.declare(cython.int, IPPROTO_TCP)
_SYN = cython.declare(cython.int, SYN)
_H_MTU = cython.declare(cython.longlong, H_MTU)


def clamp(pkt: Packet, conns: ConnTable, row: cython.longlong, most: cython.int) -> cython.bint:
    """Lower the option of a SYN or SYN-ACK to ``most``, or with AUTO to what the narrower of the
    conn's two routes takes; whether it did. Never raised, and never added.
    """
    if pkt.proto != _TCP or not pkt.tcp_flags & _SYN:
        return False
    limit: cython.int = most
    if limit < 0:
        limit = _path_mtu(conns, row) - (40 if pkt.af == 4 else 60)
    if limit <= 0:
        return False
    at: cython.int = find(pkt)
    if at < 0:
        return False
    old: cython.uint = pkt.be16(at)
    if old <= cython.cast(cython.uint, limit):
        return False
    pkt.put16(at, limit)
    new: cython.uint = limit
    if (at - pkt.l4) & 1:
        # It straddles two words of the checksum.
        old = ((old & 0xFF) << 8) | (old >> 8)
        new = ((new & 0xFF) << 8) | (new >> 8)
    checksum.fix_l4(pkt, pkt.l4 + 16, 0, checksum.delta(old, new))
    return True


def find(pkt: Packet) -> cython.int:
    """Where the value of the segment's MSS option is; -1 without one, or when options lie."""
    p = pkt.p
    at: cython.int = pkt.l4 + 20
    end: cython.int = pkt.l4 + (p[pkt.l4 + 12] >> 4) * 4
    size: cython.int
    while at + 1 < end:
        if p[at] == 0:
            return -1
        if p[at] == 1:
            at += 1
            continue
        size = p[at + 1]
        if size < 2 or at + size > end:
            return -1
        if p[at] == 2 and size == 4:
            return at + 2
        at += size
    return -1


def _path_mtu(conns: ConnTable, row: cython.longlong) -> cython.int:
    """The smaller of both directions; of a conn whose answers do not pass, the one there is."""
    there: cython.int = conns.h[row * 64 + _H_MTU]
    back: cython.int = conns.h[row * 64 + _H_MTU + 1]
    if there == 0 or (back != 0 and back < there):
        return back
    return there
