"""Bytes put into a TCP or UDP packet, or taken out, with its lengths and checksums kept right.

What follows them moves; the headers stay at L3_OFFSET (see packet.py). Only the first packets of a
conn are moved, for a header or an option; datagrams with a header each are small.
"""

from __future__ import annotations

import cython

from tunlb.packet import BUFFER_LEN, IPPROTO_UDP, Packet

if cython.compiled:
    from cython.cimports.libc.string import memcpy, memmove
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

_UDP = cython.declare(cython.int, IPPROTO_UDP)
_BUFFER_LEN = cython.declare(cython.int, BUFFER_LEN)


def grows(pkt: Packet, n: cython.int) -> cython.bint:
    """Is there room for ``n`` more bytes, in the buffer and in what an IP header can say?"""
    length: cython.int = pkt.end - pkt.l3 + n
    if pkt.af == 6:
        length -= 40
    return length <= 65535 and pkt.end + n <= _BUFFER_LEN


def piece(out: Packet, headers: bytes, data: bytes) -> None:
    """Into ``out``, of a known ``af``, one datagram of an offloaded frame: ``headers`` were the
    frame's, IP and UDP, and ``data`` is a part of its payload. Its checksum is partial, as theirs.
    """
    l3: cython.int = out.l3
    out.l4 = l3 + len(headers) - 8
    out.end = out.l4 + 8 + len(data)
    out.mem[l3 : out.l4 + 8] = headers
    out.mem[out.l4 + 8 : out.end] = data
    out.proto = _UDP
    out.ttl = out.p[l3 + (8 if out.af == 4 else 7)]
    out.csum_start = out.l4
    out.csum_offset = 6
    whole: cython.int = out.be16(out.l4 + 4)
    _lengths(out, len(data) + 8 - whole, 0)


def replace(pkt: Packet, at: cython.int, gone: cython.int, data: bytes) -> None:
    """Replace the ``gone`` bytes at ``at`` by ``data``.

    ``at`` is an even number of bytes behind ``l4``, and behind the fields that this changes: the
    lengths of IP and UDP, and the checksums, full or partial, by the difference. :func:`grows` was
    asked. The data offset of TCP is the caller's.
    """
    size: cython.int = len(data)
    n: cython.int = size - gone
    old_end: cython.int = pkt.end
    # Bytes that change their place in a word, when what is put in is odd, count differently.
    moved: cython.bint = ((size | gone) & 1) != 0
    content: cython.uint = 0
    if not pkt.partial():
        content = checksum.sum16(pkt, at, old_end - at if moved else gone)
    if cython.compiled:
        if n != 0:
            memmove(pkt.p + at + size, pkt.p + at + gone, old_end - at - gone)
        memcpy(pkt.p + at, cython.cast(cython.p_char, data), size)
    else:
        pkt.mem[at + size : old_end + n] = bytes(pkt.mem[at + gone : old_end])
        pkt.mem[at : at + size] = data
    pkt.end = old_end + n
    if not pkt.partial():
        content = checksum.delta(content, checksum.sum16(pkt, at, pkt.end - at if moved else size))
    _lengths(pkt, n, content)


def _lengths(pkt: Packet, n: cython.int, content: cython.uint) -> None:
    """The packet's end has moved by ``n`` bytes, and its checksum by ``content``."""
    l3: cython.int = pkt.l3
    length: cython.uint
    if pkt.af == 4:
        length = pkt.be16(l3 + 2)
        pkt.put16(l3 + 2, length + n)
        pkt.put16(l3 + 10, checksum.update(pkt.be16(l3 + 10), checksum.delta(length, length + n)))
    else:
        pkt.put16(l3 + 4, pkt.be16(l3 + 4) + n)
    field: cython.int = pkt.l4 + 16
    if pkt.proto == _UDP:
        field = pkt.l4 + 6
        length = pkt.be16(pkt.l4 + 4)
        pkt.put16(pkt.l4 + 4, length + n)
        content = checksum.fold(content + checksum.delta(length, length + n))
    else:
        length = pkt.end - pkt.l4 - n
    checksum.fix_l4(pkt, field, checksum.delta(length, length + n), content)
