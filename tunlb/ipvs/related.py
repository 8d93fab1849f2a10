"""ICMP errors about packets of a conn: found by the packet that they quote, translated outside and
inside.

The quoted packet is one that we wrote, so it is the *reverse* of the key of the direction in which
the error travels; the side that the error goes to sent that packet in the form of the other key
(semantics: IPVS ip_vs_nat_icmp, DPVS xmit_icmp). An error does not keep a conn alive.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import D_PORTS, H_FLAGS, NO_REWRITE, SEQUENCE, ConnTable
from tunlb.ipvs.matches import MatchTable
from tunlb.ipvs.sharding import Sharding
from tunlb.netif import Addresses
from tunlb.packet import (
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    Packet,
)
from tunlb.route import RouteTable
from tunlb.wire.ipv6 import (
    AUTH,
    DEST_OPTIONS,
    FRAGMENT,
    HOP_BY_HOP,
    MAX_EXTENSIONS,
    ROUTING,
)

if cython.compiled:
    from cython.cimports.tunlb.ipvs import client_address, echo, rewrite
    from cython.cimports.tunlb.ipvs.matches import owner as owner_of
    from cython.cimports.tunlb.wire import checksum, icmp, sctp
else:
    from tunlb.ipvs import client_address, echo, rewrite
    from tunlb.ipvs.matches import owner as owner_of
    from tunlb.wire import checksum, icmp, sctp

UNRELATED = -1
INVALID = -2

_UNRELATED = cython.declare(cython.longlong, UNRELATED)
_INVALID = cython.declare(cython.longlong, INVALID)
_MAPPED = cython.declare(cython.ulonglong, 0xFFFF_0000_0000)
_NO_REWRITE = cython.declare(cython.int, NO_REWRITE)
_SEQUENCE = cython.declare(cython.int, SEQUENCE)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_SCTP = cython.declare(cython.int, IPPROTO_SCTP)
_HOP_BY_HOP = cython.declare(cython.int, HOP_BY_HOP)
_ROUTING = cython.declare(cython.int, ROUTING)
_FRAGMENT_HEADER = cython.declare(cython.int, FRAGMENT)
_AUTH = cython.declare(cython.int, AUTH)
_DEST_OPTIONS = cython.declare(cython.int, DEST_OPTIONS)
_MAX_EXTENSIONS = cython.declare(cython.int, MAX_EXTENSIONS)


def inner_l4(pkt: Packet) -> cython.int:
    """Where the quoted packet's ports are; -1 when it quotes none or is malformed."""
    p = pkt.p
    at: cython.int = pkt.l4 + 8
    header: cython.int = 40
    if pkt.af == 4:
        if pkt.end - at < 20 or p[at] >> 4 != 4:
            return -1
        header = (p[at] & 0x0F) * 4
        if header < 20 or pkt.end - at < header or checksum.sum16(pkt, at, header) != 0xFFFF:
            return -1
        if p[at + 6] & 0x1F or p[at + 7]:
            return -1
    elif pkt.end - at < 40 or p[at] >> 4 != 6:
        return -1
    else:
        header = _transport_v6(pkt) >> 8
        if header < 0:
            return -1
    # RFC 792 promises 8 bytes of the transport header.
    return at + header if pkt.end - at - header >= 8 else -1


def inner_proto(pkt: Packet) -> cython.int:
    """The quoted packet's transport; ask :func:`inner_l4` first."""
    if pkt.af == 4:
        return pkt.p[pkt.l4 + 8 + 9]
    return _transport_v6(pkt) & 0xFF


def address(pkt: Packet, at: cython.int, af: cython.int, which: cython.int) -> tuple[int, int]:
    """Source (0) or destination (1) of the packet quoted at ``at``, as (hi, lo)."""
    if af == 4:
        return 0, _MAPPED | pkt.be32(at + 12 + 4 * which)
    return pkt.be64(at + 8 + 16 * which), pkt.be64(at + 16 + 16 * which)


