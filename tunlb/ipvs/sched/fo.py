"""fo: failover, the valid dest of the highest weight (IPVS: ip_vs_fo).

The others stand by, each weight for the case that all above it are full, quiescent or away.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


class Failover(Scheduler):
    """The first of equals wins."""

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        highest: Dest | None = None
        weight: cython.int = 0
        for dest in self.dests:
            if dest.weight > weight and dest.valid():
                highest = dest
                weight = dest.weight
        return highest


SCHEDULER = Failover
