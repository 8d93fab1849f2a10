"""The Internet checksum, and the one discipline by which every rewrite keeps it (RFC 1071, RFC
1624).

Sums are ones' complement sums folded to 16 bits, not complemented. A *delta* is ``fold(sum(~old) +
sum(new))`` over the 16-bit words that change; adding it to a sum moves the sum from the old words
to the new ones. An update is incremental, so a checksum that was wrong stays wrong.
"""

from __future__ import annotations

import cython

from tunlb.packet import IPPROTO_UDP, Packet

_UDP = cython.declare(cython.int, IPPROTO_UDP)
_MASK16_64 = cython.declare(cython.ulonglong, 0xFFFF)


def fold(total: cython.ulonglong) -> cython.uint:
    """``total`` (below 2**48) as a 16-bit ones' complement sum."""
    total = (total & _MASK16_64) + (total >> 16)
    total = (total & _MASK16_64) + (total >> 16)
    return (total & _MASK16_64) + (total >> 16)


def sum16(pkt: Packet, offset: cython.Py_ssize_t, length: cython.Py_ssize_t) -> cython.uint:
    """The sum of ``length`` bytes at ``offset``, an odd last byte padded with zero."""
    total: cython.ulonglong = 0
    i: cython.Py_ssize_t = offset
    end: cython.Py_ssize_t = offset + length
    # 2**16 = 1 in ones' complement arithmetic, so the sum may be taken in words of 32 bits.
    while i + 4 <= end:
        total += pkt.be32(i)
        i += 4
    if i + 2 <= end:
        total += pkt.be16(i)
        i += 2
    if i < end:
        total += pkt.p[i] << 8
    return fold(total)


def sum_address(hi: cython.ulonglong, lo: cython.ulonglong, af: cython.int) -> cython.uint:
    """The sum of an address' words as they stand in a header of that family."""
    total: cython.ulonglong = (lo & _MASK16_64) + ((lo >> 16) & _MASK16_64)
    if af == 6:
        total += ((lo >> 32) & _MASK16_64) + (lo >> 48)
        total += (
            (hi & _MASK16_64) + ((hi >> 16) & _MASK16_64) + ((hi >> 32) & _MASK16_64) + (hi >> 48)
        )
    return fold(total)


def delta(old: cython.uint, new: cython.uint) -> cython.uint:
    """The delta that replaces words that sum to ``old`` by words that sum to ``new``."""
    return fold((0xFFFF - old) + new)


def update(field: cython.uint, change: cython.uint) -> cython.uint:
    """A complemented checksum field after ``change`` (RFC 1624, equation 3)."""
    return 0xFFFF - fold((0xFFFF - field) + change)


def fix_l4(
    pkt: Packet, offset: cython.Py_ssize_t, addresses: cython.uint, ports: cython.uint
) -> None:
    """Keep the TCP or UDP checksum at ``offset`` right after a rewrite.

    ``addresses`` is the delta of the pseudo-header, ``ports`` that of the header and payload. A
    partial field holds the plain sum of the pseudo-header and the kernel adds the rest later, so
    only ``addresses`` matters there (linux/net: inet_proto_csum_replace4). UDP without a checksum
    (0) stays without; a sum of 0 is written 0xFFFF.
    """
    if cython.compiled:
        p = pkt.p + offset
    else:
        p = pkt.mem[offset:]
    field: cython.uint = (p[0] << 8) | p[1]
    if pkt.partial():
        field = fold(field + addresses)
    elif pkt.proto == _UDP:
        if field == 0:
            return
        field = update(field, fold(addresses + ports))
        if field == 0:
            field = 0xFFFF
    else:
        field = update(field, fold(addresses + ports))
    p[0] = (field >> 8) & 0xFF
    p[1] = field & 0xFF


def pseudo_sum(pkt: Packet, proto: cython.int, length: cython.int) -> cython.uint:
    """The pseudo-header's sum for the packet's addresses (RFC 793 section 3.1, RFC 8200 section
    8.1).
    """
    total: cython.ulonglong = sum_address(pkt.saddr_hi, pkt.saddr, pkt.af)
    total += sum_address(pkt.daddr_hi, pkt.daddr, pkt.af)
    total += proto
    total += (length & 0xFFFF) + (length >> 16)
    return fold(total)
