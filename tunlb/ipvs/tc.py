"""Egress traffic control: how fast a port sends, and who goes first (DPVS: src/tc.c).

A port has classes: one of its own, whose rate is that of the whole port, and one for each service
that has a line. Each class is a token bucket with a queue. A bucket may go below zero by one frame,
as a frame of many segments has to, and pays that back before the next. What finds the bucket empty
waits as a copy, already resolved to its neighbour, or is dropped where the queue has no room (a
limit of 0 is a policer). Lower priorities go first; among equals the classes take turns.

What a frame costs is what it is on the wire: headers once for each segment, Ethernet included.

Time is the loop's: while frames wait, :meth:`TrafficControl.advance` says through the outbox when
it wants to be woken. The bucket of each of several workers has its share of the rate.
"""

from __future__ import annotations

from collections import deque

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.conn import D_DEST, ConnTable
from tunlb.ipvs.dest import Dest
from tunlb.neigh import NeighEntry, NeighTable
from tunlb.netif import Netif
from tunlb.outbox import Outbox, copy_of
from tunlb.packet import ETHER_LEN, IPPROTO_TCP, IPPROTO_UDP, VLAN_LEN, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import vnet
else:
    from tunlb.wire import vnet

BATCH = 256  #: frames sent in one turn of the loop
SLACK_MS = 10  #: a bucket that somebody waits for keeps so much of its rate beyond its burst

_SLACK = cython.declare(cython.longlong, SLACK_MS)
_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_ETH_P_IP = cython.declare(cython.int, 0x0800)
_ETH_P_IPV6 = cython.declare(cython.int, 0x86DD)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_ETHER_LEN = cython.declare(cython.int, ETHER_LEN)
_VLAN_LEN = cython.declare(cython.int, VLAN_LEN)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_FULL = cython.declare(cython.int, DropReason.TC_QUEUE_FULL)
_POLICED = cython.declare(cython.int, DropReason.TC_POLICED)
_QUEUED = cython.declare(cython.int, Event.TC_QUEUED)


class TcClass:
    """A token bucket with a queue. ``rate`` is bits a second, 0 for any; ``burst`` and ``limit``
    are bytes.
    """

    def __init__(self, service: str, rate: int, burst: int, limit: int, priority: int) -> None:
        self.service = service
        self.rate = rate
        self.burst = burst * 8000
        self.limit = limit
        self.priority = priority
        self.level = self.burst  # thousandths of a bit: what a ms gives is the rate
        self.updated = -1
        self.queued = 0  # bytes
        self.frames: deque[tuple[int, Netif, bytes]] = deque()  # bytes on the wire, where to, what

    def inherit(self, old: TcClass) -> None:
        """Go on with what the class of the same name was until now."""
        self.level = min(old.level, self.burst)
        self.updated = old.updated
        self.queued = old.queued
        self.frames = old.frames

    def refill(self, now: cython.longlong, waited: cython.bint) -> None:
        """Add what the time since then has brought. ``waited``: somebody waits for it, so what is
        beyond the burst is no pause's, but of a loop that came a little late.
        """
        most: cython.longlong = self.burst
        if waited:
            most += _SLACK * self.rate
        if self.updated >= 0:
            gone: cython.longlong = now - self.updated
            if gone > 3_600_000:
                gone = 3_600_000
            self.level += gone * self.rate
        self.updated = now
        if self.level > most:
            self.level = most

    def ready(self) -> cython.bint:
        return self.rate == 0 or self.level > 0

    def delay(self) -> cython.int:
        """The ms until it is ready."""
        if self.rate == 0 or self.level > 0:
            return 0
        return -self.level // self.rate + 1

    def charge(self, length: cython.longlong) -> None:
        if self.rate != 0:
            self.level -= length * 8000


