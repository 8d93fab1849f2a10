"""Persistence: a client network keeps the dest that was chosen for its first conn (IPVS:
ip_vs_sched_persist).

A *template* remembers the choice: a row of the conn table that no packet finds, because its key has
a protocol that none has. Key: client network -> vaddr, ports: protocol -> vport. The vport is the
first one of the service, so one template covers all ports of a range, and of an any-port service.
A conn that a template holds to its dest is CONTROLLED, and counted in the template: it ends when no
conn has been opened for ``persistence_s`` and it holds none (IPVS postpones by 60 s; so do we).

Half-open conns prove nothing: when all that a template ever held were such, it ends with the last
of them, so that a flood of SYNs leaves nothing behind.

A template whose dest may not lead any more (:meth:`Persistence.leads`) gets another dest. Overload
is no reason, as in IPVS: who was promised a dest gets it.

**Several workers.** Conns of one client belong to several workers, each with a table of its own,
and all of them have to choose alike. So each client network has a *home*, the worker that chooses.
A worker that has no template hands the packet over to the home with a question, and gets it back
with the answer; from then on it has a template of its own. While that one is in use it tells the
home to remember (HOLD), which else soon forgets for whom it chose. Each of this may be lost: then a
conn is late by a SYN, or at worst chosen anew.
"""

from __future__ import annotations

import struct

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.ipvs.conn import (
    B_AF,
    B_PROTO,
    B_STATE,
    CONTROLLED,
    D_DEST,
    D_LAST_SEEN,
    D_PORTS,
    D_TIMEOUT,
    H_FLAGS,
    ONEWAY,
    TEMPLATE,
    TEMPLATE_PROTO,
    X_CONTROL,
)
from tunlb.ipvs.dest import TEMPLATES, Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.sharding import Sharding
from tunlb.netif import Addresses
from tunlb.packet import ASKED, Packet
from tunlb.peers import Peers

HELD_MS = 60_000  #: a template whose time is over, but which holds conns, is looked at again (IPVS)
HOLD = 0x50  #: first byte of the message that tells a home to remember
#: kind, protocol, first port, dest, for how long (ms), client network, vaddr
_HOLD = struct.Struct(">BBHIIQQQQ")

# What Persistence.template returns instead of a row
NO_DEST = -1
NO_ROW = -2
ELSEWHERE = -3  #: another worker is asked, or answered: the packet goes to its ``owner``

_NO_DEST = cython.declare(cython.int, NO_DEST)
_NO_ROW = cython.declare(cython.int, NO_ROW)
_ELSEWHERE = cython.declare(cython.int, ELSEWHERE)
_ASKED = cython.declare(cython.int, ASKED)
_ANSWERS = cython.declare(cython.int, 65534)  # dests beyond cannot be told of: see tunlb/mailbox.py
_HELD_MS = cython.declare(cython.longlong, HELD_MS)
_TEMPLATES = cython.declare(cython.int, TEMPLATES)
_PROTO = cython.declare(cython.int, TEMPLATE_PROTO)
_FLAGS = cython.declare(cython.int, TEMPLATE | ONEWAY)
_CONTROLLED = cython.declare(cython.int, CONTROLLED)
_CONN_TABLE_FULL = cython.declare(cython.int, DropReason.CONN_TABLE_FULL)
_TEMPLATE_NEW = cython.declare(cython.int, Event.TEMPLATE_NEW)
_TEMPLATE_MOVED = cython.declare(cython.int, Event.TEMPLATE_MOVED)
_TEMPLATE_ASKED = cython.declare(cython.int, Event.TEMPLATE_ASKED)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)

# Words of a row, see ipvs/conn.py.
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_B_AF = cython.declare(cython.longlong, B_AF)
_B_STATE = cython.declare(cython.longlong, B_STATE)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_D_DEST = cython.declare(cython.longlong, D_DEST)
_D_LAST_SEEN = cython.declare(cython.longlong, D_LAST_SEEN)
_D_TIMEOUT = cython.declare(cython.longlong, D_TIMEOUT)
_X_CONTROL = cython.declare(cython.longlong, X_CONTROL)


