"""The far end of a tunnel, and what is known of the path to it.

A FarEnd is part of a dest. Paths holds the path MTUs that ICMP errors about outer packets taught,
as soft state (RFC 2003 section 5.1): by address, bounded, and forgotten after ten minutes.
"""

from __future__ import annotations

from types import MappingProxyType

import cython

from tunlb.netif import Addresses
from tunlb.wire.encap import overhead

PATHS_MAX = 4096  #: path MTUs that are remembered; more are not learnt
PATH_MS = 600_000  #: how long one is believed (RFC 1191 section 6.3)
MTU_MIN = MappingProxyType({4: 68, 6: 1280})  #: what no link is below (RFC 791, RFC 8200)


class FarEnd:
    """How packets to one dest are wrapped. ``af`` is the outer family, ``inner_af`` the service's.

    ``wanted`` is the configured source; (0, 0): the port's own. ``known`` are the addresses that
    ``src`` was taken from: with others, it is looked up again.
    """

    def __init__(
        self,
        kind: int,
        af: int,
        inner_af: int,
        port: int = 6080,
        csum: bool = False,
        wanted: tuple[int, int] = (0, 0),
    ) -> None:
        self.kind = kind
        self.af = af
        self.inner_af = inner_af
        self.port = port
        self.csum = csum
        self.wanted = wanted
        self.overhead = overhead(kind, af, csum)
        self.src_hi = 0
        self.src = 0
        self.reason = 0
        self.narrow = False  # for the present path: see leaves_df_out
        self.known: Addresses | None = None

    def room(self, mtu: cython.int) -> cython.int:
        """Bytes that an inner packet may have where the outer may have ``mtu``.

        An IPv4 outer header can leave the rest to the routers' fragmentation, so that no less is
        told to anybody than every link takes (RFC 4213 section 3.2.2).
        """
        if self.leaves_df_out(mtu):
            return self._least()
        return mtu - self.overhead if mtu > self.overhead else 0

    def leaves_df_out(self, mtu: cython.int) -> cython.bint:
        """Must the outer packet be one that routers may fragment?"""
        return self.af == 4 and mtu - self.overhead < self._least()

    def _least(self) -> cython.int:
        return 68 if self.inner_af == 4 else 1280


class Paths:
    """Path MTUs by address: (hi, lo) -> (MTU, until when in ms)."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], tuple[int, int]] = {}

    def mtu(self, hi: int, lo: int) -> int:
        """0: nothing is known."""
        found = self.known.get((hi, lo))
        return 0 if found is None else found[0]

    def learn(self, hi: int, lo: int, mtu: int, now: int) -> bool:
        """Whether it is news: only a smaller one is, and the same one lives on."""
        key = (hi, lo)
        found = self.known.get(key)
        if found is None and len(self.known) >= PATHS_MAX:
            return False
        if found is not None and mtu > found[0]:
            return False
        self.known[key] = (mtu, now + PATH_MS)
        return found is None or mtu < found[0]

    def expire(self, now: int) -> int:
        """Forget the old ones; how many."""
        old = [key for key, (_, until) in self.known.items() if until <= now]
        for key in old:
            del self.known[key]
        return len(old)
