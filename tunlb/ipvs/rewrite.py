"""Rewrites: how a packet of a conn becomes the other key reversed, with its checksums kept.

What differs between forwarding modes, families and directions is data in the conn's row, so there
is one :meth:`apply` for all of them.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import D_PORTS, H_DELTA, ConnTable
from tunlb.packet import IPPROTO_TCP, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum, sctp
else:
    from tunlb.wire import checksum, sctp

_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_H_DELTA = cython.declare(cython.longlong, H_DELTA)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


def put_addresses(
    pkt: Packet,
    l3: cython.Py_ssize_t,
    saddr_hi: cython.ulonglong,
    saddr: cython.ulonglong,
    daddr_hi: cython.ulonglong,
    daddr: cython.ulonglong,
    change: cython.uint,
) -> None:
    """Write both addresses into the header at ``l3``; ``change`` is their checksum delta (IPv4
    header).
    """
    if pkt.af == 4:
        pkt.put64(l3 + 12, ((saddr << 32) | (daddr & _MASK32)) & _MASK64)
        pkt.put16(l3 + 10, checksum.update(pkt.be16(l3 + 10), change))
    else:
        pkt.put64(l3 + 8, saddr_hi)
        pkt.put64(l3 + 16, saddr)
        pkt.put64(l3 + 24, daddr_hi)
        pkt.put64(l3 + 32, daddr)


def apply(pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int) -> None:
    """Rewrite a packet of ``direction`` (it matches that key of the row) into what the other side
    expects.
    """
    q = conns.q
    at: cython.longlong = row * 16 + (1 - direction) * 4
    ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
    addresses: cython.uint = conns.h[row * 64 + _H_DELTA + 2 * direction]
    pkt.saddr_hi = q[at + 2]
    pkt.saddr = q[at + 3]
    pkt.daddr_hi = q[at]
    pkt.daddr = q[at + 1]
    pkt.sport = ports & 0xFFFF
    pkt.dport = ports >> 16
    put_addresses(pkt, pkt.l3, pkt.saddr_hi, pkt.saddr, pkt.daddr_hi, pkt.daddr, addresses)
    pkt.put32(pkt.l4, (ports << 16) | (ports >> 16))
    checksum.fix_l4(
        pkt,
        pkt.l4 + (16 if pkt.proto == _TCP else 6),
        addresses,
        conns.h[row * 64 + _H_DELTA + 2 * direction + 1],
    )


def apply_crc32c(
    pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int
) -> None:
    """:func:`apply` for SCTP: its checksum covers the ports and not the addresses."""
    q = conns.q
    at: cython.longlong = row * 16 + (1 - direction) * 4
    ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
    addresses: cython.uint = conns.h[row * 64 + _H_DELTA + 2 * direction]
    pkt.saddr_hi = q[at + 2]
    pkt.saddr = q[at + 3]
    pkt.daddr_hi = q[at]
    pkt.daddr = q[at + 1]
    pkt.sport = ports & 0xFFFF
    pkt.dport = ports >> 16
    put_addresses(pkt, pkt.l3, pkt.saddr_hi, pkt.saddr, pkt.daddr_hi, pkt.daddr, addresses)
    ports = (pkt.sport << 16) | pkt.dport
    sctp.put_ports(pkt, pkt.l4, ports, pkt.end - pkt.l4, pkt.end)


def keeps_ports(conns: ConnTable, row: cython.longlong) -> cython.bint:
    """Do the conn's packets leave with the ports with which they came?"""
    ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1]
    return conns.d[row * 32 + _D_PORTS] == (ports >> 16 | (ports & 0xFFFF) << 16)


def prepare(conns: ConnTable, row: cython.longlong, direction: cython.int, af: cython.int) -> None:
    """Compute the row's checksum deltas for ``direction``, when the conn is born: both keys must be
    in place.
    """
    q = conns.q
    at: cython.longlong = row * 16 + direction * 4
    other: cython.longlong = row * 16 + (1 - direction) * 4
    old: cython.uint = checksum.sum_address(q[at], q[at + 1], af)
    old = checksum.fold(old + checksum.sum_address(q[at + 2], q[at + 3], af))
    new: cython.uint = checksum.sum_address(q[other], q[other + 1], af)
    new = checksum.fold(new + checksum.sum_address(q[other + 2], q[other + 3], af))
    conns.h[row * 64 + _H_DELTA + 2 * direction] = checksum.delta(old, new)
    ports: cython.uint = conns.d[row * 32 + _D_PORTS + direction]
    old = checksum.fold((ports >> 16) + (ports & 0xFFFF))
    ports = conns.d[row * 32 + _D_PORTS + 1 - direction]
    new = checksum.fold((ports >> 16) + (ports & 0xFFFF))
    conns.h[row * 64 + _H_DELTA + 2 * direction + 1] = checksum.delta(old, new)
