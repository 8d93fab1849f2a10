"""lblc: locality-based least connection, one destination address one dest while that one keeps up
(IPVS: ip_vs_lblc).

For caches: a destination keeps the dest that wlc chose for it. It gets another by wlc when that one
is not valid any more, or is overloaded: more active conns than its weight, while some valid dest
has less than half of its own.
"""

from __future__ import annotations

from collections import OrderedDict

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs.sched.wlc import least
else:
    from tunlb.ipvs.sched.wlc import least

ENTRIES = 16384  #: destinations that a service remembers; the one not asked for longest makes room
IDLE_MS = 24 * 3_600_000  #: a destination that nobody asked for so long is chosen for anew

_ENTRIES = cython.declare(cython.Py_ssize_t, ENTRIES)
_IDLE_MS = cython.declare(cython.longlong, IDLE_MS)


def overloaded(dest: Dest, dests: list[Dest]) -> cython.bint:
    """Has it too many conns, and would another of ``dests`` hardly feel one more?"""
    active: cython.longlong = dest.active()
    if active <= dest.weight:
        return False
    for other in dests:
        active = other.active()
        if active * 2 < other.weight and other.valid():
            return True
    return False


class Entry:
    """What is remembered of a destination: its ``dests``, when it was last asked for, and when its
    dests last ``changed`` (ms).
    """

    def __init__(self, now: int) -> None:
        self.dests: list[Dest] = []
        self.used = now
        self.changed = now


class LocalityLeastConn(Scheduler):
    """``table`` has an Entry for each destination address, the one asked for last at its end.

    Removed dests stay in it until somebody asks: they are not available, so never picked.
    """

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        super().__init__(seed, table_size)
        self.table: OrderedDict[tuple[int, int], Entry] = OrderedDict()

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        entry = self.entry(pkt, now)
        dest = self.known(entry, now)
        if dest is not None and not overloaded(dest, self.dests):
            return dest
        dest = least(self.dests)
        if dest is not None:
            self.learn(entry, dest, now)
        return dest

    def entry(self, pkt: Packet, now: cython.longlong) -> Entry:
        """The entry of the packet's destination, a new one if need be."""
        key = (pkt.daddr_hi, pkt.daddr)
        entry: Entry | None = self.table.get(key)
        if entry is None and len(self.table) >= _ENTRIES:
            self.table.popitem(last=False)
        if entry is None or now - entry.used > _IDLE_MS:
            entry = Entry(now)
            self.table[key] = entry
        self.table.move_to_end(key)
        entry.used = now
        return entry

    def known(self, entry: Entry, now: cython.longlong) -> Dest | None:
        """The dest to go on with, None when there is none or it is not valid."""
        return least(entry.dests)

    def learn(self, entry: Entry, dest: Dest, now: cython.longlong) -> None:
        """``dest`` was chosen for this destination."""
        entry.dests = [dest]


SCHEDULER = LocalityLeastConn
