"""A small FIB: connected and static routes, longest prefix first."""

from __future__ import annotations

import cython

from tunlb.netif import AddressKey, Netif

if cython.compiled:
    from cython.cimports.tunlb.netif import address_key
else:
    from tunlb.netif import address_key


class Route:
    """Where packets for a prefix go: out of ``netif``, to ``via`` or, when it has none, to the
    destination itself.

    ``mtu`` is in IP bytes. ``mtu_known``: all of the path takes it, because the destination is on
    the link, or because the route's line says so. A TUN's link is only the way to the kernel.
    """

    def __init__(self, netif: Netif, via: tuple[int, int] | None = None, mtu: int = 0) -> None:
        self.netif = netif
        self.on_link = via is None
        self.via_hi, self.via = (0, 0) if via is None else via
        self.mtu = min(mtu or netif.mtu, netif.mtu)
        self.mtu_known = mtu > 0 or (self.on_link and not netif.tun)


class Prefixes:
    """The routes to prefixes of one length."""

    def __init__(self, length: int) -> None:
        mask = ((1 << length) - 1) << (128 - length)
        self.length = length
        self.mask_hi = mask >> 64
        self.mask = mask & 0xFFFFFFFFFFFFFFFF
        self.routes: dict[AddressKey, Route] = {}


class RouteTable:
    """Prefixes are over 128 bits; an IPv4 prefix of length n is one of 96 + n in ``::ffff:0:0/96``.

    An IPv6 default route therefore must not match IPv4: ``::/0`` is kept apart from
    ``::ffff:0:0/96``.
    """

    def __init__(self) -> None:
        # The longest first; those that an IPv4 address can be in.
        self._lengths: list[Prefixes] = []
        self._lengths_v4: list[Prefixes] = []
        self._broadcasts: set[int] = set()

    def add(self, hi: int, lo: int, length: int, route: Route) -> None:
        """Add or replace; ``length`` counts from the left of the 128 bits."""
        prefixes = next((each for each in self._lengths if each.length == length), None)
        if prefixes is None:
            prefixes = Prefixes(length)
            self._lengths.append(prefixes)
            self._lengths.sort(key=lambda each: -each.length)
            self._lengths_v4 = [each for each in self._lengths if each.length >= 96]
        prefixes.routes[address_key(hi & prefixes.mask_hi, lo & prefixes.mask)] = route

    def add_broadcast(self, lo: int) -> None:
        """The directed broadcast address of a connected IPv4 subnet (its low half)."""
        self._broadcasts.add(lo)

    def is_broadcast(self, lo: cython.ulonglong) -> cython.bint:
        """A directed broadcast is not forwarded (RFC 2644)."""
        return lo in self._broadcasts

    def lookup(self, hi: cython.ulonglong, lo: cython.ulonglong) -> Route | None:
        """The route of the longest matching prefix, or None."""
        prefixes: Prefixes
        lengths = self._lengths_v4 if hi == 0 and lo >> 32 == 0xFFFF else self._lengths
        for prefixes in lengths:
            found = prefixes.routes.get(address_key(hi & prefixes.mask_hi, lo & prefixes.mask))
            if found is not None:
                return found
        return None
