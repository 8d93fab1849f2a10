"""wrr: interleaved weighted round robin (IPVS: ip_vs_wrr).

A level falls by the weights' greatest common divisor after every turn around the list, from the
highest weight to above zero; a turn picks every dest whose weight reaches the level. Weights 4, 2
and 1 give a, a, ab, abc.
"""

from __future__ import annotations

import math

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sched.rr import RoundRobin
from tunlb.packet import Packet


class WeightedRoundRobin(RoundRobin):
    """``level`` is the weight that a pick needs at this turn; at or below 0 a new cycle begins."""

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        super().__init__(seed, table_size)
        self.level = 0
        self.gcd = 1

    def update(self, dests: list[Dest]) -> None:
        """Keep place and level; a level that no weight reaches any more falls at once."""
        super().update(dests)
        if self.place < 0 or self.level <= 0:
            # nothing picked yet: the next step begins a cycle
            self.place = len(dests) - 1
            self.level = 0
        self.gcd = max(1, math.gcd(*[dest.weight for dest in dests]))

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        dests = self.dests
        n: cython.int = len(dests)
        i: cython.int = self.place
        step: cython.int
        highest: cython.int
        # Two turns suffice: after one without a pick the level falls to what valid dests reach.
        for step in range(2 * n):
            i += 1
            if i >= n:
                i = 0
                self.level -= self.gcd
                if self.level <= 0:
                    self.level = self.highest()
            dest = dests[i]
            if dest.weight >= self.level and dest.valid():
                self.place = i
                return dest
            if step == n - 1:
                highest = self.highest()
                if highest == 0:
                    break
                if self.level > highest:
                    self.level = highest
        return None

    def highest(self) -> cython.int:
        """The highest weight of a valid dest; 0 when none is valid."""
        highest: cython.int = 0
        for dest in self.dests:
            if dest.weight > highest and dest.valid():
                highest = dest.weight
        return highest


SCHEDULER = WeightedRoundRobin
