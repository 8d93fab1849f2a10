"""The IPv4 header (RFC 791), checked once."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import FIRST_FRAGMENT, LATER_FRAGMENT, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

HEADER_LEN = 20
TOS = 1
TOTAL_LEN = 2
IDENT = 4
FLAGS = 6
TTL = 8
PROTO = 9
CHECKSUM = 10
SADDR = 12
DADDR = 16
DF = 0x40  #: in the byte at FLAGS
MF = 0x20

MAPPED = 0xFFFF_0000_0000  #: the low half of ::ffff:0.0.0.0

_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_MAPPED = cython.declare(cython.ulonglong, MAPPED)
_TRUNCATED = cython.declare(cython.int, DropReason.TRUNCATED)
_VERSION = cython.declare(cython.int, DropReason.IP_VERSION)
_HEADER = cython.declare(cython.int, DropReason.IP_HEADER)
_CHECKSUM = cython.declare(cython.int, DropReason.IP_CHECKSUM)
_LENGTH = cython.declare(cython.int, DropReason.IP_LENGTH)
_OPTIONS = cython.declare(cython.int, DropReason.IP_OPTIONS)
_MARTIAN = cython.declare(cython.int, DropReason.MARTIAN)
_FIRST = cython.declare(cython.int, FIRST_FRAGMENT)
_LATER = cython.declare(cython.int, LATER_FRAGMENT)


def parse(pkt: Packet) -> cython.int:
    """Check the header at ``l3``, trim link-layer padding and fill the network fields; 0 or a
    DropReason.
    """
    l3: cython.Py_ssize_t = pkt.l3
    if cython.compiled:
        p = pkt.p + l3
    else:
        p = pkt.mem[l3:]
    room: cython.int = pkt.end - l3
    if room < 20:
        return _TRUNCATED
    # The five words that every header has, read once: for the sum (2**16 = 1 in ones' complement
    # arithmetic, so it may be taken in words of 32 bits) and for the fields.
    first: cython.uint = p[0]
    first = (first << 24) | (p[1] << 16) | (p[2] << 8) | p[3]
    second: cython.uint = p[4]
    second = (second << 24) | (p[5] << 16) | (p[6] << 8) | p[7]
    third: cython.uint = p[8]
    third = (third << 24) | (p[9] << 16) | (p[10] << 8) | p[11]
    saddr: cython.uint = p[12]
    saddr = (saddr << 24) | (p[13] << 16) | (p[14] << 8) | p[15]
    daddr: cython.uint = p[16]
    daddr = (daddr << 24) | (p[17] << 16) | (p[18] << 8) | p[19]
    if first >> 28 != 4:
        return _VERSION
    header: cython.int = ((first >> 24) & 0x0F) * 4
    if header < 20:
        return _HEADER
    if header > room:
        return _TRUNCATED
    words: cython.ulonglong = first
    words = words + second + third + saddr + daddr
    if header > 20:
        words += checksum.sum16(pkt, l3 + 20, header - 20)
    if checksum.fold(words) != 0xFFFF:
        return _CHECKSUM
    total: cython.int = first & 0xFFFF
    if total < header or total > room:
        return _LENGTH
    pkt.end = l3 + total
    pkt.af = 4
    pkt.ttl = third >> 24
    pkt.proto = (third >> 16) & 0xFF
    pkt.l4 = l3 + header
    pkt.saddr_hi = 0
    pkt.daddr_hi = 0
    pkt.saddr = _MAPPED | saddr
    pkt.daddr = _MAPPED | daddr
    net: cython.uint = saddr >> 24
    if net == 0 or net == 127 or net >= 224:
        return _MARTIAN
    net = daddr >> 24
    if net == 0 or net == 127:
        return _MARTIAN
    if header > 20 and not options_fine(pkt, l3 + 20, l3 + header):
        return _OPTIONS
    if second & 0x3FFF:
        pkt.fragment = _LATER if second & 0x1FFF else _FIRST
    return 0


def options_fine(pkt: Packet, offset: cython.int, end: cython.int) -> cython.bint:
    """Well-formed, and no loose or strict source route (RFC 7126 section 4.3: drop those)."""
    p = pkt.p
    kind: cython.int
    length: cython.int
    while offset < end:
        kind = p[offset]
        if kind == 0:
            return True
        if kind == 1:
            offset += 1
            continue
        if kind == 131 or kind == 137 or offset + 1 >= end:
            return False
        length = p[offset + 1]
        if length < 2 or offset + length > end:
            return False
        offset += length
    return True


def decrement_ttl(pkt: Packet) -> None:
    """Lower the TTL by one and keep the header checksum (RFC 1141); the TTL must be 2 or more."""
    if cython.compiled:
        p = pkt.p + pkt.l3
    else:
        p = pkt.mem[pkt.l3 :]
    p[8] = p[8] - 1
    field: cython.uint = ((p[10] << 8) | p[11]) + 0x0100
    field += 1 if field >= 0xFFFF else 0
    p[10] = (field >> 8) & 0xFF
    p[11] = field & 0xFF
    pkt.ttl -= 1


def build(pkt: Packet, proto: cython.int, payload: cython.int, tos: cython.int) -> None:
    """A fresh header at ``l3`` for ``payload`` bytes behind it, addresses from the Packet: TTL 64,
    DF, id 0 (RFC 6864).
    """
    p = pkt.p
    l3: cython.Py_ssize_t = pkt.l3
    p[l3] = 0x45
    p[l3 + 1] = tos
    pkt.put16(l3 + 2, 20 + payload)
    pkt.put32(l3 + 4, 0x4000)
    p[l3 + 8] = 64
    p[l3 + 9] = proto
    pkt.put16(l3 + 10, 0)
    pkt.put32(l3 + 12, cython.cast(cython.uint, pkt.saddr & _MASK32))
    pkt.put32(l3 + 16, cython.cast(cython.uint, pkt.daddr & _MASK32))
    pkt.put16(l3 + 10, 0xFFFF - checksum.sum16(pkt, l3, 20))
    pkt.af = 4
    pkt.ttl = 64
    pkt.proto = proto
    pkt.l4 = l3 + 20
    pkt.end = pkt.l4 + payload