class TcPort:
    """The classes of a port: ``whole``, its own, if it has one, and those of services. ``waiting``
    is how many frames do, in all of them.
    """

    def __init__(self, netif: Netif, classes: list[TcClass]) -> None:
        self.netif = netif
        self.classes = sorted(classes, key=lambda one: one.priority)
        self.named = {one.service: one for one in classes if one.service}
        self.whole: TcClass | None = next((one for one in classes if not one.service), None)
        self.turn = 0
        self.waiting = 0

    def refill(self, one: TcClass, now: cython.longlong) -> None:
        """Have a class of this port have its tokens."""
        one.refill(now, one.queued != 0 or (one is self.whole and self.waiting != 0))

    def waits(self, priority: cython.int, now: cython.longlong) -> cython.bint:
        """Does anything wait that goes before a class of this priority, or beside it, and may go?
        What waits for its own bucket is in nobody's way.
        """
        one: TcClass
        for one in self.classes:
            if one.priority > priority:
                return False
            if one.queued != 0:
                self.refill(one, now)
                if one.ready():
                    return True
        return False

    def next(self) -> TcClass | None:
        """Whose turn it is: of the lowest priority among those that may send."""
        best: TcClass | None = None
        one: TcClass
        i: cython.int
        count: cython.int = len(self.classes)
        chosen: cython.int = 0
        for i in range(1, count + 1):
            one = self.classes[(self.turn + i) % count]
            if one.queued != 0 and one.ready() and (best is None or one.priority < best.priority):
                best = one
                chosen = (self.turn + i) % count
        if best is not None:
            self.turn = chosen
        return best

    def delay(self) -> cython.int:
        """The ms until something of what waits may be sent; -1 when nothing waits."""
        soonest: cython.longlong = -1
        mine: cython.longlong
        one: TcClass
        for one in self.classes:
            if one.queued != 0:
                mine = one.delay()
                if soonest < 0 or mine < soonest:
                    soonest = mine
        if soonest >= 0 and self.whole is not None:
            mine = self.whole.delay()
            if mine > soonest:
                soonest = mine
        return soonest


