"""The TCP header (RFC 9293)."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import Packet

HEADER_LEN = 20
SEQ = 4
ACK_SEQ = 8
FLAGS = 13
CHECKSUM = 16

FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10

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
