"""The SCTP common header and its chunks, as far as a balancer looks (RFC 9260 section 3)."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import crc32c
else:
    from tunlb.wire import crc32c

HEADER_LEN = 12
CHUNK_HEADER_LEN = 4
VTAG = 4
CHECKSUM = 8
INIT_LEN = 20  #: bytes of an INIT chunk without parameters

DATA = 0
INIT = 1
INIT_ACK = 2
SACK = 3
HEARTBEAT = 4
ABORT = 6
SHUTDOWN = 7
SHUTDOWN_ACK = 8
ERROR = 9
COOKIE_ECHO = 10
COOKIE_ACK = 11
SHUTDOWN_COMPLETE = 14

_INIT = cython.declare(cython.int, INIT)
_ABORT = cython.declare(cython.int, ABORT)
_COOKIE_ECHO = cython.declare(cython.int, COOKIE_ECHO)
_COOKIE_ACK = cython.declare(cython.int, COOKIE_ACK)
_L4_HEADER = cython.declare(cython.int, DropReason.L4_HEADER)
_VNET_HEADER = cython.declare(cython.int, DropReason.VNET_HEADER)
_ALL = cython.declare(cython.uint, 0xFFFFFFFF)


def parse(pkt: Packet) -> cython.int:
    """Check the common header and the first chunk at ``l4``, and fill the ports; 0 or a DropReason.

    A checksum that was left to an offload is computed here and now: no port is told of CRC-32C
    (linux/if_tun.h has no flag for it), so it could not be left to the next one. What else is asked
    of the kernel is another protocol's.
    """
    p = pkt.p
    l4: cython.Py_ssize_t = pkt.l4
    room: cython.int = pkt.end - l4
    if room < 16:
        return _L4_HEADER
    length: cython.int = (p[l4 + 14] << 8) | p[l4 + 15]
    if length < 4 or length > room - 12:
        return _L4_HEADER
    pkt.sport = (p[l4] << 8) | p[l4 + 1]
    pkt.dport = (p[l4 + 2] << 8) | p[l4 + 3]
    if pkt.csum_start != 0:
        if pkt.csum_start != pkt.l4 or pkt.csum_offset != 8 or pkt.gso_type != 0:
            return _VNET_HEADER
        seal(pkt)
    return 0


def event(pkt: Packet) -> cython.int:
    """The type of the chunk that moves the state: the first one, or an ABORT that is bundled behind
    a COOKIE ECHO or COOKIE ACK.
    """
    p = pkt.p
    l4: cython.Py_ssize_t = pkt.l4
    kind: cython.int = p[l4 + 12]
    if kind == _COOKIE_ECHO or kind == _COOKIE_ACK:
        at: cython.int = 12 + ((((p[l4 + 14] << 8) | p[l4 + 15]) + 3) & ~3)
        if pkt.end - l4 >= at + 4 and p[l4 + at] == _ABORT:
            return _ABORT
    return kind


def is_init(pkt: Packet) -> cython.bint:
    """An INIT as RFC 9260 sections 6.10 and 8.5.1 want it: alone, and with verification tag 0.

    Of fragments only the first is looked at: what follows it must be of the INIT.
    """
    p = pkt.p
    l4: cython.Py_ssize_t = pkt.l4
    length: cython.int = (p[l4 + 14] << 8) | p[l4 + 15]
    least: cython.int = pkt.end - l4 if pkt.fragment == 0 else pkt.end - l4 + 1
    return (
        p[l4 + 12] == _INIT
        and length >= 20
        and 12 + ((length + 3) & ~3) >= least
        and p[l4 + 4] | p[l4 + 5] | p[l4 + 6] | p[l4 + 7] == 0
    )


def seal(pkt: Packet) -> None:
    """Write the checksum of the whole packet at ``l4``; it is no partial one from here on."""
    l4: cython.int = pkt.l4
    crc: cython.uint = crc32c.add(_ALL, pkt, l4, 8)
    pkt.put32(l4 + 8, 0)
    crc = _ALL ^ crc32c.add(crc, pkt, l4 + 8, pkt.end - l4 - 8)
    _put_crc(pkt, l4 + 8, crc)
    pkt.csum_start = 0


def put_ports(
    pkt: Packet, l4: cython.int, ports: cython.uint, length: cython.int, end: cython.int
) -> None:
    """Write ``ports`` (sport << 16 | dport) into the header at ``l4`` of a packet of ``length``
    bytes, and keep its checksum right, or as wrong as it was.

    The checksum is left out where ``end`` cuts it off: a quoted packet may have 8 bytes.
    """
    change: cython.uint = pkt.be32(l4) ^ ports
    pkt.put32(l4, ports)
    if change == 0 or end - l4 < 12:
        return
    # The CRC takes the first byte as the least significant one.
    change = (
        (change >> 24)
        | ((change >> 8) & 0xFF00)
        | ((change & 0xFF00) << 8)
        | ((change & 0xFF) << 24)
    )
    field: cython.int = l4 + 8
    old: cython.uint = pkt.be32(field)
    change = crc32c.shifted(change, length)
    _put_crc(pkt, field, change)
    pkt.put32(field, pkt.be32(field) ^ old)


def _put_crc(pkt: Packet, offset: cython.Py_ssize_t, crc: cython.uint) -> None:
    """A CRC goes on the wire least significant byte first (RFC 9260 appendix A)."""
    p = pkt.p
    p[offset] = crc & 0xFF
    p[offset + 1] = (crc >> 8) & 0xFF
    p[offset + 2] = (crc >> 16) & 0xFF
    p[offset + 3] = crc >> 24
