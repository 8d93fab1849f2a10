"""rr: the next valid dest after the last one; weights count as zero or not (IPVS: ip_vs_rr)."""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet


class RoundRobin(Scheduler):
    """``place`` is the index of the last pick in ``dests``, -1 before the first."""

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        super().__init__(seed, table_size)
        self.place = -1

    def update(self, dests: list[Dest]) -> None:
        """Go on after the last pick, or after the nearest one before it that is still there."""
        index = {dest: i for i, dest in enumerate(dests)}
        passed = self.dests[: self.place + 1]
        self.place = -1
        for dest in passed:
            self.place = index.get(dest, self.place)
        self.dests = dests

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        dests = self.dests
        n: cython.int = len(dests)
        i: cython.int = self.place
        for _ in range(n):
            i += 1
            if i >= n:
                i = 0
            dest = dests[i]
            if dest.valid():
                self.place = i
                return dest
        return None


SCHEDULER = RoundRobin
