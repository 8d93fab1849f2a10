"""wlc: the valid dest with the least overhead for its weight (IPVS: ip_vs_wlc)."""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


def least(dests: list[Dest]) -> Dest | None:
    """The first valid one with the least overhead for its weight, None when none is valid.

    Quotients are compared as products, so nothing is rounded.
    """
    found: Dest | None = None
    found_overhead: cython.longlong = 0
    found_weight: cython.longlong = 0
    overhead: cython.longlong
    for dest in dests:
        if dest.valid():
            overhead = dest.overhead()
            if found is None or overhead * found_weight < found_overhead * dest.weight:
                found = dest
                found_overhead = overhead
                found_weight = dest.weight
    return found


class WeightedLeastConn(Scheduler):
    """The first of equals wins."""

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        return least(self.dests)


SCHEDULER = WeightedLeastConn