class Persistence:
    """The templates of one worker. ``peers`` leads to the others; None: there are none."""

    def __init__(self, counters: Counters, life: Life, sharding: Sharding | None) -> None:
        self.counters = counters
        self.life = life
        self.conns = life.conns
        self.sharding = sharding
        self.peers: Peers | None = None

    def template(
        self, pkt: Packet, service: Service, addresses: Addresses, now: cython.longlong
    ) -> cython.int:
        """The row of the template for the conn that ``pkt`` opens, made or renewed, with one more
        conn counted; NO_DEST, NO_ROW or ELSEWHERE. Then :meth:`hold` or :meth:`let_go`.
        """
        conns = self.conns
        assert service.vaddr is not None  # persistence is for what is addressed to one
        hi: cython.ulonglong = pkt.saddr_hi & service.mask_hi
        lo: cython.ulonglong = pkt.saddr & service.mask
        entry: cython.longlong = conns.find(
            hi, lo, service.vaddr[0], service.vaddr[1], self.ports(service), _PROTO
        )
        row: cython.int = entry >> 1
        asker: cython.int = self._asker(pkt, addresses)
        lease_ms: cython.longlong = service.persistence_ms
        if asker >= 0:
            lease_ms = min(lease_ms, 2 * _HELD_MS)  # it will say whether the conn came to anything
        known: cython.bint = False
        if entry >= 0:
            known = self.leads(service, self.life.dests[conns.d[row * 32 + _D_DEST]], now)
        if known:
            self._remember(row, lease_ms, now)
        else:
            if asker < 0 and self._ask(pkt, hi, lo, service):
                return _ELSEWHERE
            dest: Dest | None = self._told(pkt, service, now)
            if dest is None:
                dest = service.scheduler.schedule(pkt, now)
            if dest is None:
                return _NO_DEST
            row = self._point(entry, hi, lo, service, dest, lease_ms, now)
            if row < 0:
                pkt.drop(_CONN_TABLE_FULL)
                return _NO_ROW
        if asker < 0:
            conns.x[row * 16 + _X_CONTROL] += 1
            return row
        pkt.owner = asker
        pkt.chosen = conns.d[row * 32 + _D_DEST]
        if pkt.chosen >= _ANSWERS:
            pkt.chosen = _ASKED  # it has to choose itself
        return _ELSEWHERE

    def ports(self, service: Service) -> cython.uint:
        """Those of the key of a service's templates."""
        return (service.proto << 16) | service.first_port

    def leads(self, service: Service, dest: Dest, now: cython.longlong) -> cython.bint:
        """May a template still send new conns to this dest? Not to one that was removed; to a
        quiescent one while its conns drain, unless the service ends those at once.
        """
        if not dest.available or dest.carried is not service.carried:
            return False  # the second: another service's, which got the number of one that is gone
        return dest.drain_until < 0 or now <= dest.drain_until

    def hold(self, row: cython.longlong, template: cython.longlong) -> None:
        """The conn in ``row`` is held to its dest by ``template``."""
        conns = self.conns
        conns.x[row * 16 + _X_CONTROL] = template
        conns.h[row * 64 + _H_FLAGS] |= _CONTROLLED

    def let_go(self, template: cython.longlong) -> None:
        """The conn for which it was asked could not be made: forget it if it served no other."""
        conns = self.conns
        conns.x[template * 16 + _X_CONTROL] -= 1
        if conns.x[template * 16 + _X_CONTROL] == 0 and conns.b[template * 128 + _B_STATE] == 0:
            self.life.end(template)

    def _remember(
        self, row: cython.longlong, least_ms: cython.longlong, now: cython.longlong
    ) -> None:
        """Keep the template for ``least_ms`` from now on, if not longer."""
        conns = self.conns
        age: cython.longlong = (now - conns.d[row * 32 + _D_LAST_SEEN]) & _MASK32
        left: cython.longlong = conns.d[row * 32 + _D_TIMEOUT] - age
        if left <= least_ms:
            conns.d[row * 32 + _D_LAST_SEEN] = now & _MASK32
            conns.d[row * 32 + _D_TIMEOUT] = least_ms

    def _point(
        self,
        entry: cython.longlong,
        hi: cython.ulonglong,
        lo: cython.ulonglong,
        service: Service,
        dest: Dest,
        lease_ms: cython.longlong,
        now: cython.longlong,
    ) -> cython.int:
        """A template that leads to ``dest`` for ``lease_ms``: the one at ``entry``, or a new one;
        -1 when the table is full.
        """
        conns = self.conns
        assert service.vaddr is not None
        row: cython.int = entry >> 1
        if entry >= 0:
            old: Dest = self.life.dests[conns.d[row * 32 + _D_DEST]]
            old.v[_TEMPLATES] -= 1
            self.counters.add(_TEMPLATE_MOVED, 1)
        else:
            row = self.life.take(now)
            if row < 0:
                return -1
            conns.q[row * 16] = hi
            conns.q[row * 16 + 1] = lo
            conns.q[row * 16 + 2] = service.vaddr[0]
            conns.q[row * 16 + 3] = service.vaddr[1]
            conns.d[row * 32 + _D_PORTS] = self.ports(service)
            conns.b[row * 128 + _B_PROTO] = _PROTO
            conns.b[row * 128 + _B_AF] = dest.af
            conns.h[row * 64 + _H_FLAGS] |= _FLAGS
            conns.x[row * 16 + _X_CONTROL] = 0
            self.counters.add(_TEMPLATE_NEW, 1)
            self.life.templates += 1
        conns.d[row * 32 + _D_DEST] = dest.id
        conns.d[row * 32 + _D_LAST_SEEN] = now & _MASK32
        conns.d[row * 32 + _D_TIMEOUT] = lease_ms
        dest.v[_TEMPLATES] += 1
        if entry < 0:
            conns.link(row)
        self.life.timers.schedule(row, now, self.look_again(row, lease_ms))
        return row

    def look_again(self, row: cython.longlong, left_ms: cython.longlong) -> cython.longlong:
        """In how many ms a template has to be looked at that has ``left_ms`` left."""
        if self.sharding is None:
            return left_ms
        return min(left_ms, _HELD_MS, self.conns.d[row * 32 + _D_TIMEOUT] // 4 + 1)

    # -- between workers

    def _asker(self, pkt: Packet, addresses: Addresses) -> cython.int:
        """The worker that asks by this packet; -1 when it is our own."""
        sharding = self.sharding
        if sharding is None or not pkt.handed or pkt.chosen != _ASKED:
            return -1
        owner: cython.int = sharding.owner(
            addresses,
            pkt.saddr_hi,
            pkt.saddr,
            pkt.sport,
            pkt.daddr_hi,
            pkt.daddr,
            pkt.dport,
        )
        return -1 if owner == sharding.worker else owner

    def _ask(
        self, pkt: Packet, hi: cython.ulonglong, lo: cython.ulonglong, service: Service
    ) -> cython.bint:
        """Send the packet to the home of the client's network, with the question; False when that
        is here, or it has been there.
        """
        sharding = self.sharding
        if sharding is None or (pkt.handed and pkt.chosen != -1):
            return False
        home: cython.int = sharding.by_endpoint(hi, lo, service.first_port)
        if home == sharding.worker:
            return False
        pkt.owner = home
        pkt.handed = True
        pkt.chosen = _ASKED
        self.counters.add(_TEMPLATE_ASKED, 1)
        return True

    def _told(self, pkt: Packet, service: Service, now: cython.longlong) -> Dest | None:
        """What the home chose, where it makes sense."""
        if not pkt.handed or pkt.chosen < 0:
            return None
        return self._trusted(service, pkt.chosen, now)

    def _trusted(self, service: Service, index: cython.int, now: cython.longlong) -> Dest | None:
        """The dest that another worker named, if the service has it."""
        if index >= len(self.life.dests):
            return None
        dest: Dest = self.life.dests[index]
        return dest if dest.id == index and self.leads(service, dest, now) else None

    def remind(self, row: cython.longlong, left_ms: cython.longlong, now: cython.longlong) -> None:
        """Tell the home for how long to remember a template that came to something."""
        sharding = self.sharding
        peers = self.peers
        conns = self.conns
        held: cython.bint = conns.x[row * 16 + _X_CONTROL] != 0
        if sharding is None or peers is None or not (held or conns.b[row * 128 + _B_STATE] != 0):
            return
        hi: cython.ulonglong = conns.q[row * 16]
        lo: cython.ulonglong = conns.q[row * 16 + 1]
        ports: cython.uint = conns.d[row * 32 + _D_PORTS]
        home: cython.int = sharding.by_endpoint(hi, lo, ports & 0xFFFF)
        if home == sharding.worker:
            return
        if held:
            left_ms = max(left_ms, 2 * _HELD_MS)
        message = _HOLD.pack(
            HOLD,
            ports >> 16,
            ports & 0xFFFF,
            conns.d[row * 32 + _D_DEST],
            left_ms,
            hi,
            lo,
            conns.q[row * 16 + 2],
            conns.q[row * 16 + 3],
        )
        peers.put(home, message)

    def hear(self, message: bytes, services: ServiceTable, now: int) -> None:
        """What another worker tells us, the home; what makes no sense is ignored."""
        if len(message) != _HOLD.size or message[0] != HOLD:
            return
        _, proto, first_port, index, left_ms, hi, lo, vaddr_hi, vaddr = _HOLD.unpack(message)
        service = services.lookup(proto, vaddr_hi, vaddr, first_port)
        if service is None or service.first_port != first_port or not service.persistence_ms:
            return
        if hi & service.mask_hi != hi or lo & service.mask != lo:
            return
        if (service.af == 4) != (hi == 0 and lo >> 32 == 0xFFFF):
            return
        if index >= len(self.life.dests):  # may be more than a C int holds
            return
        dest = self._trusted(service, index, now)
        if dest is None:
            return
        conns = self.conns
        lease_ms = min(left_ms, max(service.persistence_ms, 2 * HELD_MS))
        entry = conns.find(hi, lo, vaddr_hi, vaddr, self.ports(service), TEMPLATE_PROTO)
        row = entry >> 1
        if entry >= 0 and self.leads(service, self.life.dests[conns.d[row * 32 + D_DEST]], now):
            self._remember(row, lease_ms, now)
        elif lease_ms > 0:
            row = self._point(entry, hi, lo, service, dest, lease_ms, now)
        if row >= 0:
            conns.b[row * 128 + B_STATE] = 1
