"""One-packet scheduling: each datagram of a service is scheduled by itself (IPVS: ops).

For protocols of one question and one answer, such as DNS: no row is kept, so no table fills up, and
one client's datagrams spread over all dests. The row that a mode and the route lookup want is taken
for the datagram and given back at once, never linked, so nobody finds it.

The dest answers the client itself, or, with nat, through us: then the endpoint that it answers from
says what the client asked (ServiceTable.dest_of), as one dest has one service and one port there
(see conf/policy.py). IPVS lets such answers pass as they are, which no client takes.

So it is with ICMP errors. One about a datagram quotes the endpoint that it was sent to, and goes to
the client. One about an answer quotes the VIP alone, and is for the dest that gave it: where there
is one dest that is known, where there are several it is not (:func:`quoted`).

A datagram in fragments opens a conn: the later ones, which have no ports, are led by it.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason, Event
from tunlb.hook import Verdict
from tunlb.ipvs.conn import (
    B_AF,
    B_FWDMODE,
    B_PROTO,
    D_DEST,
    D_PORTS,
    INBOUND,
    OUTBOUND,
    ConnTable,
)
from tunlb.ipvs.dest import CONNS, Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.transmit import Transmit
from tunlb.packet import IPPROTO_UDP, Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs import related, rewrite
else:
    from tunlb.ipvs import related, rewrite

NOT_OURS = -1
NO_ROOM = -2

_NOT_OURS = cython.declare(cython.int, NOT_OURS)
_NO_ROOM = cython.declare(cython.int, NO_ROOM)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_DROP = cython.declare(cython.int, Verdict.DROP)
_INBOUND = cython.declare(cython.int, INBOUND)
_OUTBOUND = cython.declare(cython.int, OUTBOUND)
_B_AF = cython.declare(cython.longlong, B_AF)
_B_FWDMODE = cython.declare(cython.longlong, B_FWDMODE)
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_CONNS = cython.declare(cython.int, CONNS)
_CONN_TABLE_FULL = cython.declare(cython.int, DropReason.CONN_TABLE_FULL)
_OPS_PACKETS = cython.declare(cython.int, Event.OPS_PACKETS)
_OPS_ANSWERS = cython.declare(cython.int, Event.OPS_ANSWERS)


def forward(
    pkt: Packet,
    life: Life,
    transmit: Transmit,
    service: Service,
    dest: Dest,
    now: cython.longlong,
) -> cython.int:
    """The verdict on a datagram for ``dest``."""
    row: cython.longlong = life.take(now)
    if row < 0:
        return pkt.drop(_CONN_TABLE_FULL)
    mode: Mode = life.begin(row, pkt, dest)
    verdict: cython.int = _send(pkt, life, transmit, service, dest, mode, row, _INBOUND, now)
    if verdict != _DROP:
        dest.v[_CONNS] += 1
        transmit.counters.add(_OPS_PACKETS, 1)
    return verdict


def answer(
    pkt: Packet,
    life: Life,
    transmit: Transmit,
    service: Service,
    dest: Dest,
    now: cython.longlong,
) -> cython.int:
    """The verdict on what ``dest`` of a nat service sends to a client."""
    conns = life.conns
    row: cython.longlong = life.take(now)
    if row < 0:
        return pkt.drop(_CONN_TABLE_FULL)
    mode: Mode = life.begin(row, pkt, dest)
    vport: cython.uint = service.first_port if dest.dport != 0 else pkt.sport
    _ask(conns, row, pkt.daddr_hi, pkt.daddr, pkt.dport, service, vport)
    verdict: cython.int = _send(pkt, life, transmit, service, dest, mode, row, _OUTBOUND, now)
    if verdict != _DROP:
        transmit.counters.add(_OPS_ANSWERS, 1)
    return verdict


def quoted(pkt: Packet, life: Life, services: ServiceTable, now: cython.longlong) -> cython.int:
    """The entry that related.find would have found if the datagram that a verified ICMP error
    quotes had a conn; :func:`forget` takes its row back. NOT_OURS, or NO_ROOM: no conn is evicted
    for what anybody can send.
    """
    l4: cython.int = related.inner_l4(pkt)
    if related.inner_proto(pkt) != _UDP:
        return _NOT_OURS
    source = related.address(pkt, pkt.l4 + 8, pkt.af, 0)
    target = related.address(pkt, pkt.l4 + 8, pkt.af, 1)
    service: Service | None
    dest: Dest | None
    client = source
    cport: cython.uint = pkt.be16(l4)
    vport: cython.uint = pkt.be16(l4 + 2)
    direction: cython.int = _OUTBOUND
    service, dest = services.dest_of(_UDP, target[0], target[1], vport)
    if service is not None and dest is not None:
        if dest.dport != 0:
            vport = service.first_port
    else:
        direction = _INBOUND
        client = target
        cport = vport
        vport = pkt.be16(l4)
        service = services.lookup(_UDP, source[0], source[1], vport)
        if service is None or len(service.dests) != 1:
            return _NOT_OURS
        dest = service.dests[0]
    if not service.ops or service.vaddr is None:
        return _NOT_OURS
    conns = life.conns
    row: cython.longlong = conns.alloc()
    if row < 0:
        return _NO_ROOM
    _ask(conns, row, client[0], client[1], cport, service, vport)
    conns.b[row * 128 + _B_PROTO] = _UDP
    conns.b[row * 128 + _B_AF] = pkt.af
    conns.b[row * 128 + _B_FWDMODE] = dest.fwdmode
    conns.d[row * 32 + _D_DEST] = dest.id
    mode: Mode = life.modes[dest.fwdmode]
    mode.bind(conns, row, service, dest, now)
    return (row << 1) | direction


def _ask(
    conns: ConnTable,
    row: cython.longlong,
    caddr_hi: cython.ulonglong,
    caddr: cython.ulonglong,
    cport: cython.uint,
    service: Service,
    vport: cython.uint,
) -> None:
    """The INBOUND key: as the client's own datagram looked."""
    assert service.vaddr is not None
    conns.q[row * 16] = caddr_hi
    conns.q[row * 16 + 1] = caddr
    conns.q[row * 16 + 2] = service.vaddr[0]
    conns.q[row * 16 + 3] = service.vaddr[1]
    conns.d[row * 32 + _D_PORTS] = (cport << 16) | vport


def forget(life: Life, row: cython.longlong) -> None:
    """Take a row of :func:`quoted` back."""
    mode: Mode = life.modes[life.conns.b[row * 128 + _B_FWDMODE]]
    mode.unbind(life.conns, row)
    life.conns.free(row)


def _send(
    pkt: Packet,
    life: Life,
    transmit: Transmit,
    service: Service,
    dest: Dest,
    mode: Mode,
    row: cython.longlong,
    direction: cython.int,
    now: cython.longlong,
) -> cython.int:
    """By a row that is begun, and free afterwards."""
    conns = life.conns
    verdict: cython.int = _DROP
    reason: cython.int = mode.bind(conns, row, service, dest, now)
    if reason != 0:
        pkt.drop(reason)
    else:
        rewrite.prepare(conns, row, direction, pkt.af)
        if transmit.admit(pkt, row, direction, now) == 0:
            verdict = transmit.send(pkt, row, direction, dest, now)
        mode.unbind(conns, row)
    conns.free(row)
    return verdict
