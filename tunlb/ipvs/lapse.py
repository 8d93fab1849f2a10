"""Lapsed conns: their dest was removed or made quiescent, and its drain time is over. It is over at
once where the service's ``expire_nodest`` or ``expire_quiescent`` is not "keep".

Nothing of this costs a packet anything while no dest drains: a lapsed conn is found by the test for
the drain time, at its next packet, and by a sweep through the table, for those that no packet may
come for. A sweep is work in pieces; whoever finds a dest gone begins one (tunlb/director.py).

=============  =======================  ==========================================================
policy         in the sweep             at the next packet
=============  =======================  ==========================================================
keep           nothing                  the conn ends, the packet is dropped
reset          TCP: RST to both sides   as below
               UDP: ends
reschedule     UDP: ends                a packet that may open a conn opens one, to another dest;
                                        any other one of TCP is answered by a RST, so that its
                                        sender connects anew
=============  =======================  ==========================================================

A RST to both sides needs their sequence numbers (ipvs/resets.py). A conn born before the service
was told to remember them is reset at its next packet, whose own numbers serve.
"""

from __future__ import annotations

from collections.abc import Iterator

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.ipvs.conn import (
    B_PROTO,
    B_STATE,
    D_DEST,
    H_FLAGS,
    INBOUND,
    RESETS,
    TEMPLATE,
    X_CONTROL,
)
from tunlb.ipvs.dest import KEEP, RESET, Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.protocol import ESTABLISHED, Protocol
from tunlb.ipvs.resets import Resets
from tunlb.packet import IPPROTO_TCP, Packet

SWEEP_ROWS = 512  #: looked at in one piece of work
SWEEP_ENDS = 32  #: ended in one piece of work: each may send two RSTs

_TCP = cython.declare(cython.int, IPPROTO_TCP)
_INBOUND = cython.declare(cython.int, INBOUND)
_RESETS = cython.declare(cython.int, RESETS)
_TEMPLATE = cython.declare(cython.int, TEMPLATE)
_KEEP = cython.declare(cython.int, KEEP)
_RESET = cython.declare(cython.int, RESET)
_ESTABLISHED = cython.declare(cython.int, ESTABLISHED)
_DEST_GONE = cython.declare(cython.int, DropReason.DEST_GONE)
_CONN_LAPSED = cython.declare(cython.int, DropReason.CONN_LAPSED)
_CONN_ENDED = cython.declare(cython.int, Event.CONN_ENDED)
_TEMPLATE_EXPIRED = cython.declare(cython.int, Event.TEMPLATE_EXPIRED)

# Words of a row, see ipvs/conn.py.
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_B_STATE = cython.declare(cython.longlong, B_STATE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_X_CONTROL = cython.declare(cython.longlong, X_CONTROL)


class Lapse:
    """What becomes of lapsed conns."""

    def __init__(self, counters: Counters, life: Life, resets: Resets) -> None:
        self.counters = counters
        self.life = life
        self.conns = life.conns
        self.resets = resets

    def meet(
        self,
        pkt: Packet,
        protocol: Protocol,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.bint:
        """A packet of a lapsed conn: True when it is to be scheduled like one of no conn, else it
        is dropped, with the reason on it.
        """
        if dest.policy == _KEEP:
            if dest.reset_on_expire and pkt.proto == _TCP:
                self.resets.answer(pkt, row, direction, now)
            else:
                self.life.end(row)
            pkt.drop(_DEST_GONE)
            return False
        if direction == _INBOUND and protocol.opens(pkt):
            self.life.end(row)
            self.counters.add(_CONN_ENDED, 1)
            return True
        if pkt.proto == _TCP:
            self.resets.answer(pkt, row, direction, now)
        else:
            self.life.end(row)
            self.counters.add(_CONN_ENDED, 1)
        pkt.drop(_CONN_LAPSED)
        return False

    def sweep(self, now: int) -> Iterator[None]:
        """End what lapsed, in pieces; ``now`` is when it began."""
        row = 0
        while row < self.conns.fresh:
            row = self._piece(row, now)
            yield

    def withdraw(self, laddrs: set[tuple[int, int]]) -> Iterator[None]:
        """End the conns that speak from ``laddrs``, which are ours no more, in pieces: nobody would
        bring us the answers.
        """
        row = 0
        while laddrs and row < self.conns.fresh:
            row = self._withdraw_piece(row, laddrs)
            yield

    def _withdraw_piece(self, row: cython.int, laddrs: set[tuple[int, int]]) -> cython.int:
        conns = self.conns
        last: cython.int = min(row + SWEEP_ROWS, conns.fresh)
        at: cython.longlong
        while row < last:
            at = row * 16
            # With nat and dr it is the client's own address, which can be none of ours.
            if (
                conns.valid(row)
                and not conns.h[row * 64 + _H_FLAGS] & _TEMPLATE
                and (conns.q[at + 6], conns.q[at + 7]) in laddrs
            ):
                self.life.end(row)
                self.counters.add(_CONN_ENDED, 1)
            row += 1
        return row

    def _piece(self, row: cython.int, now: cython.longlong) -> cython.int:
        """From ``row`` on; where the next piece begins."""
        last: cython.int = min(row + SWEEP_ROWS, self.conns.fresh)
        ended: cython.int = 0
        while row < last and ended < SWEEP_ENDS:
            if self.conns.valid(row) and self._end(row, now):
                ended += 1
            row += 1
        return row

    def _end(self, row: cython.longlong, now: cython.longlong) -> cython.bint:
        """End the row if it lapsed and need not wait for a packet; whether that was so."""
        conns = self.conns
        flags: cython.int = conns.h[row * 64 + _H_FLAGS]
        dest: Dest = self.life.dests[conns.d[row * 32 + _D_DEST]]
        if flags & _TEMPLATE:
            if dest.available or conns.x[row * 16 + _X_CONTROL] != 0:
                return False
            self.life.end(row)
            self.counters.add(_TEMPLATE_EXPIRED, 1)
            return True
        if dest.policy == _KEEP or dest.drain_until < 0 or now <= dest.drain_until:
            return False
        if conns.b[row * 128 + _B_PROTO] != _TCP:
            self.life.end(row)
            self.counters.add(_CONN_ENDED, 1)
            return True
        if dest.policy != _RESET or not flags & _RESETS:
            return False
        protocol: Protocol = self.life.protocol_of(row)
        if protocol.kind(conns.b[row * 128 + _B_STATE]) != _ESTABLISHED:
            return False
        return self.resets.both(row, now)
