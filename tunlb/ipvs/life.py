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
    D_DEST,
    D_EPOCH,
    D_LAST_SEEN,
    D_PORTS,
    D_TIMEOUT,
    H_FLAGS,
    NO_REWRITE,
    ONEWAY,
    ConnTable,
)
from tunlb.ipvs.dest import ACTCONNS, INACTCONNS, Dest
from tunlb.ipvs.laddr import LportPool, LportPools
from tunlb.ipvs.mode import Mode
from tunlb.ipvs.protocol import CLOSING, ESTABLISHED, Protocol
from tunlb.ipvs.service import Service
from tunlb.packet import Packet
from tunlb.timers import Wheel

if cython.compiled:
    from cython.cimports.tunlb.ipvs import rewrite
else:
    from tunlb.ipvs import rewrite

EVICT_SCAN = 1024  #: rows looked at to find one to evict when the table is full
RECYCLE_SCAN = 64  #: lports looked at to find one of a closing conn when a pool is full

_CLOSING = cython.declare(cython.int, CLOSING)
_ESTABLISHED = cython.declare(cython.int, ESTABLISHED)
_ACTIVE = cython.declare(cython.int, ACTIVE)
_MODE_FLAGS = cython.declare(cython.int, ONEWAY | NO_REWRITE)
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
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_EPOCH = cython.declare(cython.longlong, D_EPOCH)


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
        self._hand = 0

    def new(self, pkt: Packet, service: Service, dest: Dest, now: cython.longlong) -> cython.int:
        """A linked row for the conn that ``pkt`` opens to ``dest``; -1 with the reason on the
        packet.
        """
        conns = self.conns
        row: cython.longlong = conns.alloc()
        if row < 0:
            if self.evict(now):
                row = conns.alloc()
            if row < 0:
                pkt.drop(_CONN_TABLE_FULL)
                return -1
        at: cython.longlong = row * 16
        conns.q[at] = pkt.saddr_hi
        conns.q[at + 1] = pkt.saddr
        conns.q[at + 2] = pkt.daddr_hi
        conns.q[at + 3] = pkt.daddr
        conns.d[row * 32 + _D_PORTS] = (pkt.sport << 16) | pkt.dport
        conns.b[row * 128 + _B_PROTO] = pkt.proto
        conns.b[row * 128 + _B_AF] = pkt.af
        conns.b[row * 128 + _B_FWDMODE] = dest.fwdmode
        conns.d[row * 32 + _D_DEST] = dest.id
        conns.d[row * 32 + _D_TIMEOUT] = dest.timeouts.of(0)
        mode: Mode = self.modes[dest.fwdmode]
        reason: cython.int = mode.bind(conns, row, service, dest, now)
        if reason == _LPORT_EXHAUSTED and self._recycle_lport(row, service, dest):
            reason = mode.bind(conns, row, service, dest, now)
        if reason == 0:
            rewrite.prepare(conns, row, 0, pkt.af)
            rewrite.prepare(conns, row, 1, dest.af)
            dest.v[_INACTCONNS] += 1
            if conns.link(row):
                return row
            dest.v[_INACTCONNS] -= 1
            mode.unbind(conns, row)
            reason = _CONN_EXISTS
        conns.free(row)
        pkt.drop(reason)
        return -1

    def _recycle_lport(self, row: cython.longlong, service: Service, dest: Dest) -> cython.bint:
        """Every lport towards the dest is taken: end a conn that is closing, taken longest ago, for
        its port.
        """
        conns = self.conns
        dport: cython.uint = (
            dest.dport if dest.dport != 0 else conns.d[row * 32 + _D_PORTS] & 0xFFFF
        )
        proto: cython.int = conns.b[row * 128 + _B_PROTO]
        protocol = self.protocol_of(row)
        lport: cython.int
        entry: cython.longlong
        pool: LportPool
        for hi, lo in service.laddrs:
            pool = self.pools.pool(hi, lo, dest.daddr_hi, dest.daddr, (dport << 8) | proto)
            for _ in range(RECYCLE_SCAN):
                lport = pool.next_victim()
                entry = conns.find(dest.daddr_hi, dest.daddr, hi, lo, (dport << 16) | lport, proto)
                if entry >= 0 and protocol.kind(conns.b[(entry >> 1) * 128 + _B_STATE]) == _CLOSING:
                    self.end(entry >> 1)
                    self.counters.add(Event.LPORT_RECYCLED, 1)
                    return True
        return False

    # -- the end of a conn

    def end(self, row: cython.longlong) -> None:
        """Forget a conn: its keys, lport, timer and place in its dest's counts."""
        conns = self.conns
        conns.unlink(row)
        mode: Mode = self.modes[conns.b[row * 128 + _B_FWDMODE]]
        mode.unbind(conns, row)
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        if conns.h[row * 64 + _H_FLAGS] & _ACTIVE:
            dest.v[_ACTCONNS] -= 1
        else:
            dest.v[_INACTCONNS] -= 1
        self.timers.cancel(row)
        conns.free(row)

    def protocol_of(self, row: cython.longlong) -> Protocol:
        protocol: Protocol | None = self.protocols[self.conns.b[row * 128 + _B_PROTO]]
        assert protocol is not None
        return protocol

    def check_expiry(self, row: cython.int, now: cython.longlong) -> cython.int:
        """The timer's question: 0 when the conn ended, else the ms until its time is over."""
        conns = self.conns
        if not conns.valid(row):
            return 0
        age: cython.longlong = (now - conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
        left: cython.longlong = conns.d[row * 32 + _D_TIMEOUT] - age
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        if left > 0 and not (dest.drain_until >= 0 and now > dest.drain_until):
            return left
        self.end(row)
        self.counters.add(_CONN_EXPIRED, 1)
        return 0

    def evict(self, now: cython.longlong) -> cython.bint:
        """Make room: of the next EVICT_SCAN rows, the half-open, else closing, else idle one unseen
        for longest.
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
            protocol = self.protocol_of(row)
            kind = protocol.kind(conns.b[row * 128 + _B_STATE])
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
        a worker killed in the middle of a birth leaves it, or whose dest is gone, is given back.
        """
        conns = self.conns
        conns.look()
        dropped: cython.int = 0
        dest: Dest
        for dest in self.dests:
            dest.v[_ACTCONNS] = 0
            dest.v[_INACTCONNS] = 0
        # From the last to the first, so that the free list hands out low rows first.
        row: cython.longlong = conns.fresh - 1
        while row >= 0:
            if not self._adopt_row(row, now):
                if conns.valid(row):
                    dropped += 1
                conns.discard(row)
            row -= 1
        return dropped

    def _adopt_row(self, row: cython.longlong, now: cython.longlong) -> cython.bint:
        conns = self.conns
        if not self._plausible(row):
            return False
        mode: Mode = self.modes[conns.b[row * 128 + _B_FWDMODE]]
        if not mode.rebind(conns, row):
            return False
        if not conns.adopt(row):
            mode.unbind(conns, row)
            return False
        dest: Dest = self.dests[conns.d[row * 32 + _D_DEST]]
        rewrite.prepare(conns, row, 0, conns.b[row * 128 + _B_AF])
        rewrite.prepare(conns, row, 1, dest.af)
        conns.d[row * 32 + _D_EPOCH] = 0
        if self.protocol_of(row).kind(conns.b[row * 128 + _B_STATE]) == _ESTABLISHED:
            conns.h[row * 64 + _H_FLAGS] |= _ACTIVE
            dest.v[_ACTCONNS] += 1
        else:
            conns.h[row * 64 + _H_FLAGS] &= 0xFFFF ^ _ACTIVE
            dest.v[_INACTCONNS] += 1
        age: cython.longlong = (now - conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
        left: cython.longlong = conns.d[row * 32 + _D_TIMEOUT] - age
        self.timers.schedule(row, now, left if left > 0 else 0)
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
        index: cython.longlong = conns.d[row * 32 + _D_DEST]
        if index >= len(self.dests):
            return False
        dest: Dest = self.dests[index]
        ports: cython.uint = conns.d[row * 32 + _D_PORTS + 1]
        dport: cython.uint = dest.dport
        if dport == 0:
            dport = conns.d[row * 32 + _D_PORTS] & 0xFFFF
        return (
            dest.id == index
            and dest.af == conns.b[row * 128 + _B_AF]
            and conns.q[row * 16 + 4] == dest.daddr_hi
            and conns.q[row * 16 + 5] == dest.daddr
            and ports >> 16 == dport
            and conns.d[row * 32 + _D_TIMEOUT] != 0
        )