class TrafficControl(Hook):
    """The last hook of POST_ROUTING; registered only while there are tc lines."""

    point = Point.POST_ROUTING
    priority = 10001  # behind every user's: what is queued is as it will be sent

    def __init__(
        self,
        counters: Counters,
        conns: ConnTable,
        dests: list[Dest],
        neighs: NeighTable,
        outbox: Outbox,
        ports: list[TcPort],
    ) -> None:
        self.counters = counters
        self.conns = conns
        self.dests = dests
        self.neighs = neighs
        self.outbox = outbox
        self.ports = {port.netif.index: port for port in ports}
        self.waiting = 0  # frames in all queues

    # -- the packet path

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        if pkt.neigh <= 0 or pkt.neigh >= len(self.neighs.entries):
            return _ACCEPT
        entry: NeighEntry = self.neighs.entries[pkt.neigh]
        found = self.ports.get(entry.netif.index)
        if found is None:
            return _ACCEPT
        port: TcPort = found
        mine: TcClass | None = self._class_of(pkt, port)
        if mine is None:
            return _ACCEPT
        whole: TcClass | None = port.whole
        length: cython.longlong = wire_bytes(pkt, entry.netif)
        port.refill(mine, now)
        if whole is not None and whole is not mine:
            port.refill(whole, now)
        if (
            mine.ready()
            and (whole is None or whole.ready())
            and (whole is None or not port.waits(mine.priority, now))
            and mine.queued == 0
        ):
            self._charge(mine, whole, length)
            return _ACCEPT
        if mine.limit == 0:
            return pkt.drop(_POLICED)
        # One frame may always wait: what is larger than the limit would never get through.
        if mine.queued != 0 and mine.queued + length > mine.limit:
            return pkt.drop(_FULL)
        return self._queue(pkt, mine, port, length, now)

    def _class_of(self, pkt: Packet, port: TcPort) -> TcClass | None:
        if len(port.named) != 0:
            dest: Dest | None = self._dest_of(pkt)
            if dest is not None:
                mine = port.named.get(dest.service_name)
                if mine is not None:
                    return mine
        return port.whole

    def _dest_of(self, pkt: Packet) -> Dest | None:
        """Whose conn a packet is of that goes out: the reverse of what would come back, or what
        came in, where it is not rewritten.
        """
        conns = self.conns
        entry: cython.longlong = conns.find(
            pkt.daddr_hi,
            pkt.daddr,
            pkt.saddr_hi,
            pkt.saddr,
            (pkt.dport << 16) | pkt.sport,
            pkt.proto,
        )
        if entry < 0:
            entry = conns.lookup(pkt)
        if entry < 0:
            return None
        dest: Dest = self.dests[conns.d[(entry >> 1) * 32 + _D_DEST]]
        return dest

    def _charge(self, mine: TcClass, whole: TcClass | None, length: cython.longlong) -> None:
        mine.charge(length)
        if whole is not None and whole is not mine:
            whole.charge(length)

    def _queue(
        self,
        pkt: Packet,
        mine: TcClass,
        port: TcPort,
        length: cython.longlong,
        now: cython.longlong,
    ) -> cython.int:
        pkt.ether_type = _ETH_P_IP if pkt.af == 4 else _ETH_P_IPV6
        verdict: cython.int = self.neighs.output(pkt, now)
        if verdict != _ACCEPT:
            return verdict  # it waits for its neighbour instead, or never gets there
        vnet.emit(pkt)
        mine.frames.append((length, port.netif, copy_of(pkt)))
        mine.queued += length
        port.waiting += 1
        self.waiting += 1
        self.counters.add(_QUEUED, 1)
        self._wake(port, now)
        return _STOLEN

    # -- time

    def advance(self, now: cython.longlong) -> None:
        """Send what may be sent now, a batch at most. The port behind the one that had the last of
        it begins the next.
        """
        port: TcPort
        one: TcClass
        left: cython.int = BATCH
        last: cython.int = -1
        if self.waiting == 0:
            return
        for port in self.ports.values():
            for one in port.classes:
                port.refill(one, now)
            while left > 0 and (port.whole is None or port.whole.ready()):
                mine = port.next()
                if mine is None:
                    break
                self._send(mine, port)
                left -= 1
                if left == 0:
                    last = port.netif.index
            self._wake(port, now)
        if last >= 0:
            self._begin_behind(last)

    def _begin_behind(self, last: int) -> None:
        """The ports take turns: those behind this one come first from now on."""
        order = list(self.ports)
        at = order.index(last) + 1
        self.ports = {index: self.ports[index] for index in order[at:] + order[:at]}

    def _send(self, mine: TcClass, port: TcPort) -> None:
        length, netif, frame = mine.frames.popleft()
        mine.queued -= length
        port.waiting -= 1
        self.waiting -= 1
        self._charge(mine, port.whole, length)
        self.outbox.put(netif, frame)

    def _wake(self, port: TcPort, now: cython.longlong) -> None:
        delay: cython.longlong = port.delay()
        if delay >= 0:
            self.outbox.wake(now + (delay if delay > 0 else 1))

    # -- a new configuration

    def inherit(self, old: TrafficControl) -> None:
        """Go on with the queues and levels of ``old``. What has no class any more is the port's, or
        is sent now where that has none either.
        """
        for index, port in old.ports.items():
            fresh = self.ports.get(index)
            known = {} if fresh is None else {one.service: one for one in fresh.classes}
            for one in port.classes:
                if one.service in known:
                    known[one.service].inherit(one)
            for one in port.classes:
                if one.service in known:
                    continue
                if fresh is not None and fresh.whole is not None:
                    fresh.whole.frames += one.frames
                    fresh.whole.queued += one.queued
                else:
                    for _, netif, frame in one.frames:
                        self.outbox.put(netif, frame)
            if fresh is not None:
                fresh.waiting = sum(len(one.frames) for one in fresh.classes)
                self.waiting += fresh.waiting
        if self.waiting:
            self.outbox.wake(0)


def wire_bytes(pkt: Packet, netif: Netif) -> cython.longlong:
    """What the packet is on the wire, once the kernel has cut it into its segments."""
    link: cython.longlong = 0
    if not netif.tun:
        link = _ETHER_LEN if netif.vid == 0 else _ETHER_LEN + _VLAN_LEN
    length: cython.longlong = pkt.end - pkt.l3
    if pkt.gso_type == 0 or pkt.gso_size <= 0:
        return length + link
    header: cython.longlong = pkt.l4 - pkt.l3
    if pkt.proto == _TCP:
        header += (pkt.p[pkt.l4 + 12] >> 4) * 4
    elif pkt.proto == _UDP:
        header += 8
    segments: cython.longlong = (length - header + pkt.gso_size - 1) // pkt.gso_size
    if segments < 1:
        segments = 1
    return length + (segments - 1) * header + segments * link
