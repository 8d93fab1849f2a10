"""What a service without a vaddr takes: a match of a packet's tuple (DPVS: struct dp_vs_match)."""

from __future__ import annotations

import cython


class Prefix:
    """An address (IPv4 as ``::ffff:a.b.c.d``) and how many of its 128 bits count."""

    def __init__(self, hi: int, lo: int, length: int) -> None:
        mask = ((1 << length) - 1) << (128 - length)
        self.mask_hi = mask >> 64
        self.mask = mask & 0xFFFFFFFFFFFFFFFF
        self.hi = hi & self.mask_hi
        self.lo = lo & self.mask


class Prefixes:
    """A set of addresses; without any prefix, all of them."""

    def __init__(self, prefixes: list[Prefix]) -> None:
        self.prefixes = prefixes

    def hold(self, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
        prefix: Prefix
        if not self.prefixes:
            return True
        for prefix in self.prefixes:
            if (lo & prefix.mask) == prefix.lo and (hi & prefix.mask_hi) == prefix.hi:
                return True
        return False


class Match:
    """What a packet must be; "" for a port's name is any.

    Ports are (first, last), both included. ``iport`` is the netif that it came by, ``oport`` the
    one by which its route leaves.
    """

    def __init__(
        self,
        src: Prefixes,
        dst: Prefixes,
        sports: tuple[int, int],
        dports: tuple[int, int],
        iport: str,
        oport: str,
    ) -> None:
        self.src = src
        self.dst = dst
        self.first_sport, self.last_sport = sports
        self.first_dport, self.last_dport = dports
        self.iport = iport
        self.oport = oport

    def ports(self, sport: cython.int, dport: cython.int) -> cython.bint:
        return (
            self.first_sport <= sport <= self.last_sport
            and self.first_dport <= dport <= self.last_dport
        )
