"""Look-ups over addresses, so that no check compares every line with every other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from tunlb.conf.values import AddressRange, IPAddress, IPNetwork

_T = TypeVar("_T")


class Prefixes(Generic[_T]):
    """Longest-prefix match over both families: one dict a prefix length."""

    def __init__(self) -> None:
        self._tables: dict[tuple[int, int], dict[int, tuple[IPNetwork, _T]]] = {}
        self._lengths: dict[int, list[int]] = {4: [], 6: []}

    def add(self, network: IPNetwork, value: _T) -> _T:
        """Keeps the first value of a network and returns it."""
        key = network.version, network.prefixlen
        if key not in self._tables:
            self._tables[key] = {}
            self._lengths[network.version].append(network.prefixlen)
            self._lengths[network.version].sort(reverse=True)
        slot = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        return self._tables[key].setdefault(slot, (network, value))[1]

    def find(self, address: IPAddress) -> tuple[IPNetwork, _T] | None:
        number = int(address)
        for length in self._lengths[address.version]:
            slot = number >> (address.max_prefixlen - length)
            found = self._tables[address.version, length].get(slot)
            if found is not None:
                return found
        return None


class Spans(Generic[_T]):
    """Disjoint or nested address ranges, each with a value, for `which of them is in here?`."""

    def __init__(self, spans: Iterable[tuple[AddressRange, _T]]) -> None:
        ordered = sorted(
            ((span[0].version, int(span[0]), int(span[1]), value) for span, value in spans),
            key=lambda item: item[:2],
        )
        self._starts = [item[:2] for item in ordered]
        # The furthest end up to each span, and whose it is: an earlier span may be longer.
        self._reach: list[tuple[int, int, _T]] = []
        for version, _, last, value in ordered:
            if self._reach and self._reach[-1][:2] >= (version, last):
                self._reach.append(self._reach[-1])
            else:
                self._reach.append((version, last, value))

    def touching(self, span: AddressRange) -> _T | None:
        """The value of some span that shares an address with `span`."""
        version = span[0].version
        index = bisect_left(self._starts, (version, int(span[1]) + 1))
        if index and self._reach[index - 1][:2] >= (version, int(span[0])):
            return self._reach[index - 1][2]
        return None


def overlaps(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(earlier, later) positions of spans that share a number, both ends included.

    Each span is told at most once as the one found: with the span before it that reaches furthest.
    """
    furthest: int | None = None
    for found in sorted(range(len(spans)), key=spans.__getitem__):
        if furthest is not None and spans[found][0] <= spans[furthest][1]:
            yield min(found, furthest), max(found, furthest)
        if furthest is None or spans[found][1] > spans[furthest][1]:
            furthest = found