def _transport_v6(pkt: Packet) -> cython.int:
    """Bytes of all headers before the quoted transport << 8 | its number; -1 when they are cut off,
    too many, or those of a later fragment.
    """
    p = pkt.p
    at: cython.int = pkt.l4 + 8
    header: cython.int = p[at + 6]
    length: cython.int = 40
    size: cython.int
    for _ in range(_MAX_EXTENSIONS + 1):
        if (
            header != _HOP_BY_HOP
            and header != _ROUTING
            and header != _FRAGMENT_HEADER
            and header != _AUTH
            and header != _DEST_OPTIONS
        ):
            return (length << 8) | header
        if at + length + 8 > pkt.end:
            return -1
        if header == _FRAGMENT_HEADER:
            if pkt.be16(at + length + 2) & 0xFFF8:
                return -1
            size = 8
        elif header == _AUTH:
            size = (p[at + length + 1] + 2) * 4
        else:
            size = (p[at + length + 1] + 1) * 8
        header = p[at + length]
        length += size
    return -1


def find(pkt: Packet, conns: ConnTable) -> cython.longlong:
    """The entry in whose direction the error travels; UNRELATED, or INVALID when it cannot be
    trusted.
    """
    if icmp.verify(pkt) != 0:
        return _INVALID
    l4: cython.int = inner_l4(pkt)
    if l4 < 0:
        return _INVALID
    proto: cython.int = inner_proto(pkt)
    if not known(pkt, l4, proto):
        return _UNRELATED
    at: cython.int = pkt.l4 + 8
    ports: cython.uint = reversed_ports(pkt, l4, proto)
    if pkt.af == 4:
        return conns.find(
            0, _MAPPED | pkt.be32(at + 16), 0, _MAPPED | pkt.be32(at + 12), ports, proto
        )
    return conns.find(
        pkt.be64(at + 24), pkt.be64(at + 32), pkt.be64(at + 8), pkt.be64(at + 16), ports, proto
    )


def known(pkt: Packet, l4: cython.int, proto: cython.int) -> cython.bint:
    """May what is quoted at ``l4`` be of a conn: TCP, UDP, SCTP, or an echo of its own family?"""
    if proto == _TCP or proto == _UDP or proto == _SCTP:
        return True
    kind: cython.int = pkt.p[l4]
    if pkt.af == 4:
        return proto == _ICMP and (kind == 0 or kind == 8)
    return proto == _ICMPV6 and (kind == 128 or kind == 129)


def reversed_ports(pkt: Packet, l4: cython.int, proto: cython.int) -> cython.uint:
    """dport << 16 | sport of the quoted packet; an echo's identifier as wire/icmp.py has it."""
    if proto == _TCP or proto == _UDP or proto == _SCTP:
        return (pkt.be16(l4 + 2) << 16) | pkt.be16(l4)
    if pkt.p[l4] == (8 if pkt.af == 4 else 128):
        return pkt.be16(l4 + 4)
    return pkt.be16(l4 + 4) << 16


def owner(
    pkt: Packet,
    sharding: Sharding,
    matches: MatchTable | None,
    addresses: Addresses,
    routes: RouteTable,
) -> cython.int:
    """The worker that the quoted packet's flow belongs to, or -1 when it quotes none of ours; call
    it when `find` knew no conn.
    """
    proto: cython.int = inner_proto(pkt)
    at: cython.int = pkt.l4 + 8
    l4: cython.int = inner_l4(pkt)
    if not known(pkt, l4, proto):
        return -1
    ports: cython.uint = reversed_ports(pkt, l4, proto)
    saddr_hi: cython.ulonglong = 0
    daddr_hi: cython.ulonglong = 0
    saddr: cython.ulonglong
    daddr: cython.ulonglong
    if pkt.af == 4:
        saddr = _MAPPED | pkt.be32(at + 16)
        daddr = _MAPPED | pkt.be32(at + 12)
    else:
        saddr_hi = pkt.be64(at + 24)
        saddr = pkt.be64(at + 32)
        daddr_hi = pkt.be64(at + 8)
        daddr = pkt.be64(at + 16)
    return owner_of(
        sharding,
        matches,
        addresses,
        routes,
        pkt.iif,
        pkt.af,
        proto,
        saddr_hi,
        saddr,
        ports >> 16,
        daddr_hi,
        daddr,
        ports & 0xFFFF,
    )


