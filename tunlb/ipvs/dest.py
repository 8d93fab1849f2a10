"""A dest: one real server of one service, with its weight and what it carries now."""

from __future__ import annotations

from types import MappingProxyType

import cython

from tunlb.ipvs.far import FarEnd
from tunlb.ipvs.tally import Others, Tally
from tunlb.ipvs.telling import NOTHING
from tunlb.ipvs.timeouts import NO_TIMEOUTS

# Forwarding modes, numbered as in IPVS and DPVS.
FWD_NAT = 0
FWD_LOCAL = 1
FWD_TUNNEL = 2
FWD_DR = 3
FWD_BYPASS = 4
FWD_FNAT = 5
FWD_SNAT = 6
FWD_NAT64 = 7  #: our own: FNAT to a dest of the other family


# What a dest counts: words of its row, see Dest. Other workers read the second half, so it is a
# cache line of its own, which packets of conns do not write.
CONNS = 0  #: conns ever
IN_PACKETS = 1
OUT_PACKETS = 2
IN_BYTES = 3
OUT_BYTES = 4
ACTCONNS = 8
INACTCONNS = 9
TEMPLATES = 10  #: persistence templates, which are no conns
FILLED = 11  #: in the first worker's row, for all workers: see Dest.weigh
STATS_WORDS = 16
STATS_SIZE = 8 * STATS_WORDS  #: bytes of a row

# A service with a number has a row as well (see tunlb/destids.py), with words of its own.
CARRIED = ACTCONNS  #: how many conns its dests have, where it has a max_conn
HALF_OPEN = INACTCONNS  #: how many of them are half-open, where it has a SYN proxy

_ACTCONNS = cython.declare(cython.int, ACTCONNS)
_INACTCONNS = cython.declare(cython.int, INACTCONNS)
_STATS_WORDS = cython.declare(cython.longlong, STATS_WORDS)


# What becomes of a conn whose dest was removed (expire_nodest) or made quiescent
# (expire_quiescent).
KEEP = 0  #: it goes on until its drain time is over
RESET = 1  #: both sides get a RST at once
RESCHEDULE = 2  #: it ends at its next packet, which may open another

POLICIES = MappingProxyType({"keep": KEEP, "reset": RESET, "reschedule": RESCHEDULE})


class Dest:
    """One real server of one service.

    ``id`` is its number in the director's dest list and in every conn that it carries. ``dport`` 0
    keeps the packet's port. A dest is *valid* for new conns when it is available, not overloaded
    and its weight is not 0 (quiescent). After ``drain_until`` (ms, -1: no limit) its conns end at
    their next packet, as ``policy`` says (see ipvs/lapse.py). ``full_weight`` is the configured
    weight where ``weight`` still grows towards it (see ipvs/ramp.py).

    ``far`` is how a tunnel reaches it; None: none ever did.

    What it counts lies in ``stats``, STATS_SIZE writable bytes that may be shared: ``v[CONNS]`` and
    so on, unsigned 64 bits each. ACTCONNS counts conns in ESTABLISHED, INACTCONNS the rest (so
    every UDP conn), as in IPVS. ``others`` are the rows of the other workers, ``first`` is the row
    of the first one; without them it is this worker's alone.

    ``carried`` counts what its service carries, removed dests' conns among it, where the service
    has a limit. All of a service's dests have the same one.
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
        others: Others | None = None,
        first: memoryview | None = None,
    ) -> None:
        self.id = id
        self.af = af
        self.daddr_hi = daddr_hi
        self.daddr = daddr
        self.dport = dport
        self.weight = weight
        self.fwdmode = fwdmode
        self.max_conn = max_conn
        self.min_conn = 0
        self.limited = max_conn != 0  # by this or by its service's max_conn
        self.full_weight = weight
        self.ramp_from = -1
        self.policy = KEEP
        self.reset_on_expire = False
        self.carried = Tally()
        self.available = True
        self.drain_until = -1
        self.timeouts = NO_TIMEOUTS
        self.service_name = ""
        self.mss_clamp = 0  #: see ipvs/mss.py; 0: SYNs pass as they are
        self.telling = NOTHING  # the service's
        self.far: FarEnd | None = None
        # What is found of it while a former worker's table is adopted, see Life.adopt.
        self.counted_active = 0
        self.counted_inactive = 0
        self.counted_templates = 0
        self.half_open = 0
        self.half_opens: Tally | None = None  # the service's, if it counts them
        self.others = others
        self.stats = memoryview(bytearray(STATS_SIZE) if stats is None else stats).cast("Q")
        self._filled = (self.stats if first is None else first.cast("Q"))[FILLED : FILLED + 1]
        if cython.compiled:
            view: cython.ulonglong[::1] = self.stats
            self.v = cython.address(view[0])
            word: cython.ulonglong[::1] = self._filled
            self.f = cython.address(word[0])
        else:
            self.v = self.stats
            self.f = self._filled

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
        return self.max_conn == 0 or not self.weigh()

    def weigh(self) -> cython.bint:
        """Is it overloaded: had it ``max_conn`` conns, and has it not had fewer than ``min_conn``
        since (0: three quarters of max_conn)? To be asked whenever their number changes.

        All workers count, and FILLED tells each of them, and its successor, what another one saw:
        the limit that was reached. Under another limit that means nothing (IPVS: ip_vs_edit_dest).
        """
        total: cython.longlong = self.total()
        filled: cython.bint = self.f[0] == self.max_conn
        if total >= self.max_conn:
            if not filled:
                self.f[0] = self.max_conn
            return True
        if filled:
            if self.min_conn != 0:
                filled = total >= self.min_conn
            else:
                filled = total * 4 >= self.max_conn * 3
            if not filled:
                self.f[0] = 0
        return filled

    def count(self, change: cython.int) -> None:
        """Where ``limited``: it has a conn more (1) or less (-1), counted already."""
        self.carried.add(change)
        if self.max_conn != 0:
            self.weigh()

    def half_opened(self, n: cython.int) -> None:
        """``n`` conns of its more are half-open, and have HALF in their rows."""
        whole: Tally | None = self.half_opens
        self.half_open += n
        if whole is not None:
            whole.add(n)

    def count_in(self, whole: Tally | None) -> None:
        """Its half-open conns are part of ``whole``, the service's, from now on; None: those that
        come are not counted.
        """
        if self.half_opens is not None:
            self.half_opens.count -= self.half_open
        self.half_opens = whole
        if whole is not None:
            whole.count += self.half_open

    def load(self) -> cython.longlong:
        """How many conns it carries in this worker."""
        return self.v[_ACTCONNS] + self.v[_INACTCONNS]

    # In all workers:

    def active(self) -> cython.longlong:
        count: cython.longlong = self.v[_ACTCONNS]
        others = self.others
        if others is not None:
            count += others.sum(self.id * _STATS_WORDS + _ACTCONNS)
        return count

    def inactive(self) -> cython.longlong:
        count: cython.longlong = self.v[_INACTCONNS]
        others = self.others
        if others is not None:
            count += others.sum(self.id * _STATS_WORDS + _INACTCONNS)
        return count

    def total(self) -> cython.longlong:
        return self.active() + self.inactive()

    def overhead(self) -> cython.longlong:
        """IPVS' cost of a dest for lc and wlc: an active conn weighs 256 inactive ones."""
        if self.others is None:
            return (self.v[_ACTCONNS] << 8) + self.v[_INACTCONNS]
        return (self.active() << 8) + self.inactive()


NO_DEST = Dest(-1, 4, 0, 0, 0, weight=0)  #: sits where a dest was forgotten
