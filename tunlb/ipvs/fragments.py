"""Fragments of datagrams to and from services: virtual reassembly.

Heads up: read RFC 791 section 3.2, RFC 8200 section 4.5 and RFC 1858 beside this file. Only the
first fragment has ports. It is remembered (see datagrams.py) and goes the way of any packet, but
for a checksum that covers bytes which it does not have: an incremental update is right all the
same. (Not so SCTP's, whose change depends on the length of the whole: its fragments pass where no
port changes.) A later fragment takes the ports of its first one, finds the same conn, and gets its
addresses rewritten, nothing behind the IP header. No datagram is ever put together.

A later fragment that comes before the first is held for at most HOLD_MS, and goes on behind the
first. One source has few of the places; who floods us from many only pushes out other late ones.
Fragments for our own addresses that no service takes are not reassembled either: local input drops
them.

Of several workers one reads all fragments of a datagram, which need not be the one that has the
conn. It learns the ports, and hands each fragment over; its owner learns them again.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Verdict
from tunlb.ipvs.acl import AclFilter
from tunlb.ipvs.conn import (
    B_FWDMODE,
    D_DEST,
    D_PORTS,
    H_DELTA,
    H_FLAGS,
    H_MTU,
    NO_REWRITE,
    XMIT,
)
from tunlb.ipvs.core import Ipvs
from tunlb.ipvs.datagrams import LENGTH_MAX, Datagram, Datagrams
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.service import Service
from tunlb.ipvs.transmit import Transmit
from tunlb.netif import Netif
from tunlb.outbox import Outbox, copy_of
from tunlb.packet import (
    FIRST_FRAGMENT,
    HOST,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    Packet,
)
from tunlb.wire.ipv6 import AUTH, DEST_OPTIONS, FRAGMENT, MAX_EXTENSIONS
from tunlb.wire.sctp import CHUNK_HEADER_LEN, HEADER_LEN

if cython.compiled:
    from cython.cimports.tunlb.ipvs import rewrite
    from cython.cimports.tunlb.wire import vnet
else:
    from tunlb.ipvs import rewrite
    from tunlb.wire import vnet

HELD_MAX = 1024  #: fragments that wait for their first ones
HELD_BYTES = 2097152
HELD_SOURCE = 128  #: of one source
HELD_EACH = 64  #: of one datagram: 64 KB are 54 fragments where the MTU is IPv6' least
HOLD_MS = 1000

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_DROP = cython.declare(cython.int, Verdict.DROP)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_STOP = cython.declare(cython.int, Verdict.STOP)
_HOST = cython.declare(cython.int, HOST)
_FIRST_FRAGMENT = cython.declare(cython.int, FIRST_FRAGMENT)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_SCTP = cython.declare(cython.int, IPPROTO_SCTP)
_SCTP_LEAST = cython.declare(cython.int, HEADER_LEN + CHUNK_HEADER_LEN)
_CHUNK_LEAST = cython.declare(cython.uint, CHUNK_HEADER_LEN)
_NO_REWRITE = cython.declare(cython.int, NO_REWRITE)
_XMIT = cython.declare(cython.int, XMIT)
_FRAGMENT_HEADER = cython.declare(cython.int, FRAGMENT)
_DEST_OPTIONS = cython.declare(cython.int, DEST_OPTIONS)
_AUTH = cython.declare(cython.int, AUTH)
_MAX_EXTENSIONS = cython.declare(cython.int, MAX_EXTENSIONS)
_LENGTH_MAX = cython.declare(cython.int, LENGTH_MAX)
_VNET_HEADER = cython.declare(cython.int, DropReason.VNET_HEADER)
_FRAGMENT = cython.declare(cython.int, DropReason.FRAGMENT)
_DEST_GONE = cython.declare(cython.int, DropReason.DEST_GONE)
_INVALID = cython.declare(cython.int, DropReason.FRAGMENT_INVALID)
_ORPHAN = cython.declare(cython.int, DropReason.FRAGMENT_ORPHAN)
_TIMEOUT = cython.declare(cython.int, DropReason.FRAGMENT_TIMEOUT)
_QUEUE_FULL = cython.declare(cython.int, DropReason.FRAGMENT_QUEUE_FULL)
_SEEN_FIRST = cython.declare(cython.int, Event.FRAGMENT_FIRST)
_SEEN_LATER = cython.declare(cython.int, Event.FRAGMENT_LATER)
_SEEN_HELD = cython.declare(cython.int, Event.FRAGMENT_HELD)

# Words of a row, see ipvs/conn.py.
_B_FWDMODE = cython.declare(cython.longlong, B_FWDMODE)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_H_DELTA = cython.declare(cython.longlong, H_DELTA)
_H_MTU = cython.declare(cython.longlong, H_MTU)

Key = tuple[int, int, int, int, int, int]
Source = tuple[int, int]


class Waiting:
    """The later fragments of one datagram whose first has not come, since when (ms), and whose."""

    def __init__(self, since: int, source: Source) -> None:
        self.since = since
        self.source = source
        self.frames: list[tuple[Netif, bytes, int, bool]] = []
        self.bytes = 0


class Fragments:
    """What Defence does with fragments.

    ``tracking`` False drops them all. ``transit``: conns may be of packets between addresses that
    are not ours (what NAT dests answer), so such fragments are looked at, too. ``acl`` are the
    lists that a later fragment is held against, None when there are none.
    """

    def __init__(self, counters: Counters, ipvs: Ipvs, outbox: Outbox) -> None:
        self.counters = counters
        self.ipvs = ipvs
        self.outbox = outbox
        self.datagrams = Datagrams(counters, ipvs.conns)
        self.tracking = True
        self.transit = False
        self.acl: AclFilter | None = None
        self.held = 0
        self.held_bytes = 0
        self._waiting: dict[Key, Waiting] = {}  # oldest first
        self._sources: dict[Source, int] = {}  # how many of each wait
        # Of the fragment in hand:
        self._ident = 0
        self._key_proto = 0
        self._start = 0
        self._end = 0
        self._more = False

    def receive(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """The verdict on a fragment at PRE_ROUTING: ACCEPT for a first one that now has ports, STOP
        when there is nothing left to decide.
        """
        if not self.tracking:
            return pkt.drop(_FRAGMENT)
        if pkt.l2_type != _HOST:
            return _ACCEPT
        if pkt.csum_start != 0:
            return pkt.drop(_VNET_HEADER)  # no checksum of a fragment can be finished
        if not self._measure(pkt):
            return pkt.drop(_INVALID)
        if not self.transit and not self.ipvs.addresses.is_local(pkt.daddr_hi, pkt.daddr):
            return _STOP
        if pkt.fragment == _FIRST_FRAGMENT:
            return self._first(pkt, now)
        if not self._has_ports(pkt):
            # Extension headers may hide the transport of a later one.
            if pkt.af == 4 or not (pkt.proto == _DEST_OPTIONS or pkt.proto == _AUTH):
                return self._unbalanced(pkt)
        return self.later(pkt, now)

    def _measure(self, pkt: Packet) -> cython.bint:
        """Read where it belongs; False for what no host sends."""
        p = pkt.p
        body: cython.int = pkt.l4
        word: cython.int = pkt.be16(pkt.l3 + 6)
        if pkt.af == 4:
            self._ident = pkt.be16(pkt.l3 + 4)
            self._key_proto = pkt.proto
            self._start = (word & 0x1FFF) * 8
            self._more = word & 0x2000 != 0
        else:
            body = self._fragment_header(pkt)
            if body < 0:
                return False
            word = pkt.be16(body + 2)
            self._ident = pkt.be32(body + 4)
            self._key_proto = 0  # not of the key, and only the first one's is the transport's
            self._start = word & 0xFFF8
            self._more = p[body + 3] & 1 != 0
            body += 8
        length: cython.int = pkt.end - body
        self._end = self._start + length
        return length > 0 and self._end <= _LENGTH_MAX and not (self._more and length % 8 != 0)

    def _fragment_header(self, pkt: Packet) -> cython.int:
        """Where it is, behind headers that ipv6.parse has walked; -1 when there is none."""
        p = pkt.p
        at: cython.int = pkt.l3 + 40
        header: cython.int = p[pkt.l3 + 6]
        for _ in range(_MAX_EXTENSIONS + 1):
            if at + 8 > pkt.end:
                return -1
            if header == _FRAGMENT_HEADER:
                return at
            length: cython.int = (p[at + 1] + 1) * 8
            if header == _AUTH:
                length = (p[at + 1] + 2) * 4
            header = p[at]
            at += length
        return -1

    def _has_ports(self, pkt: Packet) -> cython.bint:
        return pkt.proto == _TCP or pkt.proto == _UDP or pkt.proto == _SCTP

    def _unbalanced(self, pkt: Packet) -> cython.int:
        """Of a protocol whose fragments have no conns: routed, or dropped by local input. But what
        may be of a conn is not let pass as it is.
        """
        if self.transit and self.ipvs.protocols[pkt.proto] is not None:
            return pkt.drop(_FRAGMENT)
        return _STOP

    # -- the first one

    def _first(self, pkt: Packet, now: cython.longlong) -> cython.int:
        if not self._has_ports(pkt):
            return self._unbalanced(pkt)
        if not self._transport(pkt):
            return pkt.drop(_INVALID)
        ports: cython.uint = (pkt.sport << 16) | pkt.dport
        datagram: Datagram | None = self._find(pkt, now)
        if datagram is None:
            datagram = self.datagrams.enter(
                pkt.saddr_hi,
                pkt.saddr,
                pkt.daddr_hi,
                pkt.daddr,
                self._ident,
                self._key_proto,
                now,
            )
            datagram.begin(pkt.proto, ports, now)
        elif datagram.over(now):
            datagram.begin(pkt.proto, ports, now)
        reason: cython.int = datagram.see(self._start, self._end, self._more)
        if reason != 0:
            return pkt.drop(reason)
        self.counters.add(_SEEN_FIRST, 1)
        if self.held != 0:
            self._release(pkt)
        return _ACCEPT

    def _transport(self, pkt: Packet) -> cython.bint:
        """Ports and flags; False unless the whole header is there (RFC 1858, RFC 7112), and with
        SCTP the header of its first chunk, which says what the packet is.
        """
        p = pkt.p
        l4: cython.Py_ssize_t = pkt.l4
        room: cython.int = pkt.end - l4
        if room < 8:
            return False
        if pkt.proto == _TCP:
            if room < 20:
                return False
            header: cython.int = (p[l4 + 12] >> 4) * 4
            if header < 20 or header > room:
                return False
            pkt.tcp_flags = p[l4 + 13]
        elif pkt.proto == _SCTP:
            if room < _SCTP_LEAST or pkt.be16(l4 + 14) < _CHUNK_LEAST:
                return False
        pkt.sport = pkt.be16(l4)
        pkt.dport = pkt.be16(l4 + 2)
        return True

    def _find(self, pkt: Packet, now: cython.longlong) -> Datagram | None:
        return self.datagrams.find(
            pkt.saddr_hi,
            pkt.saddr,
            pkt.daddr_hi,
            pkt.daddr,
            self._ident,
            self._key_proto,
            now,
        )

    # -- later ones

    def resume(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """One that was held goes on: as :meth:`receive`."""
        if not self._measure(pkt):
            return pkt.drop(_INVALID)
        return self.later(pkt, now)

    def later(self, pkt: Packet, now: cython.longlong) -> cython.int:
        datagram: Datagram | None = self._find(pkt, now)
        if datagram is None:
            return self._hold(pkt, now)
        if datagram.proto == _TCP and self._start < 20:
            return pkt.drop(_INVALID)  # it would write over the header (RFC 3128)
        reason: cython.int = datagram.see(self._start, self._end, self._more)
        if reason != 0:
            return pkt.drop(reason)
        pkt.proto = datagram.proto
        pkt.sport = datagram.ports >> 16
        pkt.dport = datagram.ports & 0xFFFF
        acl = self.acl
        if acl is not None and acl.run(pkt, now) != _ACCEPT:
            return _DROP
        return self._follow(pkt, now)

    def _follow(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Send it where its first one went."""
        ipvs = self.ipvs
        conns = ipvs.conns
        entry: cython.longlong = conns.lookup(pkt)
        if entry < 0:
            return self._astray(pkt)
        row: cython.longlong = entry >> 1
        direction: cython.int = entry & 1
        dest: Dest = ipvs.dests[conns.d[row * 32 + _D_DEST]]
        if dest.drain_until >= 0 and now > dest.drain_until:
            ipvs.life.end(row)
            return pkt.drop(_DEST_GONE)
        transmit: Transmit = ipvs.transmit
        if transmit.admit(pkt, row, direction, now) != 0:
            return _DROP
        flags: cython.int = conns.h[row * 64 + _H_FLAGS]
        if not transmit._takes_fragments(row):
            return pkt.drop(_FRAGMENT)
        length: cython.int = pkt.end - pkt.l3
        if not flags & _NO_REWRITE:
            self._rewrite(pkt, row, direction)
        transmit._lower_ttl(pkt)
        if flags & _XMIT:
            mode: Mode = transmit.modes[conns.b[row * 128 + _B_FWDMODE]]
            if mode.cuts and length > conns.h[row * 64 + _H_MTU + direction]:
                self.counters.add(_SEEN_LATER, 1)
                return transmit._cut(pkt, row, direction, dest, length)
            reason: cython.int = mode.xmit(pkt, conns, row, direction, dest, now)
            if reason != 0:
                return pkt.drop(reason)
        transmit._count(row, direction, dest, length)
        self.counters.add(_SEEN_LATER, 1)
        return _STOP

    def _rewrite(self, pkt: Packet, row: cython.longlong, direction: cython.int) -> None:
        """Addresses, as rewrite.apply does; what lies behind the IP header is data. But the packet
        says which ports its first one left with: who looks for its conn goes by them.
        """
        conns = self.ipvs.conns
        q = conns.q
        ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1 - direction]
        pkt.sport = ports & 0xFFFF
        pkt.dport = ports >> 16
        at: cython.longlong = row * 16 + (1 - direction) * 4
        pkt.saddr_hi = q[at + 2]
        pkt.saddr = q[at + 3]
        pkt.daddr_hi = q[at]
        pkt.daddr = q[at + 1]
        rewrite.put_addresses(
            pkt,
            pkt.l3,
            pkt.saddr_hi,
            pkt.saddr,
            pkt.daddr_hi,
            pkt.daddr,
            conns.h[row * 64 + _H_DELTA + 2 * direction],
        )

    def _astray(self, pkt: Packet) -> cython.int:
        """No conn here: another worker's, or none that its first one opened, or none of a service,
        for local input or the next router.
        """
        ipvs = self.ipvs
        if ipvs._elsewhere(pkt, ipvs._owner(pkt)):
            return _STOLEN
        service: Service | None = ipvs.birth.services.lookup(
            pkt.proto, pkt.daddr_hi, pkt.daddr, pkt.dport
        )
        if service is None:
            service = ipvs.birth.matching(pkt)
        return _STOP if service is None else pkt.drop(_ORPHAN)

    # -- those that came too early

    def _key(self, pkt: Packet) -> Key:
        return (
            pkt.saddr_hi,
            pkt.saddr,
            pkt.daddr_hi,
            pkt.daddr,
            self._ident,
            self._key_proto,
        )

    def _source(self, pkt: Packet) -> Source:
        """Who sent it: an IPv6 /64 is one (see ipvs/rates.py)."""
        if pkt.af == 4:
            return (0, pkt.saddr)
        return (pkt.saddr_hi, 0)

    def _hold(self, pkt: Packet, now: cython.longlong) -> cython.int:
        key = self._key(pkt)
        source = self._source(pkt)
        theirs: cython.int = self._sources.get(source, 0)
        waiting = self._waiting.get(key)
        if theirs >= HELD_SOURCE or (waiting is not None and len(waiting.frames) >= HELD_EACH):
            return pkt.drop(_QUEUE_FULL)
        if waiting is None:
            waiting = self._waiting[key] = Waiting(now, source)
        vnet.emit(pkt)
        frame = copy_of(pkt)
        waiting.frames.append((pkt.iif, frame, pkt.mark, pkt.handed))
        waiting.bytes += len(frame)
        self.held += 1
        self.held_bytes += len(frame)
        self._sources[source] = theirs + 1
        self.counters.add(_SEEN_HELD, 1)
        while self.held > HELD_MAX or self.held_bytes > HELD_BYTES:
            self._forget_oldest(_QUEUE_FULL)
        return _STOLEN

    def _release(self, pkt: Packet) -> None:
        """Those that waited for ``pkt`` go on once it has been written."""
        waiting = self._waiting.pop(self._key(pkt), None)
        if waiting is not None:
            self._let_go(waiting)
            self.outbox.resume(waiting.frames)

    def _let_go(self, waiting: Waiting) -> None:
        """They wait no more."""
        count = len(waiting.frames)
        self.held -= count
        self.held_bytes -= waiting.bytes
        left = self._sources[waiting.source] - count
        if left:
            self._sources[waiting.source] = left
        else:
            del self._sources[waiting.source]

    def _forget_oldest(self, reason: int) -> None:
        waiting = self._waiting.pop(next(iter(self._waiting)))
        self._let_go(waiting)
        for _ in waiting.frames:
            self.counters.drop(reason)

    def tick(self, now: int) -> None:
        """Give up on those that waited for too long."""
        while self._waiting and now - next(iter(self._waiting.values())).since > HOLD_MS:
            self._forget_oldest(_TIMEOUT)
