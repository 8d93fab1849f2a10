"""sed: shortest expected delay, the least (active + 1) / weight (IPVS: ip_vs_sed).

That is the delay of the conn to come, if it waits for those before it and the weight is the dest's
speed. Inactive conns do not count, so among UDP flows the highest weight always wins.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


def soonest(dests: list[Dest]) -> Dest | None:
    """The first valid one with the shortest expected delay, None when none is valid.

    Quotients are compared as products, so nothing is rounded.
    """
    found: Dest | None = None
    found_delay: cython.longlong = 0
    found_weight: cython.longlong = 0
    delay: cython.longlong
    for dest in dests:
        if dest.valid():
            delay = dest.active() + 1
            if found is None or delay * found_weight < found_delay * dest.weight:
                found = dest
                found_delay = delay
                found_weight = dest.weight
    return found


class ShortestExpectedDelay(Scheduler):
    """The first of equals wins."""

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        return soonest(self.dests)


SCHEDULER = ShortestExpectedDelay
