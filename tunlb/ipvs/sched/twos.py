"""twos: the power of two choices (IPVS: ip_vs_twos).

Two valid dests are drawn, each with a probability that is its share of the weights; the one with
the smaller overhead / weight gets the conn, the first one when they are equal. Nearly as even as
wlc (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001), and directors
that do not know each other's loads do not all run to one dest.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet

_MASK64 = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
# SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
_STEP = cython.declare(cython.ulonglong, 0x9E37_79B9_7F4A_7C15)
_MIX1 = cython.declare(cython.ulonglong, 0xBF58_476D_1CE4_E5B9)
_MIX2 = cython.declare(cython.ulonglong, 0x94D0_49BB_1331_11EB)


class PowerOfTwo(Scheduler):
    """``state`` is the generator's; it begins with the seed, so a run can be repeated."""

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        super().__init__(seed, table_size)
        self.state = seed

    def draw(self) -> cython.ulonglong:
        """The next 64 bits of the sequence."""
        self.state = (self.state + _STEP) & _MASK64
        z: cython.ulonglong = self.state
        z = ((z ^ (z >> 30)) * _MIX1) & _MASK64
        z = ((z ^ (z >> 27)) * _MIX2) & _MASK64
        return z ^ (z >> 31)

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        total: cython.ulonglong = 0
        for dest in self.dests:
            if dest.valid():
                total += dest.weight
        if total == 0:
            return None
        drawn: cython.ulonglong = self.draw()
        # A 32-bit number times the total is below 2**64: 65535 dests of weight 65535 at most.
        first = self.at(((drawn & _MASK32) * total) >> 32)
        second = self.at(((drawn >> 32) * total) >> 32)
        if second.overhead() * first.weight < first.overhead() * second.weight:
            return second
        return first

    def at(self, place: cython.longlong) -> Dest:
        """The valid dest that ``place`` falls on when their weights lie end to end."""
        last: Dest | None = None
        for dest in self.dests:
            if dest.valid():
                last = dest
                place -= dest.weight
                if place < 0:
                    break
        assert last is not None
        return last


SCHEDULER = PowerOfTwo
