"""mh: Maglev consistent hashing by source address (IPVS: ip_vs_mh, always with mh-fallback).

Eisenbud et al., "Maglev", NSDI 2016, section 3.4: every dest has its own permutation of the table's
slots, drawn from a keyed hash of its address and port, and the dests take turns to claim their next
free slot. A dest that goes leaves the others nearly all their slots. Nothing depends on the order
of the configuration, so directors with one seed and one set of dests pick alike.
"""

from __future__ import annotations

import math
from array import array
from hashlib import blake2b

import cython

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs.sched.sh import source_hash
else:
    from tunlb.ipvs.sched.sh import source_hash

MAX_DESTS = 65535  #: that get slots: a slot is 16 bits; 0 = free
TURN_BITS = (
    6  #: at most 2**6 - 1 slots in a row, as in IPVS: finer weights would starve the others' turns
)
REHASHES = 32  #: tries to find a valid dest in another slot, before the valid ones are listed

_REHASHES = cython.declare(cython.uint, REHASHES)


def prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))


class MaglevHash(Scheduler):
    """``order`` holds the dests that have slots, by hash; ``table`` indices into it, plus 1."""

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        if not prime(table_size):
            raise ValueError(f"mh: table_size {table_size} is not a prime, such as 4093 or 65537")
        super().__init__(seed, table_size)
        self.order: list[Dest] = []
        self.table = memoryview(bytearray(0))

    def digest(self, dest: Dest) -> bytes:
        """What a dest's permutation and its place in ``order`` follow from: 16 bytes."""
        name = b"".join(
            number.to_bytes(8, "big") for number in (dest.daddr_hi, dest.daddr, dest.dport)
        )
        return blake2b(name, digest_size=16, key=self.seed.to_bytes(8, "big")).digest()

    def update(self, dests: list[Dest]) -> None:
        self.dests = dests
        hashed = {self.digest(dest): dest for dest in dests if dest.weight > 0}
        digests = sorted(hashed)[:MAX_DESTS]
        self.order = [hashed[digest] for digest in digests]
        if not digests:
            return
        weights = [dest.weight for dest in self.order]
        gcd = math.gcd(*weights)
        shift = max(0, (max(weights) // gcd).bit_length() - TURN_BITS)
        work = array("I")
        for digest in digests:
            work.append(int.from_bytes(digest[:8], "big") % self.table_size)
            work.append(int.from_bytes(digest[8:], "big") % (self.table_size - 1) + 1)
            work.append(max(1, (hashed[digest].weight // gcd) >> shift))
        self.fill(work, len(self.order))

    def fill(self, work: array[int], n: cython.int) -> cython.int:
        """Build ``table`` from three words a dest: the next slot it wants, its skip, its turns."""
        self.table = memoryview(bytearray(2 * self.table_size)).cast("H")
        if cython.compiled:
            slots: cython.ushort[::1] = self.table
            self.t = cython.address(slots[0])
            view: cython.uint[::1] = work
            w = cython.address(view[0])
        else:
            self.t = self.table
            w = work
        t = self.t
        size: cython.uint = self.table_size
        left: cython.uint = size
        i: cython.int
        slot: cython.uint
        skip: cython.uint
        while True:
            for i in range(n):
                slot = w[3 * i]
                skip = w[3 * i + 1]
                for _ in range(w[3 * i + 2]):
                    while t[slot] != 0:
                        slot += skip
                        if slot >= size:
                            slot -= size
                    t[slot] = i + 1
                    left -= 1
                    if left == 0:
                        return 0
                w[3 * i] = slot

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        order = self.order
        if not order:
            return None
        size: cython.ulonglong = self.table_size
        offset: cython.uint
        for offset in range(_REHASHES):
            dest = order[self.t[source_hash(self.seed, pkt, offset) % size] - 1]
            if dest.valid():
                return dest
        valid = [dest for dest in order if dest.valid()]
        if not valid:
            return None
        n: cython.ulonglong = len(valid)
        return valid[source_hash(self.seed, pkt, _REHASHES) % n]


SCHEDULER = MaglevHash
