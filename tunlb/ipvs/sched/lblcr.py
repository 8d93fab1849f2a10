"""lblcr: lblc with replication, one destination address a few dests (IPVS: ip_vs_lblcr).

A destination has a set of dests, and a conn goes to the one of them that wlc would choose. When
that one is overloaded, as in lblc, the dest that wlc chooses among all joins the set. A set that
did not change for long loses its busiest dest: what was much in demand yesterday needs no copies
today.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sched.lblc import Entry, LocalityLeastConn

if cython.compiled:
    from cython.cimports.tunlb.ipvs.sched.wlc import least
else:
    from tunlb.ipvs.sched.wlc import least

REPLICAS = 64  #: dests of one destination; the busiest makes room
SHRINK_MS = 24 * 3_600_000  #: a set that did not change for so long loses its busiest dest

_REPLICAS = cython.declare(cython.Py_ssize_t, REPLICAS)
_SHRINK_MS = cython.declare(cython.longlong, SHRINK_MS)


def busiest(dests: list[Dest]) -> Dest:
    """The last one with the most overhead for its weight; a quiescent one that has conns is above
    all. ``dests`` are not empty.
    """
    found: Dest = dests[0]
    for dest in dests:
        if dest.overhead() * found.weight >= found.overhead() * dest.weight:
            found = dest
    return found


class ReplicatedLocality(LocalityLeastConn):
    """Its entries have several dests."""

    def known(self, entry: Entry, now: cython.longlong) -> Dest | None:
        if len(entry.dests) > 1 and now - entry.changed > _SHRINK_MS:
            entry.dests.remove(busiest(entry.dests))
            entry.changed = now
        return least(entry.dests)

    def learn(self, entry: Entry, dest: Dest, now: cython.longlong) -> None:
        if dest in entry.dests:
            return
        # Removed dests would never come out of the set otherwise.
        entry.dests = [other for other in entry.dests if other.available]
        if len(entry.dests) >= _REPLICAS:
            entry.dests.remove(busiest(entry.dests))
        entry.dests.append(dest)
        entry.changed = now


SCHEDULER = ReplicatedLocality
