"""RSTs to both sides of a conn that we end, so that neither waits for the other (DPVS:
dp_vs_conn_expire; RFC 9293 section 3.5.2).

A receiver believes a RST whose sequence number is the next one that it expects (RFC 5961 section
3). That is where the last segment ended that we sent on to it, so the rows of some services
remember that of both directions (RESETS, :func:`follow`). Only a lost segment makes it wrong: the
receiver then answers with an ACK. For that the row stays in CLOSE for a while: the ACK goes on to
the other side, which has forgotten the conn and resets it, or :meth:`Resets.answer` does.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, Event
from tunlb.ipvs.conn import (
    ACTIVE,
    B_AF,
    B_STATE,
    D_DEST,
    D_LAST_SEEN,
    D_PORTS,
    D_TIMEOUT,
    H_FLAGS,
    INBOUND,
    ONEWAY,
    OUTBOUND,
    RESETS,
    SEQUENCE,
    X_END,
    ConnTable,
)
from tunlb.ipvs.dest import ACTCONNS, INACTCONNS, Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.proto.tcp import CLOSE
from tunlb.netif import NOWHERE
from tunlb.outbox import Sender
from tunlb.packet import Packet
from tunlb.wire.tcp import ACK, FIN, RST, SYN

if cython.compiled:
    from cython.cimports.tunlb.wire import tcp
else:
    from tunlb.wire import tcp

_INBOUND = cython.declare(cython.int, INBOUND)
_OUTBOUND = cython.declare(cython.int, OUTBOUND)
_ONEWAY = cython.declare(cython.int, ONEWAY)
_ACTIVE = cython.declare(cython.int, ACTIVE)
_RESETS = cython.declare(cython.int, RESETS)
_SEQUENCE = cython.declare(cython.int, SEQUENCE)
_SYN = cython.declare(cython.int, SYN)
_FIN = cython.declare(cython.int, FIN)
_RST = cython.declare(cython.int, RST)
_ACK = cython.declare(cython.int, ACK)
_CLOSE = cython.declare(cython.int, CLOSE)
_ACTCONNS = cython.declare(cython.int, ACTCONNS)
_INACTCONNS = cython.declare(cython.int, INACTCONNS)
_CONN_RESET = cython.declare(cython.int, Event.CONN_RESET)
_RESETS_SENT = cython.declare(cython.int, Event.RESETS_SENT)
_HALF = cython.declare(cython.uint, 1 << 31)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)

# Words of a row, see ipvs/conn.py.
_B_AF = cython.declare(cython.longlong, B_AF)
_B_STATE = cython.declare(cython.longlong, B_STATE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_LAST_SEEN = cython.declare(cython.longlong, D_LAST_SEEN)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_X_END = cython.declare(cython.longlong, X_END)


def remember(conns: ConnTable, row: cython.longlong) -> None:
    """From now on :func:`follow` the packets of this conn, which has none yet."""
    conns.x[row * 16 + _X_END] = 0
    conns.x[row * 16 + _X_END + 1] = 0
    conns.h[row * 64 + _H_FLAGS] |= _RESETS


def end_of(pkt: Packet) -> cython.uint:
    """The sequence number that follows a segment."""
    payload: cython.longlong = pkt.end - pkt.l4 - (pkt.p[pkt.l4 + 12] >> 4) * 4
    end: cython.ulonglong = pkt.be32(pkt.l4 + 4) + payload
    if pkt.tcp_flags & _SYN:
        end += 1
    if pkt.tcp_flags & _FIN:
        end += 1
    return end & _MASK32


def follow(pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int) -> None:
    """A segment goes on to the other side, which expects what follows; not what is sent again."""
    at: cython.longlong = row * 16 + _X_END + direction
    end: cython.uint = end_of(pkt)
    known: cython.uint = conns.x[at]
    if known == 0 or ((end - known) & _MASK32) < _HALF:
        conns.x[at] = end


class Resets:
    """What sends them. A RST is a packet of our own: LOCAL_OUT, route, outbox."""

    def __init__(self, counters: Counters, life: Life, sender: Sender) -> None:
        self.counters = counters
        self.life = life
        self.conns = life.conns
        self.sender = sender

    def both(self, row: cython.longlong, now: cython.longlong) -> cython.bint:
        """To both sides of a conn with RESETS, which is in CLOSE then; False, and nothing done,
        where a number is not known.
        """
        conns = self.conns
        inbound: cython.uint = conns.x[row * 16 + _X_END]
        outbound: cython.uint = conns.x[row * 16 + _X_END + 1]
        if inbound == 0 or outbound == 0:
            return False
        self._send(row, _OUTBOUND, outbound, inbound, _RST | _ACK, now)
        self._send(row, _INBOUND, inbound, outbound, _RST | _ACK, now)
        self.close(row, now)
        return True

    def answer(
        self, pkt: Packet, row: cython.longlong, direction: cython.int, now: cython.longlong
    ) -> None:
        """To the sender of a packet of the conn, and once to the other side; the conn is in CLOSE
        then.
        """
        conns = self.conns
        back: cython.int = 1 - direction
        flags: cython.int = conns.h[row * 64 + _H_FLAGS]
        onward: cython.uint = 0
        if not pkt.tcp_flags & _RST:
            if pkt.tcp_flags & _ACK:
                self._send(row, back, pkt.be32(pkt.l4 + 8), 0, _RST, now)
            else:
                self._send(row, back, 0, end_of(pkt), _RST | _ACK, now)
        if conns.b[row * 128 + _B_STATE] == _CLOSE:
            return
        if flags & _RESETS:
            onward = conns.x[row * 16 + _X_END + direction]
        elif not flags & _SEQUENCE:  # else the other side has other numbers
            onward = pkt.be32(pkt.l4 + 4)
        if onward != 0:
            self._send(row, direction, onward, 0, _RST, now)
        self.close(row, now)

    def close(self, row: cython.longlong, now: cython.longlong) -> None:
        """The conn is over for both; its row stays for as long as one may still ask."""
        conns = self.conns
        dest: Dest = self.life.dests[conns.d[row * 32 + _D_DEST]]
        flags: cython.int = conns.h[row * 64 + _H_FLAGS]
        if flags & _ACTIVE:
            dest.v[_ACTCONNS] -= 1
            dest.v[_INACTCONNS] += 1
        conns.h[row * 64 + _H_FLAGS] = flags & ~(_ACTIVE | _RESETS)
        conns.b[row * 128 + _B_STATE] = _CLOSE
        conns.d[row * 32 + _D_LAST_SEEN] = now & _MASK32
        conns.d[row * 32 + _D_TIMEOUT] = dest.timeouts.of(_CLOSE)
        self.life.timers.schedule(row, now, dest.timeouts.of(_CLOSE))
        self.counters.add(_CONN_RESET, 1)

    def _send(
        self,
        row: cython.longlong,
        direction: cython.int,
        seq: cython.uint,
        ack: cython.uint,
        flags: cython.int,
        now: cython.longlong,
    ) -> None:
        """As a packet of ``direction`` leaves: see rewrite.apply."""
        conns = self.conns
        if conns.h[row * 64 + _H_FLAGS] & _ONEWAY and direction == _INBOUND:
            return  # the dest has the VIP: no route leads there
        out: Packet = self.sender.fresh(NOWHERE)
        at: cython.longlong = row * 16 + (1 - direction) * 4
        ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
        dest: Dest = self.life.dests[conns.d[row * 32 + _D_DEST]]
        out.af = dest.af if direction == _INBOUND else conns.b[row * 128 + _B_AF]
        out.saddr_hi = conns.q[at + 2]
        out.saddr = conns.q[at + 3]
        out.daddr_hi = conns.q[at]
        out.daddr = conns.q[at + 1]
        out.sport = ports & 0xFFFF
        out.dport = ports >> 16
        tcp.build(out, seq, ack, flags, 0, 0, 0)
        tcp.seal(out)
        if self.sender.send(out, now):
            self.counters.add(_RESETS_SENT, 1)
