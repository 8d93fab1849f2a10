"""IPv4 to IPv6 and back: the network header of a packet (RFC 7915 sections 4.1 and 5.1).

The transport stays where it is in the buffer, and the new header ends where it begins: only ``l3``
moves, by the 20 bytes that the headers differ by. What has no place in the other family is lost:
IPv4 options, the flow label, hop-by-hop, destination and routing headers.

A fragment stays one: what IPv4 says of it in its header, IPv6 says in a fragment header. One that
IPv4 made may be too long for IPv6, where no router cuts it again: see :func:`piece`.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.packet import FIRST_FRAGMENT, IPPROTO_TCP, IPPROTO_UDP, LATER_FRAGMENT, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

#: An IPv4 packet of up to so many bytes may be fragmented on its way: its sender may hold it for
#: the 1280 bytes that every IPv6 link takes, and would not send less (RFC 7915 section 5.1).
DF_ABOVE = 1260

#: Bytes behind the fragment header of a packet that any IPv6 link takes (RFC 7915 section 4).
PIECE = 1232

_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_FRAGMENT = cython.declare(cython.int, 44)
_AUTH = cython.declare(cython.int, 51)
_DF = cython.declare(cython.uint, 0x4000)
_DF_ABOVE = cython.declare(cython.int, DF_ABOVE)
_PIECE = cython.declare(cython.int, PIECE)
_FIRST = cython.declare(cython.int, FIRST_FRAGMENT)
_LATER = cython.declare(cython.int, LATER_FRAGMENT)
_GSO_TCPV4 = cython.declare(cython.int, 1)
_GSO_TCPV6 = cython.declare(cython.int, 4)
_GSO_ECN = cython.declare(cython.int, 0x80)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_HEADER = cython.declare(cython.int, DropReason.NAT64_HEADER)
_NO_CHECKSUM = cython.declare(cython.int, DropReason.NAT64_NO_CHECKSUM)


def refused(pkt: Packet) -> cython.int:
    """Why a TCP, UDP or SCTP packet cannot be translated, as a DropReason; 0 if it can."""
    if pkt.af == 4:
        # The sum over all fragments is not to be had from the first one (RFC 7915 section 4.5).
        if pkt.fragment != 0 and _unchecked(pkt):
            return _NO_CHECKSUM
        return 0
    if pkt.l4 - pkt.l3 != 40 and fragment_header(pkt) < 0:
        return _HEADER
    if pkt.end - pkt.l4 > 65535 - 20:
        return _HEADER
    # Over IPv6 nobody takes this (RFC 8200 section 8.1); over IPv4 it would be taken unchecked.
    return _NO_CHECKSUM if _unchecked(pkt) else 0


def _unchecked(pkt: Packet) -> cython.bint:
    """Is it a datagram, or the first fragment of one, without a checksum?"""
    return (
        pkt.proto == _UDP
        and pkt.fragment != _LATER
        and not pkt.partial()
        and pkt.be16(pkt.l4 + 6) == 0
    )


def fragment_header(pkt: Packet) -> cython.int:
    """Where the fragment header of an IPv6 packet is, 0 when it has none; -1: among its extension
    headers is one that cannot be left out.

    That is also any behind the fragment header, which later fragments count as bytes of theirs (RFC
    7915 section 5.1.1).
    """
    p = pkt.p
    kind: cython.int = p[pkt.l3 + 6]
    offset: cython.int = pkt.l3 + 40
    while offset < pkt.l4:
        if kind == _AUTH:
            return -1
        if kind == _FRAGMENT:
            return offset if offset + 8 == pkt.l4 and p[offset] == pkt.proto else -1
        kind = p[offset]
        offset += (p[offset + 1] + 1) * 8
    return 0


def write_v4(
    pkt: Packet,
    at: cython.Py_ssize_t,
    tos: cython.int,
    total: cython.int,
    flags: cython.uint,
    ttl: cython.int,
    proto: cython.int,
    saddr: cython.ulonglong,
    daddr: cython.ulonglong,
) -> None:
    """An IPv4 header at ``at``; ``flags`` is its second word: identification, DF."""
    p = pkt.p
    p[at] = 0x45
    p[at + 1] = tos
    pkt.put16(at + 2, total)
    pkt.put32(at + 4, flags)
    p[at + 8] = ttl
    p[at + 9] = proto
    pkt.put16(at + 10, 0)
    pkt.put32(at + 12, cython.cast(cython.uint, saddr & _MASK32))
    pkt.put32(at + 16, cython.cast(cython.uint, daddr & _MASK32))
    pkt.put16(at + 10, 0xFFFF - checksum.sum16(pkt, at, 20))


def write_v6(
    pkt: Packet,
    at: cython.Py_ssize_t,
    tos: cython.uint,
    payload: cython.int,
    hop_limit: cython.int,
    proto: cython.int,
    saddr_hi: cython.ulonglong,
    saddr: cython.ulonglong,
    daddr_hi: cython.ulonglong,
    daddr: cython.ulonglong,
) -> None:
    """An IPv6 header at ``at``, flow label 0."""
    p = pkt.p
    pkt.put32(at, 0x60000000 | (tos << 20))
    pkt.put16(at + 4, payload)
    p[at + 6] = proto
    p[at + 7] = hop_limit
    pkt.put64(at + 8, saddr_hi)
    pkt.put64(at + 16, saddr)
    pkt.put64(at + 24, daddr_hi)
    pkt.put64(at + 32, daddr)


def traffic_class(pkt: Packet, at: cython.Py_ssize_t, af: cython.int) -> cython.int:
    """The TOS or traffic class of the header at ``at``."""
    return pkt.p[at + 1] if af == 4 else (pkt.be16(at) >> 4) & 0xFF


def network(pkt: Packet, ident: cython.uint, apart: cython.bint) -> None:
    """Give the packet the network header of the other family.

    Its ``saddr`` and ``daddr`` are those of the new header already, its ``ttl`` is the one to
    write. ``ident`` is the identification of an IPv4 packet that may be fragmented; ``apart``: give
    an IPv6 packet a fragment header, because :func:`piece` is to follow.
    """
    payload: cython.int = pkt.end - pkt.l4
    tos: cython.int = traffic_class(pkt, pkt.l3, pkt.af)
    kind: cython.int = pkt.gso_type & ~_GSO_ECN
    word: cython.uint
    if pkt.af == 6:
        at: cython.int = 0 if pkt.l4 - pkt.l3 == 40 else fragment_header(pkt)
        if at > 0:
            word = pkt.be16(at + 2)
            word = (pkt.be16(at + 6) << 16) | ((word & 1) << 13) | (word >> 3)
        pkt.l3 = pkt.l4 - 20
        pkt.af = 4
        if kind == _GSO_TCPV6:
            pkt.gso_type = _GSO_TCPV4 | (pkt.gso_type & _GSO_ECN)
        if at <= 0:
            word = _DF if pkt.wire_length() > _DF_ABOVE else ident << 16
        write_v4(pkt, pkt.l3, tos, 20 + payload, word, pkt.ttl, pkt.proto, pkt.saddr, pkt.daddr)
    else:
        word = pkt.be32(pkt.l3 + 4)
        pkt.l3 = pkt.l4 - 40
        pkt.af = 6
        if kind == _GSO_TCPV4:
            pkt.gso_type = _GSO_TCPV6 | (pkt.gso_type & _GSO_ECN)
        next_header: cython.int = pkt.proto
        if apart or word & 0x3FFF:
            pkt.l3 -= 8
            payload += 8
            next_header = _FRAGMENT
            pkt.put16(pkt.l4 - 8, pkt.proto << 8)
            pkt.put16(pkt.l4 - 6, ((word & 0x1FFF) << 3) | ((word >> 13) & 1))
            pkt.put32(pkt.l4 - 4, word >> 16)
        write_v6(
            pkt,
            pkt.l3,
            tos,
            payload,
            pkt.ttl,
            next_header,
            pkt.saddr_hi,
            pkt.saddr,
            pkt.daddr_hi,
            pkt.daddr,
        )
    # The frame has no L2 header until the neighbour's is put before it.
    pkt.start = pkt.l3


def piece(pkt: Packet, begin: cython.int, out: Packet) -> None:
    """Make ``out`` the fragment of an IPv6 packet with a fragment header that begins ``begin``
    bytes behind it, a multiple of PIECE.
    """
    begin += pkt.l4
    length: cython.int = min(pkt.end - begin, _PIECE)
    word: cython.uint = pkt.be16(pkt.l4 - 6) + begin - pkt.l4
    out.l4 = out.l3 + 48
    out.start = out.l3
    out.end = out.l4 + length
    out.mem[out.l3 : out.l4] = pkt.mem[pkt.l3 : pkt.l4]
    out.mem[out.l4 : out.end] = pkt.mem[begin : begin + length]
    out.put16(out.l3 + 4, 8 + length)
    out.put16(out.l4 - 6, word | 1 if begin + length < pkt.end else word)
    out.af = 6
    out.proto = pkt.proto
    out.ttl = pkt.ttl
    out.fragment = _LATER
    out.saddr_hi = pkt.saddr_hi
    out.saddr = pkt.saddr
    out.daddr_hi = pkt.daddr_hi
    out.daddr = pkt.daddr


def shorten(pkt: Packet) -> None:
    """Leave an IPv6 packet with a fragment header what :func:`piece` was not asked for."""
    if pkt.fragment == 0:
        pkt.fragment = _FIRST
    pkt.end = pkt.l4 + _PIECE
    pkt.put16(pkt.l3 + 4, 8 + _PIECE)
    pkt.p[pkt.l4 - 5] = pkt.p[pkt.l4 - 5] | 1


def transport(
    pkt: Packet, ports: cython.uint, addresses: cython.uint, change: cython.uint
) -> cython.bint:
    """Write ``ports`` (sport << 16 | dport) behind the new network header, and keep the TCP or UDP
    checksum right, or as wrong as it was; ``addresses`` and ``change`` are the deltas of
    pseudo-header and ports. True: the checksum had to be made, because UDP over IPv4 had none.
    """
    pkt.put32(pkt.l4, ports)
    if pkt.proto == _UDP and pkt.af == 6 and not pkt.partial() and pkt.be16(pkt.l4 + 6) == 0:
        _seal_udp(pkt)
        return True
    checksum.fix_l4(pkt, pkt.l4 + (16 if pkt.proto == _TCP else 6), addresses, change)
    return False


def _seal_udp(pkt: Packet) -> None:
    length: cython.int = pkt.be16(pkt.l4 + 4)
    total: cython.uint = checksum.sum16(pkt, pkt.l4, length)
    total = checksum.fold(total + checksum.pseudo_sum(pkt, _UDP, length))
    pkt.put16(pkt.l4 + 6, 0xFFFF if total == 0xFFFF else 0xFFFF - total)
