"""One-packet scheduling: each datagram of a service is scheduled by itself (IPVS: ops).

For protocols of one question and one answer, such as DNS: no row is kept, so no table fills up, and
one client's datagrams spread over all dests. The row that a mode and the route lookup want is taken
for the datagram and given back at once, never linked, so nobody finds it.

The dest answers the client itself, or, with nat, through us: then the endpoint that it answers from
says what the client asked (ServiceTable.dest_of), as one dest has one service and one port there
(see conf/policy.py). IPVS lets such answers pass as they are, which no client takes.

A datagram in fragments opens a conn: the later ones, which have no ports, are led by it.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason, Event
from tunlb.hook import Verdict
from tunlb.ipvs.conn import D_PORTS, INBOUND, OUTBOUND
from tunlb.ipvs.dest import CONNS, Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service
from tunlb.ipvs.transmit import Transmit
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs import rewrite
else:
    from tunlb.ipvs import rewrite

_DROP = cython.declare(cython.int, Verdict.DROP)
_INBOUND = cython.declare(cython.int, INBOUND)
_OUTBOUND = cython.declare(cython.int, OUTBOUND)
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
    assert service.vaddr is not None
    conns = life.conns
    row: cython.longlong = life.take(now)
    if row < 0:
        return pkt.drop(_CONN_TABLE_FULL)
    mode: Mode = life.begin(row, pkt, dest)
    # As the client's own datagram looked.
    vport: cython.uint = service.first_port if dest.dport != 0 else pkt.sport
    conns.q[row * 16] = pkt.daddr_hi
    conns.q[row * 16 + 1] = pkt.daddr
    conns.q[row * 16 + 2] = service.vaddr[0]
    conns.q[row * 16 + 3] = service.vaddr[1]
    conns.d[row * 32 + _D_PORTS] = (pkt.dport << 16) | vport
    verdict: cython.int = _send(pkt, life, transmit, service, dest, mode, row, _OUTBOUND, now)
    if verdict != _DROP:
        transmit.counters.add(_OPS_ANSWERS, 1)
    return verdict


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
