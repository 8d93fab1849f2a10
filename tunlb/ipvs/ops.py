"""One-packet scheduling: each datagram of a service is scheduled by itself (IPVS: ops).

For protocols of one question and one answer, such as DNS: no row is kept, so no table fills up, and
one client's datagrams spread over all dests. An answer must find its way without us (OPS_FWDMODES
in conf/policy.py). The row that a mode and the route lookup want is taken for the datagram and
given back at once, never linked, so nobody finds it.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason, Event
from tunlb.hook import Verdict
from tunlb.ipvs.conn import INBOUND
from tunlb.ipvs.dest import CONNS, Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service
from tunlb.ipvs.transmit import Transmit
from tunlb.packet import LATER_FRAGMENT, Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs import rewrite
else:
    from tunlb.ipvs import rewrite

_DROP = cython.declare(cython.int, Verdict.DROP)
_INBOUND = cython.declare(cython.int, INBOUND)
_CONNS = cython.declare(cython.int, CONNS)
_LATER_FRAGMENT = cython.declare(cython.int, LATER_FRAGMENT)
_CONN_TABLE_FULL = cython.declare(cython.int, DropReason.CONN_TABLE_FULL)
_OPS_PACKETS = cython.declare(cython.int, Event.OPS_PACKETS)


def forward(
    pkt: Packet,
    life: Life,
    transmit: Transmit,
    service: Service,
    dest: Dest,
    now: cython.longlong,
) -> cython.int:
    """The verdict on a datagram for ``dest``, or on a fragment of one."""
    conns = life.conns
    row: cython.longlong = life.take(now)
    if row < 0:
        return pkt.drop(_CONN_TABLE_FULL)
    verdict: cython.int = _DROP
    mode: Mode = life.begin(row, pkt, dest)
    reason: cython.int = mode.bind(conns, row, service, dest, now)
    if reason != 0:
        pkt.drop(reason)
    else:
        rewrite.prepare(conns, row, 0, pkt.af)
        if transmit.admit(pkt, row, _INBOUND, now) == 0:
            if pkt.fragment != _LATER_FRAGMENT:
                dest.v[_CONNS] += 1
                transmit.counters.add(_OPS_PACKETS, 1)
            verdict = transmit.send(pkt, row, _INBOUND, dest, now)
        mode.unbind(conns, row)
    conns.free(row)
    return verdict
