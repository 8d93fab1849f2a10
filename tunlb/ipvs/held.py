"""Segments of clients that wait until the dest has answered (DPVS: ack_mbuf)."""

from __future__ import annotations

import cython

from tunlb.netif import NOWHERE, Netif
from tunlb.packet import L3_OFFSET, Packet

HELD_FRAMES = 4096  #: of all conns together
HELD_BYTES = 8 << 20  #: of all conns together
HELD_PER_CONN = 12  #: a first flight of ten segments (RFC 6928), and what ends it

_L3 = cython.declare(cython.int, L3_OFFSET)
_FRAMES = cython.declare(cython.longlong, HELD_FRAMES)
_BYTES = cython.declare(cython.longlong, HELD_BYTES)
_PER_CONN = cython.declare(cython.int, HELD_PER_CONN)


class Segment:
    """A TCP packet without its L2 header, and the fields of the Packet that it was; ``csum_start``
    counts from its first byte.
    """

    def __init__(self) -> None:
        self.iif = NOWHERE
        self.data = b""
        self.af = self.proto = self.ttl = self.l4 = self.tcp_flags = 0
        self.csum_start = self.csum_offset = self.gso_type = self.gso_size = 0
        self.saddr_hi = self.saddr = self.daddr_hi = self.daddr = 0
        self.sport = self.dport = 0

    def unload(self, pkt: Packet) -> None:
        """Take all of ``pkt``."""
        l3: cython.int = pkt.l3
        iif: Netif = pkt.iif
        self.iif = iif
        self.data = bytes(pkt.mem[l3 : pkt.end])
        self.af = pkt.af
        self.proto = pkt.proto
        self.ttl = pkt.ttl
        self.l4 = pkt.l4 - l3
        self.tcp_flags = pkt.tcp_flags
        self.csum_start = 0 if pkt.csum_start == 0 else pkt.csum_start - l3
        self.csum_offset = pkt.csum_offset
        self.gso_type = pkt.gso_type
        self.gso_size = pkt.gso_size
        self.saddr_hi = pkt.saddr_hi
        self.saddr = pkt.saddr
        self.daddr_hi = pkt.daddr_hi
        self.daddr = pkt.daddr
        self.sport = pkt.sport
        self.dport = pkt.dport

    def load(self, pkt: Packet) -> None:
        """Put it into a fresh packet, as it was after ``Ip.rcv`` had looked at it."""
        size: cython.int = len(self.data)
        pkt.mem[_L3 : _L3 + size] = self.data
        pkt.start = _L3
        pkt.end = _L3 + size
        pkt.af = self.af
        pkt.proto = self.proto
        pkt.ttl = self.ttl
        pkt.l4 = _L3 + self.l4
        pkt.tcp_flags = self.tcp_flags
        pkt.csum_start = 0 if self.csum_start == 0 else _L3 + self.csum_start
        pkt.csum_offset = self.csum_offset
        pkt.gso_type = self.gso_type
        pkt.gso_size = self.gso_size
        pkt.saddr_hi = self.saddr_hi
        pkt.saddr = self.saddr
        pkt.daddr_hi = self.daddr_hi
        pkt.daddr = self.daddr
        pkt.sport = self.sport
        pkt.dport = self.dport


class Held:
    """The segments of each row, in the order in which they came.

    Private to a worker: what a successor does not find the client sends again.
    """

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self._rows: dict[int, list[Segment]] = {}

    def put(self, row: cython.longlong, pkt: Packet) -> cython.bint:
        """Keep a copy; False when there is no room."""
        size: cython.int = pkt.end - pkt.l3
        if self.count >= _FRAMES or self.bytes + size > _BYTES:
            return False
        segments: list[Segment] | None = self._rows.get(row)
        if segments is None:
            segments = []
            self._rows[row] = segments
        elif len(segments) >= _PER_CONN:
            return False
        segment: Segment = Segment()
        segment.unload(pkt)
        segments.append(segment)
        self.count += 1
        self.bytes += size
        return True

    def take(self, row: cython.longlong) -> list[Segment]:
        """What was kept for the row, and is not any more."""
        segments: list[Segment] | None = self._rows.pop(row, None)
        if segments is None:
            return []
        segment: Segment
        for segment in segments:
            self.count -= 1
            self.bytes -= len(segment.data)
        return segments
