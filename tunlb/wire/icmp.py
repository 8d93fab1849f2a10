"""ICMP and ICMPv6 messages (RFC 792, RFC 4443): checks, numbers and how the two families say the
same thing.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

HEADER_LEN = 8

ECHO_REPLY = 0
DEST_UNREACH = 3
ECHO_REQUEST = 8
TIME_EXCEEDED = 11
PARAM_PROBLEM = 12
NET_UNREACH_CODE = 0
HOST_UNREACH_CODE = 1
PORT_UNREACH_CODE = 3
FRAG_NEEDED_CODE = 4

V6_DEST_UNREACH = 1
V6_PACKET_TOO_BIG = 2
V6_TIME_EXCEEDED = 3
V6_PARAM_PROBLEM = 4
V6_ECHO_REQUEST = 128
V6_ECHO_REPLY = 129
V6_NS = 135
V6_NA = 136
V6_NO_ROUTE_CODE = 0
V6_ADDRESS_UNREACH_CODE = 3
V6_PORT_UNREACH_CODE = 4

# Errors by meaning; each family has its own type and code for it.
ERR_TIME_EXCEEDED = 0
ERR_PORT_UNREACHABLE = 1
ERR_NET_UNREACHABLE = 2
ERR_TOO_BIG = 3
ERR_HOST_UNREACHABLE = 4

_ERRORS_V4 = (
    (TIME_EXCEEDED, 0),
    (DEST_UNREACH, PORT_UNREACH_CODE),
    (DEST_UNREACH, NET_UNREACH_CODE),
    (DEST_UNREACH, FRAG_NEEDED_CODE),
    (DEST_UNREACH, HOST_UNREACH_CODE),
)
_ERRORS_V6 = (
    (V6_TIME_EXCEEDED, 0),
    (V6_DEST_UNREACH, V6_PORT_UNREACH_CODE),
    (V6_DEST_UNREACH, V6_NO_ROUTE_CODE),
    (V6_PACKET_TOO_BIG, 0),
    (V6_DEST_UNREACH, V6_ADDRESS_UNREACH_CODE),
)

_L4_HEADER = cython.declare(cython.int, DropReason.L4_HEADER)
_INVALID = cython.declare(cython.int, DropReason.ICMP_INVALID)
_V4 = cython.declare(cython.int, 4)
_ICMPV6 = cython.declare(cython.int, 58)


def parse(pkt: Packet) -> cython.int:
    """Check that a header is there and note its type; 0 or L4_HEADER. The checksum is verified by
    who reads on.

    An echo's identifier takes the place of the port of who sent the request; the other one is 0.
    """
    if pkt.end - pkt.l4 < 8:
        return _L4_HEADER
    kind: cython.int = pkt.p[pkt.l4]
    pkt.icmp_type = kind
    if kind == (8 if pkt.af == _V4 else 128):
        pkt.sport = pkt.be16(pkt.l4 + 4)
    elif kind == (0 if pkt.af == _V4 else 129):
        pkt.dport = pkt.be16(pkt.l4 + 4)
    return 0


def verify(pkt: Packet) -> cython.int:
    """0 if the checksum is right or the kernel vouched for it, else ICMP_INVALID."""
    if pkt.data_valid or pkt.csum_start == pkt.l4:
        return 0
    length: cython.int = pkt.end - pkt.l4
    total: cython.uint = checksum.sum16(pkt, pkt.l4, length)
    if pkt.af != _V4:
        total = checksum.fold(total + checksum.pseudo_sum(pkt, _ICMPV6, length))
    return 0 if total == 0xFFFF else _INVALID


def is_error(pkt: Packet) -> cython.bint:
    """An error about another packet: v4 3, 4, 11, 12; v6 below 128."""
    kind: cython.int = pkt.icmp_type
    if pkt.af == _V4:
        return kind == 3 or kind == 4 or kind == 11 or kind == 12
    return kind < 128


def is_echo(pkt: Packet) -> cython.bint:
    """A request or a reply."""
    kind: cython.int = pkt.icmp_type
    if pkt.af == _V4:
        return kind == 0 or kind == 8
    return kind == 128 or kind == 129


def seal(pkt: Packet) -> None:
    """Write the checksum of the message at ``l4``."""
    length: cython.int = pkt.end - pkt.l4
    pkt.put16(pkt.l4 + 2, 0)
    total: cython.uint = checksum.sum16(pkt, pkt.l4, length)
    if pkt.af != _V4:
        total = checksum.fold(total + checksum.pseudo_sum(pkt, _ICMPV6, length))
    pkt.put16(pkt.l4 + 2, 0xFFFF - total)


def refuse(pkt: Packet, reason: cython.int, error: cython.int, info: cython.uint) -> cython.int:
    """DROP for ``reason`` and have the sender told with ``error`` (ERR_*); ``info`` is the MTU for
    ERR_TOO_BIG.
    """
    kind, code = _ERRORS_V4[error] if pkt.af == _V4 else _ERRORS_V6[error]
    return pkt.drop_with_error(reason, kind, code, info)
