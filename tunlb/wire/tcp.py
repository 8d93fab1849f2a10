"""The TCP header (RFC 9293): checked, and built for segments of our own."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import IPPROTO_TCP, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum, ipv4, ipv6
else:
    from tunlb.wire import checksum, ipv4, ipv6

HEADER_LEN = 20
SEQ = 4
ACK_SEQ = 8
FLAGS = 13
CHECKSUM = 16

FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10

_TCP = cython.declare(cython.int, IPPROTO_TCP)
_L4_HEADER = cython.declare(cython.int, DropReason.L4_HEADER)


def parse(pkt: Packet) -> cython.int:
    """Check the header at ``l4`` and fill ports and flags; 0 or L4_HEADER."""
    p = pkt.p
    l4: cython.Py_ssize_t = pkt.l4
    room: cython.int = pkt.end - l4
    if room < 20:
        return _L4_HEADER
    header: cython.int = (p[l4 + 12] >> 4) * 4
    if header < 20 or header > room:
        return _L4_HEADER
    pkt.sport = (p[l4] << 8) | p[l4 + 1]
    pkt.dport = (p[l4 + 2] << 8) | p[l4 + 3]
    pkt.tcp_flags = p[l4 + 13]
    return 0


def build(
    pkt: Packet,
    seq: cython.uint,
    ack: cython.uint,
    flags: cython.int,
    window: cython.int,
    options: cython.int,
    payload: cython.int,
) -> None:
    """Fresh IP and TCP headers at ``l3``: addresses, ports and ``af`` from the Packet, TTL 64, DF.

    ``options`` and ``payload`` are lengths in bytes (``options`` a multiple of 4): whoever calls
    writes both, from ``l4 + 20`` on, and then seals it.
    """
    if pkt.af == 4:
        ipv4.build(pkt, _TCP, 20 + options + payload, 0)
    else:
        ipv6.build(pkt, _TCP, 20 + options + payload, 64)
    p = pkt.p
    l4: cython.Py_ssize_t = pkt.l4
    pkt.put32(l4, (pkt.sport << 16) | pkt.dport)
    pkt.put32(l4 + 4, seq)
    pkt.put32(l4 + 8, ack)
    p[l4 + 12] = (20 + options) << 2
    p[l4 + 13] = flags
    pkt.put16(l4 + 14, window)
    pkt.put32(l4 + 16, 0)
    pkt.tcp_flags = flags


def seal(pkt: Packet) -> None:
    """Write the checksum of the whole segment at ``l4``; it is no partial one from here on."""
    length: cython.int = pkt.end - pkt.l4
    pkt.csum_start = 0
    pkt.put16(pkt.l4 + 16, 0)
    total: cython.uint = checksum.sum16(pkt, pkt.l4, length)
    total = checksum.fold(total + checksum.pseudo_sum(pkt, _TCP, length))
    pkt.put16(pkt.l4 + 16, 0xFFFF - total)
