"""nq: never queue, the first valid dest without an active conn; when each has one, sed (IPVS:
ip_vs_nq).
"""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs.sched.sed import soonest
else:
    from tunlb.ipvs.sched.sed import soonest


class NeverQueue(Scheduler):
    """An idle dest is taken before a faster one that is busy."""

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        for dest in self.dests:
            if dest.active() == 0 and dest.valid():
                return dest
        return soonest(self.dests)


SCHEDULER = NeverQueue
