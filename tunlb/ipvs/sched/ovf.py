"""ovf: overflow, the highest weight among the valid dests that have no more active conns than their
weight (IPVS: ip_vs_ovf).

A weight is a capacity here: one dest fills up before the next gets anything. When all are above
theirs there is no dest. Inactive conns do not count, so UDP flows never overflow.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


class Overflow(Scheduler):
    """The first of equals wins."""

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        highest: Dest | None = None
        weight: cython.int = 0
        active: cython.longlong
        for dest in self.dests:
            if dest.weight > weight and dest.valid():
                active = dest.active()
                if active <= dest.weight:
                    highest = dest
                    weight = dest.weight
        return highest


SCHEDULER = Overflow
