"""A small FIB: connected and static routes, longest prefix first."""

from __future__ import annotations

import cython

from tunlb.netif import Netif

_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


class Route:
    """Where packets for a prefix go: out of ``netif``, to ``via`` or, when it has none, to the
    destination itself.

    ``mtu`` is in IP bytes.
    """

    def __init__(self, netif: Netif, via: tuple[int, int] | None = None, mtu: int = 0) -> None:
        self.netif = netif
        self.on_link = via is None
        self.via_hi, self.via = (0, 0) if via is None else via
        self.mtu = min(mtu or netif.mtu, netif.mtu)


class RouteTable:
    """Prefixes are over 128 bits; an IPv4 prefix of length n is one of 96 + n in ``::ffff:0:0/96``.

    An IPv6 default route therefore must not match IPv4: ``::/0`` is kept apart from
    ``::ffff:0:0/96``.
    """

    def __init__(self) -> None:
        self._by_length: dict[int, dict[tuple[int, int], Route]] = {}
        self._lengths: list[int] = []
        self._broadcasts: set[int] = set()

    def add(self, hi: int, lo: int, length: int, route: Route) -> None:
        """Add or replace; ``length`` counts from the left of the 128 bits."""
        network = (hi << 64 | lo) >> (128 - length) << (128 - length)
        self._by_length.setdefault(length, {})[network >> 64, network & 0xFFFFFFFFFFFFFFFF] = route
        self._lengths = sorted(self._by_length, reverse=True)

    def add_broadcast(self, lo: int) -> None:
        """The directed broadcast address of a connected IPv4 subnet (its low half)."""
        self._broadcasts.add(lo)

    def is_broadcast(self, lo: cython.ulonglong) -> cython.bint:
        """A directed broadcast is not forwarded (RFC 2644)."""
        return lo in self._broadcasts

    def lookup(self, hi: cython.ulonglong, lo: cython.ulonglong) -> Route | None:
        """The route of the longest matching prefix, or None."""
        length: cython.int
        high: cython.ulonglong
        low: cython.ulonglong
        for length in self._lengths:
            if length < 96 and hi == 0 and lo >> 32 == 0xFFFF:
                return None
            if length > 64:
                high = hi
                low = lo & (_MASK64 << (128 - length)) & _MASK64
            else:
                high = 0 if length == 0 else hi & (_MASK64 << (64 - length)) & _MASK64
                low = 0
            prefixes = self._by_length[length]
            found = prefixes.get((high, low))
            if found is not None:
                return found
        return None
