"""Local addresses and ports of fnat: unique per real server, not per local address.

A local port must be free only towards the same dest endpoint: (laddr, lport, daddr, dport, proto)
is what the dest sees. So each (laddr, daddr, dport, proto) has a pool of its own, made when it is
first used: a bitmap of the ports and a rover, which hands ports out in turn so that one is not
reused before all others were.
"""

from __future__ import annotations

import cython

from tunlb.packet import IPPROTO_ICMP, IPPROTO_ICMPV6

FIRST_PORT = 1025
LAST_PORT = 65535

_PINGS = (IPPROTO_ICMP, IPPROTO_ICMPV6)


class LportPool:
    """Ports FIRST_PORT..LAST_PORT congruent to ``residue`` modulo ``step``.

    ``step`` and ``residue`` give each worker ports of its own, by which replies find their way back
    to it.
    """

    def __init__(self, step: int = 1, residue: int = 0) -> None:
        self.step = step
        self.first = FIRST_PORT + (residue - FIRST_PORT) % step
        self.size = (LAST_PORT - self.first) // step + 1
        self.mem = bytearray((self.size + 7) // 8)
        # Bits past the end count as taken.
        if self.size % 8:
            self.mem[len(self.mem) - 1] = 0xFF << (self.size % 8) & 0xFF
        self.used = 0
        self._rover = 0

    def take(self) -> cython.int:
        """A free port, now taken; 0 when none is left."""
        if self.used >= self.size:
            return 0
        bits: bytearray = self.mem
        n_bytes: cython.int = len(bits)
        bit: cython.int = self._rover & 7
        at: cython.int = self._rover >> 3
        while True:
            if bits[at] != 0xFF:
                while bit < 8:
                    if not bits[at] >> bit & 1:
                        bits[at] |= 1 << bit
                        self.used += 1
                        self._rover = at * 8 + bit + 1
                        if self._rover >= self.size:
                            self._rover = 0
                        return self.first + (at * 8 + bit) * self.step
                    bit += 1
            bit = 0
            at += 1
            if at == n_bytes:
                at = 0

    def next_victim(self) -> cython.int:
        """The port that the rover comes to next, of a full pool: the one taken longest ago, or
        nearly.
        """
        port: cython.int = self.first + self._rover * self.step
        self._rover += 1
        if self._rover >= self.size:
            self._rover = 0
        return port

    def claim(self, port: cython.int) -> cython.bint:
        """Take this very port; False when it is taken, or not of this pool."""
        at: cython.int = self._index(port)
        if at < 0 or self.mem[at >> 3] >> (at & 7) & 1:
            return False
        self.mem[at >> 3] |= 1 << (at & 7)
        self.used += 1
        return True

    def give(self, port: cython.int) -> None:
        """Take a port back; one that is not of this pool, or free already, is left alone."""
        at: cython.int = self._index(port)
        if at >= 0 and self.mem[at >> 3] >> (at & 7) & 1:
            self.mem[at >> 3] &= 0xFF ^ (1 << (at & 7))
            self.used -= 1

    def _index(self, port: cython.int) -> cython.int:
        """The bit of a port, -1 for one of another pool."""
        at: cython.int = port - self.first
        if at < 0 or at % self.step != 0:
            return -1
        at = at // self.step
        return at if at < self.size else -1


class LportPools:
    """Every pool of one worker, by (laddr, daddr, dport, proto)."""

    def __init__(self, step: int = 1, residue: int = 0) -> None:
        self.step = step
        self.residue = residue
        self._pools: dict[tuple[int, int, int, int, int], LportPool] = {}

    def pool(
        self,
        laddr_hi: cython.ulonglong,
        laddr: cython.ulonglong,
        daddr_hi: cython.ulonglong,
        daddr: cython.ulonglong,
        dport_proto: cython.uint,
    ) -> LportPool:
        """The pool towards one endpoint; ``dport_proto`` is dport << 8 | proto."""
        key = (laddr_hi, laddr, daddr_hi, daddr, dport_proto)
        found = self._pools.get(key)
        if found is None:
            if dport_proto & 0xFF in _PINGS:
                found = LportPool()  # all of them: pings are one worker's (see ipvs/matches.py)
            else:
                found = LportPool(self.step, self.residue)
            self._pools[key] = found
        return found

    def sweep(self) -> None:
        """Forget the pools that hold no port, so that dests long gone cost nothing."""
        for key in [key for key, pool in self._pools.items() if pool.used == 0]:
            del self._pools[key]

    def __len__(self) -> int:
        return len(self._pools)
