"""The SYN proxy: a service's handshakes are made with us, and a dest hears of a client when that
one has proved that it is there (DPVS: src/ipvs/ip_vs_synproxy.c; Linux: nf_synproxy_core.c).

1. :meth:`SynProxy.first`: a SYN is answered in place, with a cookie for our initial sequence number
   (ipvs/cookie.py). Nothing is kept.
2. :meth:`SynProxy.check` and :meth:`SynProxy.begin`: an ACK brings a good cookie back. Only now
   there is a row; the dest gets a SYN with the client's own sequence number and options. What the
   client sends meanwhile is held (ipvs/held.py).
3. The dest's SYN-ACK: it gets the client's ACK and all that was held. From here on the conn is like
   any other, but for what the two handshakes could not agree on: sequence numbers
   (ipvs/sequence.py), timestamps and window scales (:meth:`SynProxy.handle`).

What a SYN offered must survive in eight bits of the cookie: window scale, SACK, and the MSS as one
of MSS_TABLE. Timestamps need none: who agreed to them sends them. So a client without timestamps
keeps SACK and window scaling, which SYN cookies as Linux makes them cannot give.

The SYN-ACK has a window of ten segments, not of nothing: a client may send its request with its
ACK, which then waits here for the round trip to the dest, instead of at the client for one to us.

A dest that does not answer is asked SYN_RETRIES times more, RETRY_MS apart. Then, as when it
refuses, the client gets a RST: it believes the conn to be open. All that a handshake needs is in
the row's extra, so a successor goes on with it; only what was held is lost, and the client sends
that again.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Verdict
from tunlb.ipvs.conn import (
    B_STATE,
    D_LAST_SEEN,
    D_TIMEOUT,
    H_FLAGS,
    INBOUND,
    RESETS,
    SEQUENCE,
    SYNPROXY,
    X_END,
)
from tunlb.ipvs.cookie import PERIOD_MS, Cookies
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.held import Held, Segment
from tunlb.ipvs.life import Life
from tunlb.ipvs.protocol import Protocol
from tunlb.ipvs.proxying import Proxying
from tunlb.ipvs.synpolicy import SynPolicy
from tunlb.ipvs.synsegments import (
    ANEW,
    DEST_SHIFT,
    MSS_SHIFT,
    OFFERED_SHIFT,
    RETRIES_SHIFT,
    SACK,
    STAMPS,
    UNSCALED,
    WAITING,
    X_CLOCK,
    X_COOKIE,
    X_FACTS,
    X_ISN,
    X_TSVAL,
    X_WINDOW,
    SynSegments,
)
from tunlb.ipvs.transmit import Transmit
from tunlb.netif import NOWHERE, Netif
from tunlb.outbox import Sender
from tunlb.packet import Packet
from tunlb.wire.tcp_options import NO_WSCALE, TcpOptions

if cython.compiled:
    from cython.cimports.tunlb.ipvs import sequence
    from cython.cimports.tunlb.ipvs.synsegments import length_of
    from cython.cimports.tunlb.wire import checksum, tcp_options
else:
    from tunlb.ipvs import sequence
    from tunlb.ipvs.synsegments import length_of
    from tunlb.wire import checksum, tcp_options

RETRY_MS = 1000  #: between two SYNs to a dest
SYN_RETRIES = 3  #: after the first

_SYN_SENT = cython.declare(cython.int, 2)
_ESTABLISHED = cython.declare(cython.int, 1)
_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_INBOUND = cython.declare(cython.int, INBOUND)
_SYNPROXY = cython.declare(cython.int, SYNPROXY)
_RESETS = cython.declare(cython.int, RESETS)
_SEQUENCE = cython.declare(cython.int, SEQUENCE)
_NO_WSCALE = cython.declare(cython.int, NO_WSCALE)
_RETRY = cython.declare(cython.longlong, RETRY_MS)
_SYN_RETRIES = cython.declare(cython.int, SYN_RETRIES)
_CLOCK_MAX = cython.declare(cython.longlong, 2 * PERIOD_MS)
_MASK32 = cython.declare(cython.longlong, 0xFFFFFFFF)
_X_END = cython.declare(cython.longlong, X_END)
_FACTS = cython.declare(cython.longlong, X_FACTS)
_CLOCK = cython.declare(cython.longlong, X_CLOCK)
_ISN = cython.declare(cython.longlong, X_ISN)
_COOKIE = cython.declare(cython.longlong, X_COOKIE)
_TSVAL = cython.declare(cython.longlong, X_TSVAL)
_WINDOW = cython.declare(cython.longlong, X_WINDOW)
_SACK = cython.declare(cython.int, SACK)
_MSS_SHIFT = cython.declare(cython.int, MSS_SHIFT)
_OFFERED_SHIFT = cython.declare(cython.int, OFFERED_SHIFT)
_STAMPS = cython.declare(cython.int, STAMPS)
_WAITING = cython.declare(cython.int, WAITING)
_RETRIES_SHIFT = cython.declare(cython.int, RETRIES_SHIFT)
_DEST_SHIFT = cython.declare(cython.int, DEST_SHIFT)
_UNSCALED = cython.declare(cython.int, UNSCALED)
_ANEW = cython.declare(cython.int, ANEW)
_OUT_OF_PLACE = cython.declare(cython.int, DropReason.SYNPROXY_WAITING)
_HELD_FULL = cython.declare(cython.int, DropReason.SYNPROXY_HELD_FULL)
_FRAGMENT = cython.declare(cython.int, DropReason.FRAGMENT)
_SYNACKS = cython.declare(cython.int, Event.SYNPROXY_SYNACKS)
_BEGUN = cython.declare(cython.int, Event.SYNPROXY_CONNS)
_OPENED = cython.declare(cython.int, Event.SYNPROXY_OPENED)
_RETRIED = cython.declare(cython.int, Event.SYNPROXY_RETRIES)
_REFUSED = cython.declare(cython.int, Event.SYNPROXY_REFUSED)
_HELD = cython.declare(cython.int, Event.SYNPROXY_HELD)
_ABORTED = cython.declare(cython.int, Event.SYNPROXY_ABORTED)

# Words of a row, see ipvs/conn.py.
_B_STATE = cython.declare(cython.longlong, B_STATE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_D_LAST_SEEN = cython.declare(cython.longlong, D_LAST_SEEN)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)

_SYN = cython.declare(cython.int, 0x02)
_RST = cython.declare(cython.int, 0x04)
_ACK = cython.declare(cython.int, 0x10)


class SynProxy(Proxying):
    """The SYN proxy of one worker, for all services that have a SynPolicy. ``key``: see Cookies."""

    def __init__(
        self, counters: Counters, life: Life, transmit: Transmit, sender: Sender, key: bytes
    ) -> None:
        self.counters = counters
        self.life = life
        self.conns = life.conns
        self.transmit = transmit
        self.sender = sender
        self.segments = SynSegments(life.conns, sender)
        self.cookies = Cookies(key)
        self.options = TcpOptions()
        self.held = Held()

    # -- step 1

    def first(self, pkt: Packet, policy: SynPolicy, now: cython.longlong) -> cython.int:
        """Answer a SYN in place. Its data, if it has some (RFC 7413), is not acknowledged, so the
        client sends it again.
        """
        options: TcpOptions = self.options
        options.parse(pkt)
        data: cython.uint = self.segments.mss_index(options.mss) << _MSS_SHIFT
        data |= options.wscale if policy.wscale != _NO_WSCALE else _NO_WSCALE
        if options.sack and policy.sack:
            data |= _SACK
        cookie: cython.uint = self.cookies.make(pkt, pkt.be32(pkt.l4 + 4), data, policy.wscale, now)
        if self.segments.answer(pkt, policy, options, cookie, self.cookies.clock, now):
            self.counters.add(_SYNACKS, 1)
        return _STOLEN

    # -- step 2

    def check(self, pkt: Packet, policy: SynPolicy, now: cython.longlong) -> cython.int:
        """The data of the good cookie that a segment of no conn acknowledges; else -1."""
        if pkt.tcp_flags & (_SYN | _RST | _ACK) != _ACK:
            return -1
        seq: cython.longlong = pkt.be32(pkt.l4 + 4)
        ack: cython.longlong = pkt.be32(pkt.l4 + 8)
        data: cython.int = self.cookies.check(
            pkt, (seq - 1) & _MASK32, (ack - 1) & _MASK32, policy.wscale, now
        )
        if data < 0:
            return -1
        options: TcpOptions = self.options
        options.parse(pkt)
        if options.timestamps and policy.stamps:
            clock: cython.longlong = self.cookies.clock
            if (clock - options.tsecr) & _MASK32 > _CLOCK_MAX:
                return -1
        return data

    def begin(
        self,
        pkt: Packet,
        row: cython.longlong,
        policy: SynPolicy,
        data: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        """A new row for a client whose cookie :meth:`check` has just found good."""
        options: TcpOptions = self.options
        conns = self.conns
        x = conns.x
        at: cython.longlong = row * 16
        if not conns.h[row * 64 + _H_FLAGS] & _SEQUENCE:
            sequence.start(conns, row)
        facts: cython.uint = data | policy.wscale << _OFFERED_SHIFT | _WAITING
        if options.timestamps and policy.stamps:
            facts |= _STAMPS
        seq: cython.longlong = pkt.be32(pkt.l4 + 4)
        ack: cython.longlong = pkt.be32(pkt.l4 + 8)
        x[at + _FACTS] = facts
        x[at + _CLOCK] = options.tsecr
        x[at + _ISN] = (seq - 1) & _MASK32
        x[at + _COOKIE] = (ack - 1) & _MASK32
        x[at + _TSVAL] = options.tsval
        x[at + _WINDOW] = pkt.be16(pkt.l4 + 14)
        conns.h[row * 64 + _H_FLAGS] |= _SYNPROXY
        conns.d[row * 32 + _D_LAST_SEEN] = now & _MASK32
        self._wait(row, dest, now)
        self.counters.add(_BEGUN, 1)
        if length_of(pkt):
            self._hold(pkt, row)
        self.segments.syn(row, dest, pkt.iif, now)
        return _STOLEN

    def refuse(self, pkt: Packet, now: cython.longlong) -> None:
        """The client of a good cookie cannot have a conn: tell it, for it believes it has one."""
        self.segments.reset_sender(pkt, now)
        self.counters.add(_REFUSED, 1)

    def _hold(self, pkt: Packet, row: cython.longlong) -> None:
        if pkt.fragment != 0:  # as a conn whose numbers differ takes none
            self.counters.drop(_FRAGMENT)
        elif self.held.put(row, pkt):
            self.counters.add(_HELD, 1)
        else:
            self.counters.drop(_HELD_FULL)

    # -- between

    def handle(
        self,
        pkt: Packet,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        """See Proxying: what comes while the dest has not answered stays here; what comes later
        gets the timestamps and windows that the other side counts by.
        """
        facts: cython.int = self.conns.x[row * 16 + _FACTS]
        if not facts & _WAITING:
            self._adjust(pkt, row, direction, facts)
            return _ACCEPT
        if direction == _INBOUND:
            return self._early(pkt, row, dest, now)
        return self._answer(pkt, row, dest, now)

    def _early(
        self, pkt: Packet, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> cython.int:
        """The client's, before the dest has answered."""
        x = self.conns.x
        at: cython.longlong = row * 16
        beyond: cython.longlong = pkt.be32(pkt.l4 + 4)
        beyond = (beyond - x[at + _ISN] - 1) & _MASK32
        if pkt.tcp_flags & _RST:
            if beyond != 0:
                return self._stay(pkt, row, dest, now)
            self.segments.reset_dest(row, dest, pkt.iif, x[at + _ISN] + 1, now)
            self.life.end(row)
            self.counters.add(_ABORTED, 1)
            return _STOLEN
        acked: cython.longlong = pkt.be32(pkt.l4 + 8)
        if (
            pkt.tcp_flags & (_SYN | _ACK) != _ACK
            or acked != (x[at + _COOKIE] + 1) & _MASK32
            or beyond > 65535
        ):
            return self._stay(pkt, row, dest, now)
        if length_of(pkt):
            self._hold(pkt, row)
        return _STOLEN

    def _wait(self, row: cython.longlong, dest: Dest, now: cython.longlong) -> None:
        protocol: Protocol = self.life.protocol_of(row)
        self.transmit.set_state(protocol, row, _SYN_SENT, dest, now)
        # In the row as well, for a successor to look at it as soon.
        self.conns.d[row * 32 + _D_TIMEOUT] = _RETRY
        self.life.timers.schedule(row, now, _RETRY)

    def _stay(
        self, pkt: Packet, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> cython.int:
        """Not to be believed: the state that it moved is put back."""
        if self.conns.b[row * 128 + _B_STATE] != _SYN_SENT:
            self._wait(row, dest, now)
        return pkt.drop(_OUT_OF_PLACE)

    def _answer(
        self, pkt: Packet, row: cython.longlong, dest: Dest, now: cython.longlong
    ) -> cython.int:
        """The dest's, and the first of it."""
        flags: cython.int = pkt.tcp_flags
        acked: cython.longlong = pkt.be32(pkt.l4 + 8)
        isn: cython.longlong = self.conns.x[row * 16 + _ISN]
        ours: cython.bint = flags & _ACK != 0 and acked == (isn + 1) & _MASK32
        if flags & _RST:
            if not ours:
                return self._stay(pkt, row, dest, now)
            self.segments.reset_client(row, pkt.iif, now)
            self.counters.add(_REFUSED, 1)
            self.life.end(row)
            return _STOLEN
        if flags & _SYN and ours:
            self._open(pkt, row, dest, now)
            return _STOLEN
        if flags & _ACK and not ours:
            # About a conn of the dest's that we know nothing of: RFC 9293 section 3.10.7.3.
            self.segments.reset_dest(row, dest, pkt.iif, acked, now)
        return self._stay(pkt, row, dest, now)

    def fire(self, row: cython.longlong, dest: Dest, now: cython.longlong) -> cython.longlong:
        """See Proxying: the dest has not answered for RETRY_MS."""
        facts: cython.int = self.conns.x[row * 16 + _FACTS]
        if not facts & _WAITING:
            return -1
        gone: cython.bint = dest.drain_until >= 0 and now > dest.drain_until
        if gone or (facts >> _RETRIES_SHIFT) & 7 >= _SYN_RETRIES:
            self.segments.reset_client(row, NOWHERE, now)
            self.counters.add(_REFUSED, 1)
            self.life.end(row)
            return 0
        self.conns.x[row * 16 + _FACTS] = facts + (1 << _RETRIES_SHIFT)
        self.counters.add(_RETRIED, 1)
        self.segments.syn(row, dest, NOWHERE, now)
        return _RETRY

    def forget(self, row: cython.longlong) -> None:
        self.held.take(row)

    # -- step 3

    def _open(self, pkt: Packet, row: cython.longlong, dest: Dest, now: cython.longlong) -> None:
        """The dest's SYN-ACK: both handshakes are made, what differs between them is known."""
        options: TcpOptions = self.options
        options.parse(pkt)
        conns = self.conns
        x = conns.x
        at: cython.longlong = row * 16
        cookie: cython.longlong = x[at + _COOKIE]
        isn: cython.longlong = x[at + _ISN]
        seq: cython.longlong = pkt.be32(pkt.l4 + 4)
        clock: cython.longlong = x[at + _CLOCK]
        facts: cython.int = x[at + _FACTS] & ~_WAITING
        if facts & _STAMPS and not options.timestamps:
            facts &= ~_STAMPS
        if options.wscale == _NO_WSCALE:
            facts |= _UNSCALED
        else:
            facts |= options.wscale << _DEST_SHIFT
        sequence.shift(conns, row, (cookie - seq) & _MASK32)
        if conns.h[row * 64 + _H_FLAGS] & _RESETS:
            conns.x[at + _X_END + 1] = (cookie + 1) & _MASK32  # the client has our SYN-ACK
        sequence.ready(conns, row, (isn + 1) & _MASK32, (cookie + 1) & _MASK32)
        iif: Netif = pkt.iif
        again: Packet = self.segments.client_ack(row, iif)
        x[at + _CLOCK] = (options.tsval - clock) & _MASK32 if facts & _STAMPS else 0
        x[at + _FACTS] = facts  # last: a successor takes the dest for one that has answered
        self.transmit.set_state(self.life.protocol_of(row), row, _ESTABLISHED, dest, now)
        self.counters.add(_OPENED, 1)
        self._release(again, row, dest, now)
        segment: Segment
        for segment in self.held.take(row):
            again.reset(0, 0)
            again.iif = segment.iif
            again.oif = None
            segment.load(again)
            self._release(again, row, dest, now)

    def _release(self, pkt: Packet, row: cython.longlong, dest: Dest, now: cython.longlong) -> None:
        """What the client has sent goes to its dest as if it came now."""
        if self.transmit.send(pkt, row, _INBOUND, dest, now) == _ACCEPT:
            self.sender.send(pkt, now)
        else:
            self.counters.drop(pkt.reason)

    # -- ever after

    def _adjust(
        self, pkt: Packet, row: cython.longlong, direction: cython.int, facts: cython.int
    ) -> None:
        """Timestamps and window as the other side counts them."""
        if pkt.tcp_flags & _SYN and self._opens(pkt, row, direction, facts):
            return
        change: cython.uint = 0
        ahead: cython.longlong = self.conns.x[row * 16 + _CLOCK]
        if ahead != 0 and pkt.tcp_flags & _ACK:
            offset: cython.int = tcp_options.find_timestamps(pkt)
            if offset != 0:
                if direction == _INBOUND:
                    offset += 4
                else:
                    ahead = -ahead
                change = _exchange(pkt, offset, (pkt.be32(offset) + ahead) & _MASK32)
        if facts & 15 != _NO_WSCALE and not pkt.tcp_flags & _SYN:
            old: cython.longlong = pkt.be16(pkt.l4 + 14)
            window: cython.longlong = old
            if direction != _INBOUND:
                # Rounded down: the client never sends more than the dest takes.
                window = (old << ((facts >> _DEST_SHIFT) & 15)) >> ((facts >> _OFFERED_SHIFT) & 15)
            elif facts & _UNSCALED:
                window = old << (facts & 15)
            if window > 65535:
                window = 65535
            if window != old:
                pkt.put16(pkt.l4 + 14, window)
                change = checksum.fold(change + checksum.delta(old, window))
        if change != 0:
            checksum.fix_l4(pkt, pkt.l4 + 16, 0, change)

    def _opens(
        self, pkt: Packet, row: cython.longlong, direction: cython.int, facts: cython.int
    ) -> cython.bint:
        """A SYN on a conn that is not closed for us, but perhaps for both sides, goes to the dest.
        Does ``pkt`` answer such a one? Then that handshake is their own, and all that ours left to
        adjust is over.
        """
        x = self.conns.x
        at: cython.longlong = row * 16
        seq: cython.longlong = pkt.be32(pkt.l4 + 4)
        if direction == _INBOUND:
            if not pkt.tcp_flags & _ACK and seq != x[at + _ISN]:
                x[at + _ISN] = seq
                x[at + _FACTS] = facts | _ANEW
            return False
        isn: cython.longlong = x[at + _ISN]
        acked: cython.longlong = pkt.be32(pkt.l4 + 8)
        if not (facts & _ANEW and pkt.tcp_flags & _ACK and acked == (isn + 1) & _MASK32):
            return False
        x[at + _FACTS] = _NO_WSCALE
        x[at + _CLOCK] = 0
        sequence.shift(self.conns, row, 0)
        return True


def _exchange(pkt: Packet, offset: cython.int, value: cython.uint) -> cython.uint:
    """Write ``value`` at ``offset``, even or odd in the segment; by how much the checksum
    changes.
    """
    change: cython.uint = sequence.exchange32(pkt, offset, value)
    if (offset - pkt.l4) & 1:
        change = ((change & 0xFF) << 8) | change >> 8
    return change
