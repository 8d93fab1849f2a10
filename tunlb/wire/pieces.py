"""Fragmentation of IPv4 (RFC 791 section 3.2): a packet without DF, cut into what its wire takes.

For packets that get an outer header and are then too large. The inner packet is cut, not the outer
one: so each fragment is decapsulated by itself, and only the host that the packet is for has to put
it together. Each is made where its payload lies, as the segments of an offloaded frame are (see
wire/segment.py), and may itself be cut out of such a segment, or be a fragment already.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import FIRST_FRAGMENT, IPPROTO_UDP, LATER_FRAGMENT, Packet

if cython.compiled:
    from cython.cimports.libc.string import memcpy
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

HEADER_MAX = 60  #: bytes of an IPv4 header
PIECES_MAX = 256  #: of one packet: who forges a tiny path MTU does not multiply large packets

_PIECES_MAX = cython.declare(cython.int, PIECES_MAX)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_REFUSED = cython.declare(cython.int, DropReason.SEGMENTS)
_FIRST = cython.declare(cython.int, FIRST_FRAGMENT)
_LATER = cython.declare(cython.int, LATER_FRAGMENT)
_NOP = cython.declare(cython.int, 1)


class Pieces:
    """The fragments of one packet at a time: :meth:`begin`, then :meth:`next` until it says no."""

    def __init__(self) -> None:
        self.mem = memoryview(bytearray(HEADER_MAX))
        if cython.compiled:
            view: cython.uchar[::1] = self.mem
            self.h = cython.address(view[0])
        else:
            self.h = self.mem
        self.left = 0

    def begin(self, pkt: Packet, room: cython.int) -> cython.int:
        """Take the packet in ``pkt``, IPv4 and without DF, to make fragments of at most ``room``
        bytes; 0, or SEGMENTS when they would be too many, or too small for any payload.
        """
        header: cython.int = (pkt.p[pkt.l3] & 0x0F) * 4
        length: cython.int = pkt.end - pkt.l3 - header
        self.left = 0
        self.size = (room - header) & ~7
        if room < header + 8 or length <= 0 or length > self.size * _PIECES_MAX:
            return _REFUSED
        finish(pkt)
        self.left = (length + self.size - 1) // self.size
        if cython.compiled:
            memcpy(self.h, pkt.p + pkt.l3, header)
        else:
            self.mem[:header] = pkt.mem[pkt.l3 : pkt.l3 + header]
        self.header = header
        self.at = pkt.l3 + header
        self.end = pkt.end
        self.word = pkt.be16(pkt.l3 + 6)
        self.proto = pkt.proto
        self.ttl = pkt.ttl
        self.saddr_hi = pkt.saddr_hi
        self.saddr = pkt.saddr
        self.daddr_hi = pkt.daddr_hi
        self.daddr = pkt.daddr
        self.sport = pkt.sport
        self.dport = pkt.dport
        return 0

    def next(self, pkt: Packet) -> cython.bint:
        """Make ``pkt``, the packet that was begun with, its next fragment; False: that was all."""
        if self.left <= 0:
            return False
        self.left -= 1
        size: cython.int = self.size if self.left > 0 else self.end - self.at
        l3: cython.int = self.at - self.header
        if cython.compiled:
            memcpy(pkt.p + l3, self.h, self.header)
        else:
            pkt.mem[l3 : l3 + self.header] = self.mem[: self.header]
        pkt.l3 = l3
        pkt.start = l3
        pkt.l4 = self.at
        pkt.end = self.at + size
        pkt.af = 4
        pkt.proto = self.proto
        pkt.ttl = self.ttl
        pkt.saddr_hi = self.saddr_hi
        pkt.saddr = self.saddr
        pkt.daddr_hi = self.daddr_hi
        pkt.daddr = self.daddr
        pkt.sport = self.sport
        pkt.dport = self.dport
        pkt.csum_start = 0
        pkt.csum_offset = 0
        pkt.gso_type = 0
        pkt.gso_size = 0
        pkt.reason = 0
        pkt.err_type = -1
        pkt.owner = -1
        pkt.fragment = _LATER if self.word & 0x1FFF else _FIRST
        pkt.put16(l3 + 2, self.header + size)
        pkt.put16(l3 + 6, self.word | 0x2000 if self.left > 0 else self.word)
        pkt.put16(l3 + 10, 0)
        pkt.put16(l3 + 10, 0xFFFF - checksum.sum16(pkt, l3, self.header))
        if not self.word & 0x1FFF:
            self._keep_copied()
        self.at += size
        self.word += size >> 3
        return True

    def _keep_copied(self) -> None:
        """Later fragments have only those options whose type says so; NOPs stand for the others."""
        h = self.h
        at: cython.int = 20
        size: cython.int
        i: cython.int
        while at < self.header and h[at] != 0:
            size = 1
            if h[at] != _NOP:
                # Well-formed: see wire/ipv4.py.
                size = h[at + 1] if at + 1 < self.header else 1
                if size < 1 or at + size > self.header:
                    size = self.header - at
                if not h[at] & 0x80:
                    for i in range(at, at + size):
                        h[i] = _NOP
            at += size


def finish(pkt: Packet) -> None:
    """Compute a partial checksum: nobody behind could, because no fragment has all of its bytes."""
    if pkt.csum_start == 0:
        return
    start: cython.int = pkt.csum_start
    value: cython.uint = 0xFFFF - checksum.sum16(pkt, start, pkt.end - start)
    if value == 0 and pkt.proto == _UDP:
        value = 0xFFFF
    pkt.put16(start + pkt.csum_offset, value)
    pkt.csum_start = 0
    pkt.csum_offset = 0
