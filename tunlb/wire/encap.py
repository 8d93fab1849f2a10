"""Outer headers: IP in IP (RFC 2003, RFC 2473, RFC 4213), GRE (RFC 2784) and GUE
(draft-ietf-intarea-gue, variant 0, as Linux' fou and IPVS speak it), put before a packet and found
again in an ICMP error's quote.
"""

from __future__ import annotations

import cython

from tunlb.packet import IPPROTO_UDP, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

IPIP = 0
GRE = 1
GUE = 2
KINDS = ("ipip", "gre", "gue")

IPPROTO_IPIP = 4
IPPROTO_IPV6 = 41
IPPROTO_GRE = 47

GUE_HEADERS = 12  #: bytes of UDP and GUE
SPORT_MIN = 49152  #: GUE's source ports are the flow's, for routers that share by ports

_GRE = cython.declare(cython.int, GRE)
_GUE = cython.declare(cython.int, GUE)
_P_IPIP = cython.declare(cython.int, IPPROTO_IPIP)
_P_IPV6 = cython.declare(cython.int, IPPROTO_IPV6)
_P_GRE = cython.declare(cython.int, IPPROTO_GRE)
_P_UDP = cython.declare(cython.int, IPPROTO_UDP)
_GUE_HEADERS = cython.declare(cython.int, GUE_HEADERS)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)


def overhead(kind: int, af: int, csum: bool) -> int:
    """Bytes that the outer headers take; ``af`` is the outer family."""
    size = 20 if af == 4 else 40
    if kind == GRE:
        return size + (8 if csum else 4)
    return size + (GUE_HEADERS if kind == GUE else 0)


def push(
    pkt: Packet,
    kind: cython.int,
    af: cython.int,
    csum: cython.bint,
    port: cython.int,
    flow: cython.uint,
    ident: cython.int,
) -> None:
    """Put outer headers before the packet, which is of their payload from here on.

    Its addresses must be the outer ones already, ``pkt.af`` still the inner family. ``flow`` is the
    hash of the flow: GUE's source port and IPv6's flow label. ``ident`` is IPv4's id, -1 for DF and
    0 (RFC 6864). TOS is copied with its ECN bits (RFC 6040, normal mode), and so is the TTL: a
    packet that loops by tunnels still dies.

    An inner checksum that is partial stays so: whoever finishes it goes by ``csum_start``, as for a
    guest's tunnel over virtio-net. What covers it is computed from what it will be then (Linux:
    Documentation/networking/checksum-offloads.rst, LCO).
    """
    p = pkt.p
    at: cython.int = pkt.l3
    inner: cython.int = _P_IPIP
    tos: cython.uint = p[at + 1]
    if pkt.af != 4:
        inner = _P_IPV6
        tos = ((p[at] & 0x0F) << 4) | (p[at + 1] >> 4)
    proto: cython.int = inner
    if kind == _GRE:
        proto = _P_GRE
        at -= 8 if csum else 4
        pkt.put16(at, 0x8000 if csum else 0)
        pkt.put16(at + 2, 0x0800 if inner == _P_IPIP else 0x86DD)
        if csum:
            pkt.put32(at + 4, 0)
            pkt.put16(at + 4, 0xFFFF - finished_sum(pkt, at))
    elif kind == _GUE:
        proto = _P_UDP
        at -= _GUE_HEADERS
        pkt.put16(at, 0xC000 | (flow & 0x3FFF))
        pkt.put16(at + 2, port)
        pkt.put16(at + 4, pkt.end - at)
        pkt.put16(at + 6, 0)
        pkt.put32(at + 8, inner << 16)
        pkt.sport = 0xC000 | (flow & 0x3FFF)
        pkt.dport = port
    pkt.l4 = at
    if af == 4:
        _header_v4(pkt, proto, tos, ident)
    else:
        _header_v6(pkt, proto, tos, flow >> 12)
    pkt.af = af
    pkt.proto = proto
    pkt.fragment = 0
    if kind == _GUE and csum:
        _seal_udp(pkt)


def _header_v4(pkt: Packet, proto: cython.int, tos: cython.uint, ident: cython.int) -> None:
    at: cython.int = pkt.l4 - 20
    pkt.l3 = at
    pkt.put32(at, 0x45000000 | (tos << 16) | (pkt.end - at))
    pkt.put32(at + 4, 0x4000 if ident < 0 else (cython.cast(cython.uint, ident) << 16))
    pkt.put32(at + 8, (cython.cast(cython.uint, pkt.ttl) << 24) | (proto << 16))
    pkt.put32(at + 12, cython.cast(cython.uint, pkt.saddr & _MASK32))
    pkt.put32(at + 16, cython.cast(cython.uint, pkt.daddr & _MASK32))
    pkt.put16(at + 10, 0xFFFF - checksum.sum16(pkt, at, 20))


def _header_v6(pkt: Packet, proto: cython.int, tos: cython.uint, label: cython.uint) -> None:
    at: cython.int = pkt.l4 - 40
    pkt.l3 = at
    pkt.put32(at, 0x60000000 | (tos << 20) | label)
    pkt.put32(at + 4, ((pkt.end - pkt.l4) << 16) | (proto << 8) | pkt.ttl)
    pkt.put64(at + 8, pkt.saddr_hi)
    pkt.put64(at + 16, pkt.saddr)
    pkt.put64(at + 24, pkt.daddr_hi)
    pkt.put64(at + 32, pkt.daddr)


def _seal_udp(pkt: Packet) -> None:
    """GUE's UDP checksum: left to the kernel, unless it has an inner one to finish."""
    at: cython.int = pkt.l4
    pseudo: cython.uint = checksum.pseudo_sum(pkt, _P_UDP, pkt.end - at)
    if pkt.csum_start == 0:
        pkt.put16(at + 6, pseudo)
        pkt.csum_start = at
        pkt.csum_offset = 6
        return
    total: cython.uint = checksum.fold(pseudo + finished_sum(pkt, at))
    pkt.put16(at + 6, 0xFFFF if total == 0xFFFF else 0xFFFF - total)


def finished_sum(pkt: Packet, at: cython.int) -> cython.uint:
    """The sum from ``at`` to the packet's end, as it will be with its partial checksum finished.

    From ``csum_start`` on, all words then sum to the complement of what the field holds now.
    """
    if pkt.csum_start == 0:
        return checksum.sum16(pkt, at, pkt.end - at)
    total: cython.uint = checksum.sum16(pkt, at, pkt.csum_start - at)
    return checksum.fold(total + 0xFFFF - pkt.be16(pkt.csum_start + pkt.csum_offset))


def peel(pkt: Packet, at: cython.int, proto: cython.int) -> cython.int:
    """Where the inner packet begins, behind an outer IP header that ends at ``at`` and names
    ``proto``; -1 when that is none of our encapsulations, or ends before.
    """
    start: cython.int = at
    if proto == _P_GRE:
        if pkt.end - at < 4 or pkt.be16(at) & 0x7FFF:
            return -1
        start += 8 if pkt.be16(at) else 4
    elif proto == _P_UDP:
        if pkt.end - at < _GUE_HEADERS or pkt.be16(at) < 49152 or pkt.p[at + 8]:
            return -1
        start += _GUE_HEADERS
    elif proto != _P_IPIP and proto != _P_IPV6:
        return -1
    return start
