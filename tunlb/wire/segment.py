"""Segmentation in software: an offloaded frame, cut into what its wire takes.

The kernel cuts offloaded frames itself, but its virtio-net header cannot say everywhere that one
goes through a tunnel. So a frame that gets an outer header is cut before. Each segment is made
where its payload lies: the headers are written right before it, over the segment that was written
out before. Nothing else is moved, and the segments go out one after the other, before the next
frame is read, so that a flow keeps its order.

What the headers of a segment say is what Linux' tcp_gso_segment, __udp_gso_segment,
inet_gso_segment and ipv6_gso_segment make of them: lengths, the IPv4 id counting up, the sequence
number going on, FIN and PSH on the last only, CWR on the first only. A partial checksum stays
partial, and what was wrong in it stays wrong.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import IPPROTO_UDP, Packet

if cython.compiled:
    from cython.cimports.libc.string import memcpy
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

SEGMENTS_MAX = 1400  #: of one frame: 64 KB of the smallest segments that Linux sends (48 bytes)
HEADERS_MAX = 256  #: bytes of the headers of a segment

_SEGMENTS_MAX = cython.declare(cython.int, SEGMENTS_MAX)
_HEADERS_MAX = cython.declare(cython.int, HEADERS_MAX)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_REFUSED = cython.declare(cython.int, DropReason.SEGMENTS)
_FIN_PSH = cython.declare(cython.int, 0x09)
_CWR = cython.declare(cython.int, 0x80)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)


class Segments:
    """The segments of one frame at a time: :meth:`begin`, then :meth:`next` until it says no."""

    def __init__(self) -> None:
        self.mem = memoryview(bytearray(HEADERS_MAX))
        if cython.compiled:
            view: cython.uchar[::1] = self.mem
            self.h = cython.address(view[0])
        else:
            self.h = self.mem
        self.left = 0

    def begin(self, pkt: Packet) -> cython.int:
        """Take the frame in ``pkt``, checked by wire.vnet; 0 or SEGMENTS when it cannot be cut."""
        l4: cython.int = pkt.l4 - pkt.l3
        header: cython.int = l4 + (8 if pkt.proto == _UDP else (pkt.p[pkt.l4 + 12] >> 4) * 4)
        length: cython.int = pkt.end - pkt.l3 - header
        self.left = 0
        if header > _HEADERS_MAX or pkt.gso_size <= 0 or length < 0 or pkt.csum_start != pkt.l4:
            return _REFUSED
        if length > pkt.gso_size * _SEGMENTS_MAX:
            return _REFUSED
        self.left = 1 if length == 0 else (length + pkt.gso_size - 1) // pkt.gso_size
        if cython.compiled:
            memcpy(self.h, pkt.p + pkt.l3, header)
        else:
            self.mem[:header] = pkt.mem[pkt.l3 : pkt.l3 + header]
        self.header = header
        self.l4 = l4
        self.size = pkt.gso_size
        self.at = pkt.l3 + header
        self.end = pkt.end
        self.whole = pkt.end - pkt.l4
        self.count = 0
        self.af = pkt.af
        self.proto = pkt.proto
        self.ttl = pkt.ttl
        self.csum_offset = pkt.csum_offset
        self.saddr_hi = pkt.saddr_hi
        self.saddr = pkt.saddr
        self.daddr_hi = pkt.daddr_hi
        self.daddr = pkt.daddr
        self.sport = pkt.sport
        self.dport = pkt.dport
        return 0

    def next(self, pkt: Packet) -> cython.bint:
        """Make ``pkt``, the packet that was begun with, its next segment; False: that was all.

        Whatever was done to the segment before, it is a plain packet with a partial checksum.
        """
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
        pkt.l4 = l3 + self.l4
        pkt.end = self.at + size
        pkt.af = self.af
        pkt.proto = self.proto
        pkt.ttl = self.ttl
        pkt.saddr_hi = self.saddr_hi
        pkt.saddr = self.saddr
        pkt.daddr_hi = self.daddr_hi
        pkt.daddr = self.daddr
        pkt.sport = self.sport
        pkt.dport = self.dport
        pkt.csum_start = pkt.l4
        pkt.csum_offset = self.csum_offset
        pkt.gso_type = 0
        pkt.gso_size = 0
        pkt.reason = 0
        pkt.err_type = -1
        pkt.owner = -1
        self._network(pkt)
        self._transport(pkt)
        self.at += size
        self.count += 1
        return True

    def _network(self, pkt: Packet) -> None:
        """Lengths, and IPv4's id."""
        l3: cython.int = pkt.l3
        length: cython.int = pkt.end - l3
        if pkt.af != 4:
            pkt.put16(l3 + 4, length - 40)
            return
        former: cython.uint = pkt.be16(l3 + 2)
        ident: cython.uint = pkt.be16(l3 + 4)
        new: cython.uint = (ident + self.count) & 0xFFFF
        change: cython.uint = checksum.delta(
            checksum.fold(former + ident), checksum.fold(length + new)
        )
        pkt.put16(l3 + 2, length)
        pkt.put16(l3 + 4, new)
        pkt.put16(l3 + 10, checksum.update(pkt.be16(l3 + 10), change))

    def _transport(self, pkt: Packet) -> None:
        """TCP's sequence number and flags or UDP's length, and the partial checksum."""
        p = pkt.p
        l4: cython.int = pkt.l4
        field: cython.int = l4 + self.csum_offset
        length: cython.int = pkt.end - l4
        if pkt.proto == _UDP:
            pkt.put16(l4 + 4, length)
        else:
            sent: cython.ulonglong = pkt.be32(l4 + 4)
            sent += cython.cast(cython.ulonglong, self.count) * self.size
            pkt.put32(l4 + 4, cython.cast(cython.uint, sent & _MASK32))
            if self.left > 0:
                p[l4 + 13] = p[l4 + 13] & ~_FIN_PSH
            if self.count > 0:
                p[l4 + 13] = p[l4 + 13] & ~_CWR
            pkt.tcp_flags = p[l4 + 13]
        pkt.put16(field, checksum.fold(pkt.be16(field) + checksum.delta(self.whole, length)))
