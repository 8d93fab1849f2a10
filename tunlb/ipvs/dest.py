"""A dest: one real server of one service, with its weight and what it carries now."""

from __future__ import annotations

import cython

from tunlb.ipvs.timeouts import NO_TIMEOUTS

# Forwarding modes, numbered as in IPVS and DPVS.
FWD_NAT = 0
FWD_LOCAL = 1
FWD_TUNNEL = 2
FWD_DR = 3
FWD_BYPASS = 4
FWD_FNAT = 5
FWD_SNAT = 6


# What a dest counts: words of its row, see Dest.
CONNS = 0  #: conns ever
IN_PACKETS = 1
OUT_PACKETS = 2
IN_BYTES = 3
OUT_BYTES = 4
ACTCONNS = 5
INACTCONNS = 6
STATS_SIZE = 64  #: bytes of a row

_ACTCONNS = cython.declare(cython.int, ACTCONNS)
_INACTCONNS = cython.declare(cython.int, INACTCONNS)


class Dest:
    """One real server of one service.

    ``id`` is its number in the director's dest list and in every conn that it carries. ``dport`` 0
    keeps the packet's port. A dest is *valid* for new conns when it is available, not overloaded
    and its weight is not 0 (quiescent). After ``drain_until`` (ms, -1: no limit) its conns end at
    their next packet.

    What it counts lies in ``stats``, STATS_SIZE writable bytes that may be shared: ``v[CONNS]`` and
    so on, unsigned 64 bits each. ACTCONNS counts conns in ESTABLISHED, INACTCONNS the rest (so
    every UDP conn), as in IPVS.
    """

    def __init__(
        self,
        id: int,
        af: int,
        daddr_hi: int,
        daddr: int,
        dport: int,
        weight: int = 1,
        fwdmode: int = FWD_FNAT,
        max_conn: int = 0,
        stats: memoryview | None = None,
    ) -> None:
        self.id = id
        self.af = af
        self.daddr_hi = daddr_hi
        self.daddr = daddr
        self.dport = dport
        self.weight = weight
        self.fwdmode = fwdmode
        self.max_conn = max_conn
        self.available = True
        self.drain_until = -1
        self.timeouts = NO_TIMEOUTS
        self.service_name = ""
        self.stats = memoryview(bytearray(STATS_SIZE) if stats is None else stats).cast("Q")
        if cython.compiled:
            view: cython.ulonglong[::1] = self.stats
            self.v = cython.address(view[0])
        else:
            self.v = self.stats

    # May be set, so that a scheduler can be tried on dests without conns.

    @property
    def actconns(self) -> int:
        return int(self.stats[ACTCONNS])

    @actconns.setter
    def actconns(self, count: int) -> None:
        self.stats[ACTCONNS] = count

    @property
    def inactconns(self) -> int:
        return int(self.stats[INACTCONNS])

    @inactconns.setter
    def inactconns(self, count: int) -> None:
        self.stats[INACTCONNS] = count

    def valid(self) -> cython.bint:
        """May it take a new conn?"""
        if not self.available or self.weight <= 0:
            return False
        return self.max_conn == 0 or self.load() < self.max_conn

    def load(self) -> cython.longlong:
        """How many conns it carries."""
        return self.v[_ACTCONNS] + self.v[_INACTCONNS]

    def overhead(self) -> cython.longlong:
        """IPVS' cost of a dest for lc and wlc: an active conn weighs 256 inactive ones."""
        return (self.v[_ACTCONNS] << 8) + self.v[_INACTCONNS]


NO_DEST = Dest(-1, 4, 0, 0, 0, weight=0)  #: sits where a dest was forgotten
