"""The rewrite of a ping: addresses, and the identifier that stands for a port (RFC 792, RFC 4443).

ICMP's checksum covers no addresses, ICMPv6's does. Like any rewrite this one is incremental: a
checksum that was wrong stays wrong.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import D_PORTS, H_DELTA, ConnTable
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs import rewrite
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.ipvs import rewrite
    from tunlb.wire import checksum

_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_H_DELTA = cython.declare(cython.longlong, H_DELTA)


def apply(pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int) -> None:
    """As rewrite.apply, for an echo request or reply."""
    q = conns.q
    at: cython.longlong = row * 16 + (1 - direction) * 4
    ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
    addresses: cython.uint = conns.h[row * 64 + _H_DELTA + 2 * direction]
    change: cython.uint = conns.h[row * 64 + _H_DELTA + 2 * direction + 1]
    pkt.saddr_hi = q[at + 2]
    pkt.saddr = q[at + 3]
    pkt.daddr_hi = q[at]
    pkt.daddr = q[at + 1]
    pkt.sport = ports & 0xFFFF
    pkt.dport = ports >> 16
    rewrite.put_addresses(pkt, pkt.l3, pkt.saddr_hi, pkt.saddr, pkt.daddr_hi, pkt.daddr, addresses)
    pkt.put16(pkt.l4 + 4, identifier(ports))
    field: cython.uint = pkt.be16(pkt.l4 + 2)
    if pkt.partial():
        # It holds the plain sum of the pseudo-header; the kernel adds the message later.
        if pkt.af == 6:
            pkt.put16(pkt.l4 + 2, checksum.fold(field + addresses))
        return
    if pkt.af == 6:
        change = checksum.fold(change + addresses)
    pkt.put16(pkt.l4 + 2, checksum.update(field, change))


def identifier(ports: cython.uint) -> cython.uint:
    """The identifier of a key's ports, one of which is 0."""
    return (ports >> 16) | (ports & 0xFFFF)
