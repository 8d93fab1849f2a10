"""ICMP errors about packets of a NAT64 conn, and the packet that they quote, in the other family
(RFC 7915 sections 4.2, 4.3, 5.2 and 5.3).

An error is small and rare: it is taken apart and built anew. Its sender, a router of the one family
that has no address in the other, becomes who the recipient speaks to: the VIP, or the laddr.
Extensions of RFC 4884 are left out. The quote is cut to what an error of that family may have.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.ipvs.conn import D_PORTS, H_DELTA, H_FLAGS, H_MTU, SEQUENCE, ConnTable
from tunlb.packet import (
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    L3_OFFSET,
    Packet,
)

if cython.compiled:
    from cython.cimports.tunlb.ipvs import client_address, related
    from cython.cimports.tunlb.wire import checksum, icmp, sctp
    from cython.cimports.tunlb.wire import translate as headers
else:
    from tunlb.ipvs import client_address, related
    from tunlb.wire import checksum, icmp, sctp
    from tunlb.wire import translate as headers

ERROR_MAX_V4 = 576  #: bytes of a whole error packet (RFC 1812 section 4.3.2.3)
ERROR_MAX_V6 = 1280  #: RFC 4443 section 2.4 c
MTU_MIN_V6 = 1280
MTU_MIN_V4 = 1260  #: what an IPv6 packet of the least MTU has

#: MTUs to guess from when a router names none (RFC 1191 section 7.1), those of 1260 and more.
PLATEAUS = (65535, 32000, 17914, 8166, 4352, 2002, 1492)

UNREACHABLE_V6 = (0, 0, -1, 4, -1, 0, 0, 0, 0, 1, 1, 0, 0, 1, -1, 1)  #: ICMPv6 code by ICMP's
UNREACHABLE_V4 = (1, 10, 1, 1, 3)  #: ICMP code by ICMPv6's
#: Where a field is in the other header, by its first byte; -1: it has none there.
POINTER_V6 = (0, 1, 4, 4, -1, -1, -1, -1, 7, 6, -1, -1, 8, 8, 8, 8, 24, 24, 24, 24)
POINTER_V4 = (0, 1, -1, -1, 2, 2, 9, 8, *(12,) * 16, *(16,) * 16)

_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_SCTP = cython.declare(cython.int, IPPROTO_SCTP)
_DF = cython.declare(cython.uint, 0x4000)
_TOO_BIG_V4 = cython.declare(cython.longlong, 0x304)  # type and code
_TOO_BIG_V6 = cython.declare(cython.longlong, 0x200)
_L3_OFFSET = cython.declare(cython.int, L3_OFFSET)
_UNTRANSLATABLE = cython.declare(cython.int, DropReason.ICMP_UNTRANSLATABLE)
_SEQUENCE = cython.declare(cython.int, SEQUENCE)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_H_DELTA = cython.declare(cython.longlong, H_DELTA)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_H_MTU = cython.declare(cython.longlong, H_MTU)


def translate(
    pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int
) -> cython.int:
    """Make the error, which `related.find` found good, one of the other family; 0 or a DropReason.

    Its ``ttl`` is the one to send.
    """
    v6: cython.bint = pkt.af == 6
    if conns.h[row * 64 + _H_FLAGS] & _SEQUENCE:
        client_address.quoted(
            pkt, conns, row, direction, related.inner_l4(pkt), related.inner_proto(pkt)
        )
    meaning: cython.longlong = _of_v6(pkt) if v6 else _of_v4(pkt)
    if meaning < 0:
        return _UNTRANSLATABLE
    if meaning >> 32 == (_TOO_BIG_V4 if v6 else _TOO_BIG_V6):
        meaning += _mtu(pkt, conns, row, direction)
    at: cython.int = pkt.l4 + 8
    l4: cython.int = related.inner_l4(pkt)
    proto: cython.int = related.inner_proto(pkt)
    length: cython.int = pkt.be16(at + (4 if v6 else 2))
    length = max(0, length - (l4 - at - (40 if v6 else 0)))
    length = min(length, 65515)
    inner_tos: cython.int = headers.traffic_class(pkt, at, pkt.af)
    inner_ttl: cython.int = pkt.p[at + (7 if v6 else 8)]
    tos: cython.int = headers.traffic_class(pkt, pkt.l3, pkt.af)
    _fix_quote(pkt, conns, row, direction, l4, length)
    room: cython.int = ERROR_MAX_V4 - 48 if v6 else ERROR_MAX_V6 - 88
    quote: bytes = bytes(pkt.mem[l4 : min(_end_of_quote(pkt, l4, length), l4 + room)])
    # From here on it is built, where packets of our own are built.
    q = conns.q
    to: cython.longlong = row * 16 + (1 - direction) * 4
    pkt.saddr_hi = q[to + 2]
    pkt.saddr = q[to + 3]
    pkt.daddr_hi = q[to]
    pkt.daddr = q[to + 1]
    pkt.csum_start = 0
    pkt.gso_type = 0
    pkt.data_valid = False
    pkt.l3 = _L3_OFFSET
    header: cython.int = 20 if v6 else 40
    pkt.l4 = pkt.l3 + header
    at = pkt.l4 + 8
    pkt.mem[at + header : at + header + len(quote)] = quote
    pkt.end = at + header + len(quote)
    pkt.start = pkt.l3
    if v6:
        pkt.af = 4
        pkt.proto = _ICMP
        headers.write_v4(
            pkt, pkt.l3, tos, pkt.end - pkt.l3, 0, pkt.ttl, _ICMP, pkt.saddr, pkt.daddr
        )
        headers.write_v4(
            pkt, at, inner_tos, 20 + length, _DF, inner_ttl, proto, q[to + 1], q[to + 3]
        )
    else:
        pkt.af = 6
        pkt.proto = _ICMPV6
        _write_v6(pkt, pkt.l3, tos, pkt.end - pkt.l4, pkt.ttl, _ICMPV6, conns, to + 2, to)
        _write_v6(pkt, at, inner_tos, length, inner_ttl, proto, conns, to, to + 2)
    pkt.put16(pkt.l4, meaning >> 32)
    pkt.put32(pkt.l4 + 4, meaning & 0xFFFFFFFF)
    pkt.icmp_type = meaning >> 40
    icmp.seal(pkt)
    return 0


def _write_v6(
    pkt: Packet,
    at: cython.int,
    tos: cython.int,
    payload: cython.int,
    hop_limit: cython.int,
    proto: cython.int,
    conns: ConnTable,
    source: cython.longlong,
    target: cython.longlong,
) -> None:
    """An IPv6 header with the addresses at two words of the table."""
    q = conns.q
    headers.write_v6(
        pkt,
        at,
        tos,
        payload,
        hop_limit,
        proto,
        q[source],
        q[source + 1],
        q[target],
        q[target + 1],
    )


def _meaning(
    kind: cython.longlong, code: cython.longlong, info: cython.longlong
) -> cython.longlong:
    """Type, code and second word of a message in one number."""
    return (kind << 40) | (code << 32) | info


def _of_v4(pkt: Packet) -> cython.longlong:
    """What an ICMP error says, as ICMPv6 says it, the MTU left out; -1: it cannot be said."""
    kind: cython.int = pkt.p[pkt.l4]
    code: cython.int = pkt.p[pkt.l4 + 1]
    if kind == 3:
        if code == 2:
            return _meaning(4, 1, 6)  # the next header field
        if code == 4:
            return _meaning(2, 0, 0)
        code = UNREACHABLE_V6[code] if code < len(UNREACHABLE_V6) else -1
        return -1 if code < 0 else _meaning(1, code, 0)
    if kind == 11 and code <= 1:
        return _meaning(3, code, 0)
    if kind == 12 and code != 1:
        pointer: cython.int = pkt.p[pkt.l4 + 4]
        pointer = POINTER_V6[pointer] if pointer < len(POINTER_V6) else -1
        return -1 if pointer < 0 else _meaning(4, 0, pointer)
    return -1


def _of_v6(pkt: Packet) -> cython.longlong:
    """What an ICMPv6 error says, as ICMP says it."""
    kind: cython.int = pkt.p[pkt.l4]
    code: cython.int = pkt.p[pkt.l4 + 1]
    if kind == 1 and code < len(UNREACHABLE_V4):
        return _meaning(3, UNREACHABLE_V4[code], 0)
    if kind == 2:
        return _meaning(3, 4, 0)
    if kind == 3 and code <= 1:
        return _meaning(11, code, 0)
    if kind == 4 and code == 1:
        return _meaning(3, 2, 0)
    if kind == 4 and code == 0:
        where: cython.uint = pkt.be32(pkt.l4 + 4)
        pointer: cython.longlong = POINTER_V4[where] if where < len(POINTER_V4) else -1
        return -1 if pointer < 0 else _meaning(12, 0, pointer << 24)
    return -1


def _mtu(
    pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int
) -> cython.longlong:
    """The MTU to tell: the one named, those of our own two links, and what IPv6 cannot go below.

    A row's MTUs count bytes before translation, so the one of the way that the refused packet came
    is in the recipient's bytes already.
    """
    shift: cython.longlong
    least: cython.longlong
    mtu: cython.longlong
    if pkt.af == 4:
        shift = 20
        least = MTU_MIN_V6
        mtu = pkt.be16(pkt.l4 + 6)
        if mtu == 0:
            mtu = _plateau(pkt.be16(pkt.l4 + 10))
    else:
        shift = -20
        least = MTU_MIN_V4
        mtu = min(pkt.be32(pkt.l4 + 4), 65535)
    mtu += shift
    behind: cython.longlong = conns.h[row * 64 + _H_MTU + 1 - direction]
    ahead: cython.longlong = conns.h[row * 64 + _H_MTU + direction]
    if behind != 0:
        mtu = min(mtu, behind)
    if ahead != 0:
        mtu = min(mtu, ahead + shift)
    return max(mtu, least)


def _plateau(length: cython.int) -> cython.longlong:
    """A guess at the MTU that a packet of ``length`` bytes was too large for."""
    plateau: cython.int
    for plateau in PLATEAUS:
        if plateau < length:
            return plateau
    return MTU_MIN_V4


def _end_of_quote(pkt: Packet, l4: cython.int, length: cython.int) -> cython.int:
    """Where the quoted packet ends: before what RFC 4884 puts behind it, or where it ended itself.

    Never before the 8 bytes of transport header that `related.find` looked at.
    """
    at: cython.int = pkt.l4 + 8
    said: cython.int = 0
    if pkt.af == 4:
        said = pkt.p[pkt.l4 + 5] * 4
    elif pkt.icmp_type != 2 and pkt.icmp_type != 4:
        said = pkt.p[pkt.l4 + 4] * 8
    end: cython.int = min(pkt.end, l4 + length)
    if said != 0:
        end = min(end, at + said)
    return max(end, l4 + 8)


def _fix_quote(
    pkt: Packet,
    conns: ConnTable,
    row: cython.longlong,
    direction: cython.int,
    l4: cython.int,
    length: cython.int,
) -> None:
    """Ports and checksum of the quoted transport header, as its sender wrote them, as far as they
    are there.
    """
    ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
    proto: cython.int = related.inner_proto(pkt)
    if proto == _SCTP:
        sctp.put_ports(pkt, l4, ports, length, pkt.end)
        return
    pkt.put32(l4, ports)
    field: cython.int = l4 + (16 if proto == _TCP else 6)
    if field + 2 > pkt.end or (proto == _UDP and pkt.be16(field) == 0):
        return
    change: cython.uint = conns.h[row * 64 + _H_DELTA + 2 * direction]
    change = checksum.fold(change + conns.h[row * 64 + _H_DELTA + 2 * direction + 1])
    inner: cython.uint = checksum.update(pkt.be16(field), change)
    pkt.put16(field, 0xFFFF if inner == 0 and proto == _UDP else inner)
