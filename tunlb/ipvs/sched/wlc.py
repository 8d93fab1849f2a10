"""wlc: the valid dest with the least overhead for its weight (IPVS: ip_vs_wlc)."""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


class WeightedLeastConn(Scheduler):
    """The first of equals wins. Quotients are compared as products, so nothing is rounded."""

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        least: Dest | None = None
        least_overhead: cython.longlong = 0
        least_weight: cython.longlong = 0
        overhead: cython.longlong
        for dest in self.dests:
            if dest.valid():
                overhead = dest.overhead()
                if least is None or overhead * least_weight < least_overhead * dest.weight:
                    least = dest
                    least_overhead = overhead
                    least_weight = dest.weight
        return least


SCHEDULER = WeightedLeastConn
