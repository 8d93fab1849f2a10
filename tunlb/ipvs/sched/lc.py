"""lc: the valid dest with the least overhead, 256 x active + inactive conns (IPVS: ip_vs_lc)."""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


class LeastConn(Scheduler):
    """The first of equals wins."""

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        least: Dest | None = None
        least_overhead: cython.longlong = 0
        overhead: cython.longlong
        for dest in self.dests:
            if dest.valid():
                overhead = dest.overhead()
                if least is None or overhead < least_overhead:
                    least = dest
                    least_overhead = overhead
        return least


SCHEDULER = LeastConn
