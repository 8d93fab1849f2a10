"""mh: Maglev consistent hashing by source address (IPVS: ip_vs_mh, always with mh-fallback).

Eisenbud et al., "Maglev", NSDI 2016, section 3.4: every dest has its own permutation of the table's
slots, drawn from a keyed hash of its address and port, and the dests take turns to claim their next
free slot. A dest that goes leaves the others nearly all their slots. Nothing depends on the order
of the configuration, so directors with one seed and one set of dests pick alike.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

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
PROBES = 8192  #: slots looked at in one piece of work: some 20 us compiled, 2 ms uncompiled

_REHASHES = cython.declare(cython.uint, REHASHES)
_PROBES = cython.declare(cython.int, PROBES)
_PIECE = cython.declare(cython.int, 64)  # dests hashed in one piece of work


def prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))


class Population:
    """A table while the dests in ``order`` take turns to claim its slots.

    ``words`` are three a dest: the next slot it wants, its skip, its slots a turn. ``table`` holds
    indices into ``order``, plus 1.
    """

    def __init__(self, order: list[Dest], words: array[int], size: int) -> None:
        self.order = order
        self.size = size
        self.table = memoryview(bytearray(2 * size)).cast("H")
        self._words = words
        self._left = size
        self._dest = 0  # whose turn it is
        if cython.compiled:
            slots: cython.ushort[::1] = self.table
            self.t = cython.address(slots[0])
            view: cython.uint[::1] = words
            self._w = cython.address(view[0])
        else:
            self.t = self.table
            self._w = words

    def grow(self) -> cython.bint:
        """Look at about PROBES slots; False when each has its dest."""
        t = self.t
        w = self._w
        n: cython.int = len(self.order)
        size: cython.uint = self.size
        left: cython.uint = self._left
        probes: cython.int = _PROBES
        i: cython.int = self._dest
        slot: cython.uint
        skip: cython.uint
        while probes > 0:
            slot = w[3 * i]
            skip = w[3 * i + 1]
            for _ in range(w[3 * i + 2]):
                probes -= 1
                while t[slot] != 0:
                    slot += skip
                    probes -= 1
                    if slot >= size:
                        slot -= size
                t[slot] = i + 1
                left -= 1
                if left == 0:
                    return False
            w[3 * i] = slot
            i += 1
            if i == n:
                i = 0
        self._left = left
        self._dest = i
        return True


class Prepared(NamedTuple):
    """What an update with the list ``dests`` takes over; ``grown`` is None when the table stays."""

    dests: list[Dest]
    order: list[Dest]
    recipe: bytes
    grown: Population | None


class MaglevHash(Scheduler):
    """``order`` holds the dests that have slots, by hash; ``table`` is a Population's, made of
    ``recipe``: who has the same needs no other.
    """

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        if not prime(table_size):
            raise ValueError(f"mh: table_size {table_size} is not a prime, such as 4093 or 65537")
        super().__init__(seed, table_size)
        self.order: list[Dest] = []
        self.table = memoryview(bytearray(0))
        self.recipe = b""
        self._prepared: Prepared | None = None

    def digest(self, dest: Dest) -> bytes:
        """What a dest's permutation and its place in ``order`` follow from: 16 bytes."""
        name = b"".join(
            number.to_bytes(8, "big") for number in (dest.daddr_hi, dest.daddr, dest.dport)
        )
        return blake2b(name, digest_size=16, key=self.seed.to_bytes(8, "big")).digest()

    def prepare(self, dests: list[Dest], weights: list[int]) -> Iterator[None]:
        hashed: dict[bytes, tuple[Dest, int]] = {}
        for count, dest in enumerate(dests):
            if weights[count] > 0:
                hashed[self.digest(dest)] = (dest, weights[count])
            if count % _PIECE == _PIECE - 1:
                yield
        digests = sorted(hashed)[:MAX_DESTS]
        given = [hashed[digest][1] for digest in digests]
        gcd = math.gcd(*given)
        shift = max(0, (max(given, default=0) // max(1, gcd)).bit_length() - TURN_BITS)
        words = array("I")
        for count, digest in enumerate(digests):
            words.append(int.from_bytes(digest[:8], "big") % self.table_size)
            words.append(int.from_bytes(digest[8:], "big") % (self.table_size - 1) + 1)
            words.append(max(1, (given[count] // gcd) >> shift))
            if count % _PIECE == _PIECE - 1:
                yield
        order = [hashed[digest][0] for digest in digests]
        recipe = words.tobytes()
        grown = None
        if order and recipe != self.recipe:
            grown = Population(order, words, self.table_size)
            while grown.grow():
                yield
        self._prepared = Prepared(dests, order, recipe, grown)

    def update(self, dests: list[Dest]) -> None:
        if self._prepared is None or self._prepared.dests is not dests:
            for _ in self.prepare(dests, [dest.weight for dest in dests]):
                pass
        prepared = self._prepared
        assert prepared is not None
        self._prepared = None
        self.dests = dests
        self.order = prepared.order
        grown: Population | None = prepared.grown
        if grown is not None:
            self.recipe = prepared.recipe
            self.table = grown.table
            self.t = grown.t

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
