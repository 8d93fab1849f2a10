"""The UDP header (RFC 768)."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import Packet

HEADER_LEN = 8
LENGTH = 4
CHECKSUM = 6

_L4_HEADER = cython.declare(cython.int, DropReason.L4_HEADER)


def parse(pkt: Packet) -> cython.int:
    """Check the header at ``l4`` and fill the ports; 0 or L4_HEADER."""
    p = pkt.p
    l4: cython.Py_ssize_t = pkt.l4
    room: cython.int = pkt.end - l4
    if room < 8:
        return _L4_HEADER
    length: cython.int = (p[l4 + 4] << 8) | p[l4 + 5]
    if length < 8 or length > room:
        return _L4_HEADER
    pkt.sport = (p[l4] << 8) | p[l4 + 1]
    pkt.dport = (p[l4 + 2] << 8) | p[l4 + 3]
    return 0