def translate(pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int) -> None:
    """Rewrite the error and what it quotes, for the side that it travels to."""
    if conns.h[row * 64 + _H_FLAGS] & _NO_REWRITE:
        return
    q = conns.q
    own: cython.longlong = row * 16 + direction * 4
    other: cython.longlong = row * 16 + (1 - direction) * 4
    at: cython.int = pkt.l4 + 8
    l4: cython.int = inner_l4(pkt)
    proto: cython.int = inner_proto(pkt)
    # Inside: from the reverse of our own key to the other key.
    old: cython.uint = _key_sum(conns, own, pkt.af)
    new: cython.uint = _key_sum(conns, other, pkt.af)
    addresses: cython.uint = checksum.delta(old, new)
    ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
    rewrite.put_addresses(pkt, at, q[other], q[other + 1], q[other + 2], q[other + 3], addresses)
    field: cython.int = l4 + (16 if proto == _TCP else 6)
    if proto == _SCTP:
        length: cython.int = at - l4 + (pkt.be16(at + 2) if pkt.af == 4 else 40 + pkt.be16(at + 4))
        sctp.put_ports(pkt, l4, ports, max(length, 0), pkt.end)
        field = pkt.end
    elif proto == _TCP or proto == _UDP:
        old = checksum.fold(pkt.be16(l4) + pkt.be16(l4 + 2))
        new = checksum.fold((ports >> 16) + (ports & 0xFFFF))
        pkt.put32(l4, ports)
    else:
        old = pkt.be16(l4 + 4)
        new = echo.identifier(ports)
        pkt.put16(l4 + 4, new)
        field = l4 + 2
        if pkt.af == 4:
            addresses = 0  # ICMP's checksum covers none
    if field + 2 <= pkt.end and not (proto == _UDP and pkt.be16(field) == 0):
        change: cython.uint = checksum.fold(addresses + checksum.delta(old, new))
        inner: cython.uint = checksum.update(pkt.be16(field), change)
        pkt.put16(field, 0xFFFF if inner == 0 and proto == _UDP else inner)
    if conns.h[row * 64 + _H_FLAGS] & _SEQUENCE:
        client_address.quoted(pkt, conns, row, direction, l4, proto)
    # Outside: to whoever sent the quoted packet. Where that side knows the other's own address (a
    # NAT dest the client's, an inside host of SNAT the remote's), the router that speaks keeps its
    # own as well; elsewhere the source becomes ours.
    saddr_hi: cython.ulonglong = q[other + 2]
    saddr: cython.ulonglong = q[other + 3]
    if saddr == q[own + 1] and saddr_hi == q[own]:
        saddr_hi = pkt.saddr_hi
        saddr = pkt.saddr
    old = checksum.fold(
        checksum.sum_address(pkt.saddr_hi, pkt.saddr, pkt.af)
        + checksum.sum_address(pkt.daddr_hi, pkt.daddr, pkt.af)
    )
    pkt.saddr_hi = saddr_hi
    pkt.saddr = saddr
    pkt.daddr_hi = q[other]
    pkt.daddr = q[other + 1]
    new = checksum.fold(
        checksum.sum_address(pkt.saddr_hi, pkt.saddr, pkt.af)
        + checksum.sum_address(pkt.daddr_hi, pkt.daddr, pkt.af)
    )
    rewrite.put_addresses(
        pkt, pkt.l3, pkt.saddr_hi, pkt.saddr, pkt.daddr_hi, pkt.daddr, checksum.delta(old, new)
    )
    # It was verified whole, so it may be computed whole; a partial one is complete from here on.
    pkt.csum_start = 0
    icmp.seal(pkt)


def _key_sum(conns: ConnTable, at: cython.longlong, af: cython.int) -> cython.uint:
    q = conns.q
    total: cython.uint = checksum.sum_address(q[at], q[at + 1], af)
    return checksum.fold(total + checksum.sum_address(q[at + 2], q[at + 3], af))
