"""Datagrams that come in fragments: their ports, and which of their bytes were seen.

Bytes are seen once. What comes twice, or overlaps what was seen, is told apart from what is new,
because hosts do not agree on which of the two they believe (RFC 1858, RFC 3128, RFC 5722): a
datagram of which two fragments disagree is given up whole.

Datagrams lie in sets of WAYS, chosen by the conn table's keyed hash. A full set forgets the one
that was born first: whoever floods us with first fragments pushes out what is milliseconds old only
by sending as many in that time.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.ipvs.conn import ConnTable
from tunlb.ipvs.dest import Dest

DATAGRAMS = 4096  #: remembered at a time
WAYS = 8
LIFE_MS = 5000  #: from the first fragment to the last
SPANS = 16  #: pieces that may be seen beyond a gap
LENGTH_MAX = 65535  #: bytes of a datagram

_SETS = cython.declare(cython.uint, DATAGRAMS // WAYS)
_WAYS = cython.declare(cython.int, WAYS)
_LIFE = cython.declare(cython.longlong, LIFE_MS)
_SPANS = cython.declare(cython.int, SPANS)
_INVALID = cython.declare(cython.int, DropReason.FRAGMENT_INVALID)
_OVERLAP = cython.declare(cython.int, DropReason.FRAGMENT_OVERLAP)
_EVICTED = cython.declare(cython.int, Event.FRAGMENT_EVICTED)


class Datagram:
    """One datagram, from its first fragment on. ``ports`` is sport << 16 | dport; ``whole`` its
    length, -1 as long as the last fragment was not seen. ``dest`` is who took it, where no conn
    tells (one-packet scheduling).
    """

    def __init__(self) -> None:
        self.saddr_hi = 0
        self.saddr = 0
        self.daddr_hi = 0
        self.daddr = 0
        self.ident = 0
        self.key_proto = 0
        self.born = -1
        self.begin(0, 0, 0)

    def begin(self, proto: cython.int, ports: cython.uint, now: cython.longlong) -> None:
        """It has these ports, and nothing of it was seen."""
        self.proto = proto
        self.ports = ports
        self.born = now
        self.dest: Dest | None = None
        self.whole = -1
        self.furthest = 0
        self.done = 0
        self.contradicted = False
        self._beyond: list[int] = []  # begin and end of each span beyond a gap, in order

    def complete(self) -> cython.bint:
        return self.done == self.whole

    def see(self, start: cython.int, end: cython.int, more: cython.bint) -> cython.int:
        """Bytes ``start`` to ``end`` of it, and whether more follow: 0 when they are new and agree
        with what was seen, else a DropReason.
        """
        if self.contradicted:
            return _OVERLAP
        if (not more and (self.furthest > end or (self.whole >= 0 and self.whole != end))) or (
            self.whole >= 0 and end > self.whole
        ):
            self.contradicted = True
            return _OVERLAP
        if end <= self.done:
            return _OVERLAP  # a copy: what was seen stands
        reason: cython.int = self._place(start, end)
        if reason != 0:
            return reason
        if not more:
            self.whole = end
        if end > self.furthest:
            self.furthest = end
        return 0

    def _place(self, start: cython.int, end: cython.int) -> cython.int:
        spans = self._beyond
        at: cython.int = 0
        while at < len(spans) and spans[at + 1] <= start:
            at += 2
        # All spans before ``at`` end before it starts.
        if at < len(spans) and spans[at] < end:
            if not (spans[at] <= start and end <= spans[at + 1]):
                self.contradicted = True
            return _OVERLAP
        if start < self.done:
            self.contradicted = True
            return _OVERLAP
        if start == self.done:
            self.done = end
            while len(spans) != 0 and spans[0] == self.done:
                self.done = spans[1]
                del spans[:2]
            return 0
        if len(spans) >= 2 * _SPANS:
            return _INVALID
        spans[at:at] = [start, end]
        return 0


class Datagrams:
    """All datagrams of one worker; ``current`` is that of the latest first fragment."""

    def __init__(self, counters: Counters, conns: ConnTable) -> None:
        self.counters = counters
        self.conns = conns
        self.current: Datagram | None = None
        self._sets: list[list[Datagram] | None] = [None] * (DATAGRAMS // WAYS)

    def find(
        self,
        saddr_hi: cython.ulonglong,
        saddr: cython.ulonglong,
        daddr_hi: cython.ulonglong,
        daddr: cython.ulonglong,
        ident: cython.uint,
        key_proto: cython.int,
        now: cython.longlong,
    ) -> Datagram | None:
        """The datagram with this key; None when it is not known, or not any more."""
        found: Datagram
        members = self._sets[
            self.conns.hash_tuple(saddr_hi, saddr, daddr_hi, daddr, ident, key_proto) % _SETS
        ]
        if members is None:
            return None
        for found in members:
            if (
                found.ident == ident
                and found.saddr == saddr
                and found.daddr == daddr
                and found.saddr_hi == saddr_hi
                and found.daddr_hi == daddr_hi
                and found.key_proto == key_proto
                and now - found.born <= _LIFE
            ):
                return found
        return None

    def enter(
        self,
        saddr_hi: cython.ulonglong,
        saddr: cython.ulonglong,
        daddr_hi: cython.ulonglong,
        daddr: cython.ulonglong,
        ident: cython.uint,
        key_proto: cython.int,
        now: cython.longlong,
    ) -> Datagram:
        """Room for the datagram with this key, which is not known; :meth:`Datagram.begin` it."""
        index: cython.uint = (
            self.conns.hash_tuple(saddr_hi, saddr, daddr_hi, daddr, ident, key_proto) % _SETS
        )
        members = self._sets[index]
        if members is None:
            members = []
            self._sets[index] = members
        chosen: Datagram | None = None
        one: Datagram
        if len(members) < _WAYS:
            chosen = Datagram()
            members.append(chosen)
        else:
            for one in members:
                if one.complete() or now - one.born > _LIFE:
                    chosen = one
                    break
                if chosen is None or one.born < chosen.born:
                    chosen = one
            assert chosen is not None
            if not chosen.complete() and now - chosen.born <= _LIFE:
                self.counters.add(_EVICTED, 1)
        chosen.saddr_hi = saddr_hi
        chosen.saddr = saddr
        chosen.daddr_hi = daddr_hi
        chosen.daddr = daddr
        chosen.ident = ident
        chosen.key_proto = key_proto
        return chosen
