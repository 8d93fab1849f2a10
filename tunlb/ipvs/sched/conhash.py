"""conhash: consistent hashing by source address on a ring (DPVS: ip_vs_conhash; ketama).

Every dest has 160 points on the ring for each unit of weight / gcd of the weights, at places drawn
from a keyed hash of its address and port. A client belongs to the first point at or after its own
hash whose dest is valid. So a dest that goes, is full or becomes quiescent moves its own clients
and no others, and a dest that comes takes some from each. Nothing depends on the order of the
configuration, so directors with one seed and one set of dests pick alike.

Karger et al., "Consistent Hashing and Random Trees", STOC 1997. `mh` spreads more evenly and looks
up faster; it moves a few of the others' clients.
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

POINTS = 160  #: of a dest, for each unit of its weight
RING = 262144  #: points of a service; beyond, all dests have proportionally fewer, at least one
MAX_DESTS = 65535  #: that get points: a point's word has 16 bits for its dest
STEPS = 1024  #: points passed over to find a valid dest, before the valid ones are listed

_STEPS = cython.declare(cython.int, STEPS)
_PIECE = cython.declare(cython.int, 64)  # points made, or lists sorted, in one piece of work
_PLACE_BYTES = 6  # of a point: the upper 48 bits of its word, below which is its dest
_DIGEST_BYTES = 60  # ten places


class Recipe(NamedTuple):
    """What a ring follows from: the dests' names in the order of their numbers on it, and how many
    points each has.
    """

    names: tuple[bytes, ...]
    points: tuple[int, ...]


class Prepared(NamedTuple):
    """What an update with the list ``dests`` takes over; ``ring`` is None when it stays."""

    dests: list[Dest]
    order: list[Dest]
    recipe: Recipe
    ring: array[int] | None


def name_of(dest: Dest) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in (dest.daddr_hi, dest.daddr, dest.dport))


def shares(weights: list[int]) -> tuple[int, ...]:
    """How many points dests of these weights have. None of them is 0."""
    gcd = math.gcd(*weights)
    points = [POINTS * (weight // gcd) for weight in weights]
    total = sum(points)
    if total > RING:
        points = [max(1, count * RING // total) for count in points]
    return tuple(points)


class ConsistentHash(Scheduler):
    """``ring`` holds a word a point, sorted: its place, and the number of its dest in ``order``."""

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        super().__init__(seed, table_size)
        self.order: list[Dest] = []
        self.recipe = Recipe((), ())
        self._prepared: Prepared | None = None
        self._use(array("Q", [0]))

    def words(self, name: bytes, number: int, points: int) -> Iterator[int]:
        """The ring's words for one dest. More weight adds points, the others stay in place."""
        key = self.seed.to_bytes(8, "big")
        left = points
        block = 0
        while left > 0:
            source = name + block.to_bytes(4, "big")
            digest = blake2b(source, digest_size=_DIGEST_BYTES, key=key).digest()
            for at in range(0, _DIGEST_BYTES, _PLACE_BYTES)[:left]:
                yield int.from_bytes(digest[at : at + _PLACE_BYTES], "big") << 16 | number
            left -= _DIGEST_BYTES // _PLACE_BYTES
            block += 1

    def prepare(self, dests: list[Dest], weights: list[int]) -> Iterator[None]:
        named: dict[bytes, tuple[Dest, int]] = {}
        for count, dest in enumerate(dests):
            if weights[count] > 0:
                named[name_of(dest)] = (dest, weights[count])
            if count % _PIECE == _PIECE - 1:
                yield
        names = tuple(sorted(named)[:MAX_DESTS])
        recipe = Recipe(names, shares([named[name][1] for name in names]) if names else ())
        order = [named[name][0] for name in names]
        ring = None
        if names and recipe != self.recipe:
            ring = array("Q")
            yield from self._fill(ring, recipe)
        self._prepared = Prepared(dests, order, recipe, ring)

    def _fill(self, ring: array[int], recipe: Recipe) -> Iterator[None]:
        """Sort all words into ``ring``: by their upper bits into short lists first, so that no
        piece of work is long.
        """
        bits = (sum(recipe.points) // 32).bit_length()
        lists: list[list[int]] = []
        for count in range(1 << bits):
            lists.append([])
            if count % _PIECE == _PIECE - 1:
                yield
        made = 0
        for number, name in enumerate(recipe.names):
            for word in self.words(name, number, recipe.points[number]):
                lists[word >> (64 - bits)].append(word)
                made += 1
                if made % _PIECE == 0:
                    yield
        lists.reverse()
        while lists:
            words = lists.pop()
            words.sort()
            ring.extend(words)
            if len(lists) % 8 == 0:
                yield

    def update(self, dests: list[Dest]) -> None:
        if self._prepared is None or self._prepared.dests is not dests:
            for _ in self.prepare(dests, [dest.weight for dest in dests]):
                pass
        prepared = self._prepared
        assert prepared is not None
        self._prepared = None
        self.dests = dests
        self.order = prepared.order
        if prepared.ring is not None:
            self.recipe = prepared.recipe
            self._use(prepared.ring)

    def _use(self, ring: array[int]) -> None:
        self.ring = ring
        self._size = len(ring)
        if cython.compiled:
            view: cython.ulonglong[::1] = ring
            self._w = cython.address(view[0])
        else:
            self._w = ring

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        order = self.order
        if not order:
            return None
        wanted: cython.ulonglong = source_hash(self.seed, pkt, 0)
        at: cython.int = self.after(wanted)
        w = self._w
        for _ in range(_STEPS):
            if at >= self._size:
                at = 0
            dest = order[w[at] & 0xFFFF]
            if dest.valid():
                return dest
            at += 1
        valid = [dest for dest in order if dest.valid()]
        if not valid:
            return None
        n: cython.ulonglong = len(valid)
        return valid[wanted % n]

    def after(self, wanted: cython.ulonglong) -> cython.int:
        """The index of the first point at or after a hash; the ring's size when there is none."""
        w = self._w
        low: cython.int = 0
        high: cython.int = self._size
        middle: cython.int
        while low < high:
            middle = (low + high) >> 1
            if w[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        return low


SCHEDULER = ConsistentHash
