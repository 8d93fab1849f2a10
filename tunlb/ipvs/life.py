"""A conn's life: its birth, its end, and its second life in the table of a worker that died.

Whatever else has to change with a row changes here: keys in the hash, the lport, the timer and the
counts of its dest.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.ipvs.conn import (
    ACTIVE,
    B_AF,
    B_FWDMODE,
    B_PROTO,
    B_STATE,
    CONTROLLED,
    CRC32C,
    D_DEST,
    D_EPOCH,
    D_LAST_SEEN,
    D_PACKETS,
    D_PORTS,
    D_TIMEOUT,
    ECHO,
    H_FLAGS,
    HALF,
    MSS,
    NO_REWRITE,
    ONEWAY,
    RESETS,
    RESUMED,
    SYNPROXY,
    TEMPLATE,
    TEMPLATE_PROTO,
    X_CONTROL,
    XMIT,
    ConnTable,
)
from tunlb.ipvs.dest import ACTCONNS, FWD_SNAT, INACTCONNS, TEMPLATES, Dest
from tunlb.ipvs.laddr import LportPool, LportPools
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.protocol import CLOSING, ESTABLISHED, HALF_OPEN, IDLE, Protocol
from tunlb.ipvs.proxying import Proxying
from tunlb.ipvs.service import Service
from tunlb.packet import Packet
from tunlb.timers import Wheel

if cython.compiled:
    from cython.cimports.tunlb.ipvs import rewrite
else:
    from tunlb.ipvs import rewrite

EVICT_SCAN = 1024  #: rows looked at to find one to evict when the table is full
RECYCLE_SCAN = 64  #: lports looked at to find one that may be had when a pool is full
RECYCLE_IDLE_MS = 30_000  #: how long a datagram's or a ping's conn was unseen that gives way

_CLOSING = cython.declare(cython.int, CLOSING)
_HALF_OPEN = cython.declare(cython.int, HALF_OPEN)
_ESTABLISHED = cython.declare(cython.int, ESTABLISHED)
_IDLE = cython.declare(cython.int, IDLE)
_ACTIVE = cython.declare(cython.int, ACTIVE)
_MSS = cython.declare(cython.int, MSS)
_TEMPLATE = cython.declare(cython.int, TEMPLATE)
_CONTROLLED = cython.declare(cython.int, CONTROLLED)
_PERSISTENT = cython.declare(cython.int, TEMPLATE | CONTROLLED)
_RECYCLE_IDLE = cython.declare(cython.longlong, RECYCLE_IDLE_MS)
_CARED_FOR = cython.declare(cython.int, TEMPLATE | RESETS)
_TEMPLATE_FLAGS = cython.declare(cython.int, TEMPLATE | ONEWAY)
_TEMPLATE_PROTO = cython.declare(cython.int, TEMPLATE_PROTO)
_TEMPLATES = cython.declare(cython.int, TEMPLATES)
_MODE_FLAGS = cython.declare(cython.int, ONEWAY | NO_REWRITE | XMIT)
_RESUMED = cython.declare(cython.int, RESUMED)
_SYNPROXY = cython.declare(cython.int, SYNPROXY)
_HALF = cython.declare(cython.int, HALF)
_PROXIED = cython.declare(cython.int, SYNPROXY | HALF)
_PROTOCOL_FLAGS = cython.declare(cython.int, ECHO | CRC32C)
_FWD_SNAT = cython.declare(cython.int, FWD_SNAT)
_CONN_TABLE_FULL = cython.declare(cython.int, DropReason.CONN_TABLE_FULL)
_LPORT_EXHAUSTED = cython.declare(cython.int, DropReason.LPORT_EXHAUSTED)
_CONN_EXISTS = cython.declare(cython.int, DropReason.CONN_EXISTS)
_CONN_EXPIRED = cython.declare(cython.int, Event.CONN_EXPIRED)
_ACTCONNS = cython.declare(cython.int, ACTCONNS)
_INACTCONNS = cython.declare(cython.int, INACTCONNS)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)

# Words of a row, see ipvs/conn.py.
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_B_AF = cython.declare(cython.longlong, B_AF)
_B_STATE = cython.declare(cython.longlong, B_STATE)
_B_FWDMODE = cython.declare(cython.longlong, B_FWDMODE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_D_LAST_SEEN = cython.declare(cython.longlong, D_LAST_SEEN)
_D_PACKETS = cython.declare(cython.longlong, D_PACKETS)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_EPOCH = cython.declare(cython.longlong, D_EPOCH)
_X_CONTROL = cython.declare(cython.longlong, X_CONTROL)


class ConnTimers(Wheel):
    """The lazy timers of the conn table: a packet only stores ``last_seen``; the wheel looks when
    the time is over.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, 1024, 250)
        self.life: Life | None = None

    def fire(self, index: cython.int, now: cython.longlong) -> cython.longlong:
        life = self.life
        assert life is not None
        return life.check_expiry(index, now)


