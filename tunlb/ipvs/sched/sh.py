"""sh: source hashing, one client address one dest (IPVS: ip_vs_sh, always with sh-fallback).

256 buckets are dealt to the dests in turn, to each as many in a row as its weight. Unlike IPVS the
hash is keyed, so that clients cannot choose their dest, and weights are divided by their greatest
common divisor and scaled to fit, so that 300 to 100 means three to one.
"""

from __future__ import annotations

import math

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet

BUCKETS = 256
REHASHES = 32  #: tries to find a valid dest by another hash, before the valid ones are listed

_BUCKETS = cython.declare(cython.int, BUCKETS)
_REHASHES = cython.declare(cython.uint, REHASHES)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
# Odd 64-bit constants with well-mixed bits: the golden ratio's, and those of the MurmurHash3
# finalizer.
_STEP = cython.declare(cython.ulonglong, 0x9E37_79B9_7F4A_7C15)
_MIX1 = cython.declare(cython.ulonglong, 0xFF51_AFD7_ED55_8CCD)
_MIX2 = cython.declare(cython.ulonglong, 0xC4CE_B9FE_1A85_EC53)


def address_hash(
    seed: cython.ulonglong, hi: cython.ulonglong, lo: cython.ulonglong, offset: cython.uint
) -> cython.ulonglong:
    """64 bits of an address, keyed by ``seed``; another ``offset`` is another hash."""
    step: cython.ulonglong = offset
    h: cython.ulonglong = (seed + step * _STEP) & _MASK64
    h = ((h ^ hi) * _MIX1) & _MASK64
    h ^= h >> 32
    # The key comes in again here, or what it does to the high half could be undone in the low half.
    h = ((h ^ lo ^ seed) * _MIX2) & _MASK64
    h ^= h >> 33
    h = (h * _MIX1) & _MASK64
    h ^= h >> 33
    h = (h * _MIX2) & _MASK64
    return h ^ (h >> 33)


def source_hash(seed: cython.ulonglong, pkt: Packet, offset: cython.uint) -> cython.ulonglong:
    return address_hash(seed, pkt.saddr_hi, pkt.saddr, offset)


class SourceHash(Scheduler):
    """``table`` holds one dest a bucket, and is empty when every weight is 0."""

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        super().__init__(seed, table_size)
        self.table: list[Dest] = []

    def update(self, dests: list[Dest]) -> None:
        self.dests = dests
        weighted = [dest for dest in dests if dest.weight > 0]
        if not weighted:
            self.table = []
            return
        gcd = math.gcd(*[dest.weight for dest in weighted])
        turns = [dest.weight // gcd for dest in weighted]
        total = sum(turns)
        if total > BUCKETS:
            turns = [max(1, turn * BUCKETS // total) for turn in turns]
        dealt = [dest for dest, turn in zip(weighted, turns, strict=True) for _ in range(turn)]
        self.table = (dealt * (BUCKETS // len(dealt) + 1))[:BUCKETS]

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        table = self.table
        if not table:
            return None
        offset: cython.uint
        for offset in range(_REHASHES):
            dest = table[source_hash(self.seed, pkt, offset) % _BUCKETS]
            if dest.valid():
                return dest
        valid = [dest for dest in self.dests if dest.valid()]
        if not valid:
            return None
        n: cython.ulonglong = len(valid)
        return valid[source_hash(self.seed, pkt, _REHASHES) % n]


SCHEDULER = SourceHash
