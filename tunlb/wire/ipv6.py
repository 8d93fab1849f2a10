"""The IPv6 header and the extension headers that we walk (RFC 8200)."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import FIRST_FRAGMENT, LATER_FRAGMENT, Packet

HEADER_LEN = 40
PAYLOAD_LEN = 4
NEXT_HEADER = 6
HOP_LIMIT = 7
SADDR = 8
DADDR = 24

HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
AUTH = 51
DEST_OPTIONS = 60
MAX_EXTENSIONS = 8  #: more are dropped as IP_OPTIONS (RFC 9099 section 2.2 lets a middlebox choose)

_MAX_EXTENSIONS = cython.declare(cython.int, MAX_EXTENSIONS)
_HOP_BY_HOP = cython.declare(cython.int, HOP_BY_HOP)
_ROUTING = cython.declare(cython.int, ROUTING)
_FRAGMENT = cython.declare(cython.int, FRAGMENT)
_AUTH = cython.declare(cython.int, AUTH)
_DEST_OPTIONS = cython.declare(cython.int, DEST_OPTIONS)
_TRUNCATED = cython.declare(cython.int, DropReason.TRUNCATED)
_VERSION = cython.declare(cython.int, DropReason.IP_VERSION)
_LENGTH = cython.declare(cython.int, DropReason.IP_LENGTH)
_OPTIONS = cython.declare(cython.int, DropReason.IP_OPTIONS)
_MARTIAN = cython.declare(cython.int, DropReason.MARTIAN)
_FIRST = cython.declare(cython.int, FIRST_FRAGMENT)
_LATER = cython.declare(cython.int, LATER_FRAGMENT)


def parse(pkt: Packet) -> cython.int:
    """Check the header at ``l3``, trim padding, walk extension headers, fill the network fields; 0
    or a DropReason.
    """
    p = pkt.p
    l3: cython.Py_ssize_t = pkt.l3
    room: cython.int = pkt.end - l3
    if room < 40:
        return _TRUNCATED
    if p[l3] >> 4 != 6:
        return _VERSION
    payload: cython.int = (p[l3 + 4] << 8) | p[l3 + 5]
    if payload + 40 > room:
        return _LENGTH
    pkt.end = l3 + 40 + payload
    pkt.af = 6
    pkt.ttl = p[l3 + 7]
    pkt.proto = p[l3 + 6]
    pkt.l4 = l3 + 40
    pkt.saddr_hi = pkt.be64(l3 + 8)
    pkt.saddr = pkt.be64(l3 + 16)
    pkt.daddr_hi = pkt.be64(l3 + 24)
    pkt.daddr = pkt.be64(l3 + 32)
    if p[l3 + 8] == 0xFF or martian(pkt.saddr_hi, pkt.saddr) or martian(pkt.daddr_hi, pkt.daddr):
        return _MARTIAN
    if pkt.daddr_hi == 0 and pkt.daddr == 0:
        return _MARTIAN
    if (
        pkt.proto == _HOP_BY_HOP
        or pkt.proto == _FRAGMENT
        or pkt.proto == _ROUTING
        or pkt.proto == _DEST_OPTIONS
        or pkt.proto == _AUTH
    ):
        return walk(pkt)
    return 0


def martian(hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
    """::1 and the IPv4-mapped block, which inside means IPv4; ``::`` is the caller's."""
    return hi == 0 and (lo == 1 or lo >> 32 == 0xFFFF)


def walk(pkt: Packet) -> cython.int:
    """Step over extension headers until ``proto`` and ``l4`` are those of the transport; 0 or a
    DropReason.
    """
    p = pkt.p
    offset: cython.int = pkt.l4
    proto: cython.int = pkt.proto
    length: cython.int
    n: cython.int
    for n in range(_MAX_EXTENSIONS + 1):
        if proto == _HOP_BY_HOP or proto == _ROUTING or proto == _DEST_OPTIONS or proto == _AUTH:
            if proto == _HOP_BY_HOP and n != 0:
                return _OPTIONS
            if offset + 8 > pkt.end:
                return _TRUNCATED
            length = (p[offset + 1] + 2) * 4 if proto == _AUTH else (p[offset + 1] + 1) * 8
            if proto == _ROUTING and p[offset + 3] != 0:
                return _OPTIONS  # segments left: a source route
        elif proto == _FRAGMENT:
            if offset + 8 > pkt.end:
                return _TRUNCATED
            length = 8
            if pkt.be16(offset + 2) & 0xFFF8:
                pkt.fragment = _LATER
            elif p[offset + 3] & 1:
                pkt.fragment = _FIRST
        else:
            pkt.proto = proto
            pkt.l4 = offset
            return 0
        proto = p[offset]
        offset += length
        if offset > pkt.end:
            return _TRUNCATED
        if pkt.fragment == _LATER:
            pkt.proto = proto
            pkt.l4 = offset
            return 0
    return _OPTIONS


def decrement_hop_limit(pkt: Packet) -> None:
    p = pkt.p
    p[pkt.l3 + 7] = p[pkt.l3 + 7] - 1
    pkt.ttl -= 1


def build(pkt: Packet, proto: cython.int, payload: cython.int, hop_limit: cython.int) -> None:
    """A fresh header at ``l3`` for ``payload`` bytes behind it, addresses from the Packet."""
    p = pkt.p
    l3: cython.Py_ssize_t = pkt.l3
    pkt.put32(l3, 0x60000000)
    pkt.put16(l3 + 4, payload)
    p[l3 + 6] = proto
    p[l3 + 7] = hop_limit
    pkt.put64(l3 + 8, pkt.saddr_hi)
    pkt.put64(l3 + 16, pkt.saddr)
    pkt.put64(l3 + 24, pkt.daddr_hi)
    pkt.put64(l3 + 32, pkt.daddr)
    pkt.af = 6
    pkt.ttl = hop_limit
    pkt.proto = proto
    pkt.l4 = l3 + 40
    pkt.end = pkt.l4 + payload