class Ending:
    """What else there is to a row with TEMPLATE or RESETS whose time may be over: see
    ipvs/expiry.py.
    """

    def due(self, row: cython.int, now: cython.longlong) -> cython.int:
        """As :meth:`Life.check_expiry`."""
        raise NotImplementedError


class Life:
    """The conns of one worker, with all that hangs on them."""

    def __init__(
        self,
        counters: Counters,
        conns: ConnTable,
        pools: LportPools,
        protocols: list[Protocol],
        modes: list[Mode],
    ) -> None:
        self.counters = counters
        self.conns = conns
        self.pools = pools
        self.dests: list[Dest] = []
        self.protocols: list[Protocol | None] = [None] * 256
        for protocol in protocols:
            self.protocols[protocol.number] = protocol
        self.modes = [Mode(pools)] * 8
        for mode in modes:
            self.modes[mode.number] = mode
        self.timers = ConnTimers(conns.conn_max)
        self.timers.life = self
        self.proxying = Proxying()
        self.ending = Ending()
        self.templates = 0
        self._hand = 0

    def new(self, pkt: Packet, service: Service, dest: Dest, now: cython.longlong) -> cython.int:
        """A linked row for the conn that ``pkt`` opens to ``dest``; -1 with the reason on the
        packet.
        """
        conns = self.conns
        row: cython.longlong = self.take(now)
        if row < 0:
            pkt.drop(_CONN_TABLE_FULL)
            return -1
        mode: Mode = self.begin(row, pkt, dest)
        reason: cython.int = mode.bind(conns, row, service, dest, now)
        if reason == _LPORT_EXHAUSTED and self._recycle_lport(row, service, dest, now):
            reason = mode.bind(conns, row, service, dest, now)
        if reason == 0:
            if service.mss_clamp != 0:
                conns.h[row * 64 + _H_FLAGS] |= _MSS
            # 4 | 6 is 6, whose sums are right for the IPv4 side of a NAT64 conn as well: the
            # words of ::ffff:0.0.0.0 add up to zero.
            rewrite.prepare(conns, row, 0, pkt.af | dest.af)
            rewrite.prepare(conns, row, 1, pkt.af | dest.af)
            dest.v[_INACTCONNS] += 1
            if dest.limited:
                dest.count(1)
            if conns.link(row):
                return row
            dest.v[_INACTCONNS] -= 1
            if dest.limited:
                dest.count(-1)
            mode.unbind(conns, row)
            reason = _CONN_EXISTS
        conns.free(row)
        pkt.drop(reason)
        return -1

    def take(self, now: cython.longlong) -> cython.int:
        """A row, if need be an evicted one's; -1 when there is none to be had."""
        row: cython.int = self.conns.alloc()
        if row < 0 and self.evict(now):
            row = self.conns.alloc()
        return row

    def begin(self, row: cython.longlong, pkt: Packet, dest: Dest) -> Mode:
        """Fill in what the packet and the dest say; the mode that has to fill in the rest."""
        conns = self.conns
        at: cython.longlong = row * 16
        conns.q[at] = pkt.saddr_hi
        conns.q[at + 1] = pkt.saddr
        conns.q[at + 2] = pkt.daddr_hi
        conns.q[at + 3] = pkt.daddr
        conns.d[row * 32 + _D_PORTS] = (pkt.sport << 16) | pkt.dport
        conns.b[row * 128 + _B_PROTO] = pkt.proto
        conns.b[row * 128 + _B_AF] = pkt.af
        conns.b[row * 128 + _B_FWDMODE] = dest.fwdmode
        protocol = self.protocol_of(row)
        conns.h[row * 64 + _H_FLAGS] = protocol.flags
        conns.d[row * 32 + _D_DEST] = dest.id
        conns.d[row * 32 + _D_TIMEOUT] = dest.timeouts.of(0)
        mode: Mode = self.modes[dest.fwdmode]
        return mode

    def _recycle_lport(
        self, row: cython.longlong, service: Service, dest: Dest, now: cython.longlong
    ) -> cython.bint:
        """Every lport towards the dest is taken: end a conn for its port that is closing, or one
        without a beginning and an end (UDP, a ping) that is idle.
        """
        conns = self.conns
        dport: cython.uint = (
            dest.dport if dest.dport != 0 else conns.d[row * 32 + _D_PORTS] & 0xFFFF
        )
        proto: cython.int = conns.b[row * 128 + _B_PROTO]
        protocol = self.protocol_of(row)
        lport: cython.int
        at: cython.int
        entry: cython.longlong
        pool: LportPool
        if dest.fwdmode == _FWD_SNAT:
            mode: Mode = self.modes[_FWD_SNAT]
            for at in range(RECYCLE_SCAN):
                if self._recycle(mode.rival(conns, row, service, at), protocol, now):
                    return True
            return False
        for hi, lo in service.laddrs_of(dest.af):
            pool = self.pools.pool(hi, lo, dest.daddr_hi, dest.daddr, (dport << 8) | proto)
            for _ in range(RECYCLE_SCAN):
                lport = pool.next_victim()
                entry = conns.find(dest.daddr_hi, dest.daddr, hi, lo, (dport << 16) | lport, proto)
                if self._recycle(entry, protocol, now):
                    return True
        return False

    def _recycle(
        self, entry: cython.longlong, protocol: Protocol, now: cython.longlong
    ) -> cython.bint:
        """End this conn, if there is one and it is closing or idle."""
        if entry < 0:
            return False
        row: cython.longlong = entry >> 1
        kind: cython.int = protocol.kind(self.conns.b[row * 128 + _B_STATE])
        age: cython.longlong = (now - self.conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
        if kind != _CLOSING and not (kind == _IDLE and age >= _RECYCLE_IDLE):
            return False
        self.end(row)
        self.counters.add(Event.LPORT_RECYCLED, 1)
        return True

    # -- the end of a conn

    def end(self, row: cython.longlong) -> None:
        """Forget a conn: its keys, lport, timer, and place in its dest's and template's counts."""
        conns = self.conns
        flags: cython.int = conns.h[row * 64 + _H_FLAGS]
        if flags & _PERSISTENT:
            if flags & _TEMPLATE:
                self._end_template(row)
                return
            self._release(row)
        conns.unlink(row)
        mode: Mode = self.modes[conns.b[row * 128 + _B_FWDMODE]]
        mode.unbind(conns, row)
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        if flags & _ACTIVE:
            dest.v[_ACTCONNS] -= 1
        else:
            dest.v[_INACTCONNS] -= 1
        if dest.limited:
            dest.count(-1)
        if flags & _PROXIED:
            self._end_proxied(row, dest)
        self.timers.cancel(row)
        conns.free(row)

    def _end_proxied(self, row: cython.longlong, dest: Dest) -> None:
        """What a service with a SYN proxy keeps of a conn."""
        flags: cython.int = self.conns.h[row * 64 + _H_FLAGS]
        if flags & _HALF:
            dest.half_opened(-1)
        if flags & _SYNPROXY:
            self.proxying.forget(row)

    def _end_template(self, row: cython.longlong) -> None:
        conns = self.conns
        conns.unlink(row)
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        dest.v[_TEMPLATES] -= 1
        self.templates -= 1
        self.timers.cancel(row)
        conns.free(row)

    def _release(self, row: cython.longlong) -> None:
        """A template holds a conn less. With the last one it ends if all it ever held were
        half-open (a flood of SYNs must not leave templates behind) or if its dest is gone.
        """
        conns = self.conns
        template: cython.longlong = conns.x[row * 16 + _X_CONTROL]
        conns.x[template * 16 + _X_CONTROL] -= 1
        state: cython.int = conns.b[row * 128 + _B_STATE]
        if state != 0 and self.protocol_of(row).kind(state) != _HALF_OPEN:
            conns.b[template * 128 + _B_STATE] = 1
        dest: Dest = self.dests[conns.d[template * 32 + _D_DEST]]
        if conns.x[template * 16 + _X_CONTROL] == 0 and (
            conns.b[template * 128 + _B_STATE] == 0 or not dest.available
        ):
            self._end_template(template)

    def protocol_of(self, row: cython.longlong) -> Protocol:
        protocol: Protocol | None = self.protocols[self.conns.b[row * 128 + _B_PROTO]]
        assert protocol is not None
        return protocol

    def check_expiry(self, row: cython.int, now: cython.longlong) -> cython.int:
        """The timer's question: 0 when the conn ended, else the ms until its time is over."""
        conns = self.conns
        if not conns.valid(row):
            return 0
        if conns.h[row * 64 + _H_FLAGS] & _CARED_FOR:
            return self.ending.due(row, now)
        age: cython.longlong = (now - conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
        left: cython.longlong = conns.d[row * 32 + _D_TIMEOUT] - age
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        if conns.h[row * 64 + _H_FLAGS] & _SYNPROXY:
            again: cython.longlong = self.proxying.fire(row, dest, now)
            if again >= 0:
                return again
        if left > 0 and not (dest.drain_until >= 0 and now > dest.drain_until):
            return left
        self.end(row)
        self.counters.add(_CONN_EXPIRED, 1)
        return 0

    def evict(self, now: cython.longlong) -> cython.bint:
        """Make room: of the next EVICT_SCAN rows, the half-open, else closing, else idle one unseen
        for longest. A template counts as idle, one that holds conns as established, and what the
        fallback went on with as half-open until both sides have spoken: with the next packet it
        would be there again.
        """
        conns = self.conns
        best: cython.longlong = -1
        best_kind: cython.int = _ESTABLISHED
        best_age: cython.longlong = -1
        kind: cython.int
        age: cython.longlong
        row: cython.longlong = self._hand
        protocol: Protocol
        for _ in range(min(EVICT_SCAN, conns.conn_max)):
            row += 1
            if row >= conns.conn_max:
                row = 0
            if not conns.valid(row):
                continue
            if conns.h[row * 64 + _H_FLAGS] & _TEMPLATE:
                kind = _IDLE if conns.x[row * 16 + _X_CONTROL] == 0 else _ESTABLISHED
            else:
                protocol = self.protocol_of(row)
                kind = protocol.kind(conns.b[row * 128 + _B_STATE])
                if conns.h[row * 64 + _H_FLAGS] & _RESUMED and (
                    conns.d[row * 32 + _D_PACKETS] == 0 or conns.d[row * 32 + _D_PACKETS + 1] == 0
                ):
                    kind = _HALF_OPEN
            age = (now - conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
            if kind < best_kind or (kind == best_kind and kind != _ESTABLISHED and age > best_age):
                best = row
                best_kind = kind
                best_age = age
        self._hand = row
        if best < 0:
            return False
        self.end(best)
        self.counters.add(Event.CONN_EVICTED, 1)
        return True

    # -- the table of a former worker

    def adopt(self, now: cython.longlong) -> cython.int:
        """Go on with the conns that a former worker left in the table; how many had to be dropped.

        Call it once, before the first packet, with all dests in place. A row that is not whole, as
        a worker killed in the middle of a birth leaves it, or whose dest or laddr is gone, is given
        back.
        """
        conns = self.conns
        conns.look()
        dropped: cython.int = 0
        held: cython.int = 0
        dest: Dest
        for dest in self.dests:
            dest.counted_active = 0
            dest.counted_inactive = 0
            dest.counted_templates = 0
            dest.half_open = 0
            dest.carried.count = 0
            if dest.half_opens is not None:
                dest.half_opens.count = 0
        # From the last to the first, so that the free list hands out low rows first.
        row: cython.longlong = conns.fresh - 1
        while row >= 0:
            if not self._adopt_row(row, now):
                if conns.valid(row):
                    dropped += 1
                conns.discard(row)
            held |= conns.h[row * 64 + _H_FLAGS] & _PERSISTENT
            row -= 1
        if held != 0:
            self._count_held()
        # Others read these counts: they are what they were, and from one to the next what they are.
        for dest in self.dests:
            dest.v[_ACTCONNS] = dest.counted_active
            dest.v[_INACTCONNS] = dest.counted_inactive
            dest.v[_TEMPLATES] = dest.counted_templates
            dest.carried.publish()
            if dest.half_opens is not None:
                dest.half_opens.publish()
        return dropped

    def _count_held(self) -> None:
        """Count again what templates hold: a row that was dropped is held no more."""
        conns = self.conns
        row: cython.longlong
        template: cython.longlong
        for row in range(conns.fresh):
            if conns.h[row * 64 + _H_FLAGS] & _TEMPLATE:
                conns.x[row * 16 + _X_CONTROL] = 0
        for row in range(conns.fresh):
            if not conns.h[row * 64 + _H_FLAGS] & _CONTROLLED:
                continue
            template = conns.x[row * 16 + _X_CONTROL]
            if template < conns.fresh and conns.h[template * 64 + _H_FLAGS] & _TEMPLATE:
                conns.x[template * 16 + _X_CONTROL] += 1
            else:
                conns.h[row * 64 + _H_FLAGS] &= 0xFFFF ^ _CONTROLLED

    def _adopt_template(self, row: cython.longlong, now: cython.longlong) -> cython.bint:
        conns = self.conns
        index: cython.longlong = conns.d[row * 32 + _D_DEST]
        if index >= len(self.dests):
            return False
        dest: Dest = self.dests[index]
        if (
            conns.b[row * 128 + _B_PROTO] != _TEMPLATE_PROTO
            or conns.h[row * 64 + _H_FLAGS] & _TEMPLATE_FLAGS != _TEMPLATE_FLAGS
            or dest.id != index
            or dest.af != conns.b[row * 128 + _B_AF]
            or conns.d[row * 32 + _D_TIMEOUT] == 0
            or not conns.adopt(row)
        ):
            return False
        dest.counted_templates += 1
        self.templates += 1
        self._resume(row, now)
        return True

    def _resume(self, row: cython.longlong, now: cython.longlong) -> None:
        conns = self.conns
        age: cython.longlong = (now - conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
        left: cython.longlong = conns.d[row * 32 + _D_TIMEOUT] - age
        self.timers.schedule(row, now, left if left > 0 else 0)

    def _adopt_row(self, row: cython.longlong, now: cython.longlong) -> cython.bint:
        conns = self.conns
        if conns.valid(row) and conns.h[row * 64 + _H_FLAGS] & _TEMPLATE:
            return self._adopt_template(row, now)
        if not self._plausible(row):
            return False
        mode: Mode = self.modes[conns.b[row * 128 + _B_FWDMODE]]
        if not mode.rebind(conns, row):
            return False
        if not conns.adopt(row):
            mode.unbind(conns, row)
            return False
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        rewrite.prepare(conns, row, 0, conns.b[row * 128 + _B_AF] | dest.af)
        rewrite.prepare(conns, row, 1, conns.b[row * 128 + _B_AF] | dest.af)
        conns.d[row * 32 + _D_EPOCH] = 0
        if self.protocol_of(row).kind(conns.b[row * 128 + _B_STATE]) == _ESTABLISHED:
            conns.h[row * 64 + _H_FLAGS] |= _ACTIVE
            dest.counted_active += 1
        else:
            conns.h[row * 64 + _H_FLAGS] &= 0xFFFF ^ _ACTIVE
            dest.counted_inactive += 1
        if dest.limited:
            dest.carried.count += 1
        conns.h[row * 64 + _H_FLAGS] &= 0xFFFF ^ _HALF
        if (
            dest.half_opens is not None
            and self.protocol_of(row).kind(conns.b[row * 128 + _B_STATE]) == _HALF_OPEN
        ):
            conns.h[row * 64 + _H_FLAGS] |= _HALF
            dest.half_open += 1
            dest.half_opens.count += 1
        self._resume(row, now)
        return True

    def _plausible(self, row: cython.longlong) -> cython.bint:
        """Could `new` have made this row? Nothing in it is trusted before: compiled code does not
        check what it indexes.
        """
        conns = self.conns
        if not conns.valid(row):
            return False
        protocol: Protocol | None = self.protocols[conns.b[row * 128 + _B_PROTO]]
        if protocol is None or conns.b[row * 128 + _B_STATE] >= len(protocol.states):
            return False
        number: cython.int = conns.b[row * 128 + _B_FWDMODE]
        if number >= 8:
            return False
        mode: Mode = self.modes[number]
        if mode.number != number:
            return False
        if conns.h[row * 64 + _H_FLAGS] & _MODE_FLAGS != mode.flags:
            return False
        if conns.h[row * 64 + _H_FLAGS] & _PROTOCOL_FLAGS != protocol.flags:
            return False
        index: cython.longlong = conns.d[row * 32 + _D_DEST]
        if index >= len(self.dests):
            return False
        dest: Dest = self.dests[index]
        return (
            dest.id == index and conns.d[row * 32 + _D_TIMEOUT] != 0 and mode.fits(conns, row, dest)
        )
