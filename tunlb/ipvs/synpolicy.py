"""When and how a service's SYNs are answered for its dests."""

from __future__ import annotations

import cython

from tunlb.ipvs.cookie import PERIOD_MS

RETIRED_MS = 2 * PERIOD_MS  #: how long a cookie can be good

_RETIRED = cython.declare(cython.longlong, RETIRED_MS)


class SynPolicy:
    """A service's SYN proxy, one per worker.

    ``above`` 0: always; else while more conns than that are half-open, and until no more than half
    as many are. ``mss`` 0: what the port takes, and in each case at most ``most``; ``less`` bytes
    of it are for an option of ours, or for the longer header of IPv6 dests. ``wscale`` NO_WSCALE:
    not offered.
    """

    def __init__(
        self, above: int = 0, mss: int = 0, wscale: int = 7, sack: bool = True, stamps: bool = True
    ) -> None:
        self.above = above
        self.mss = mss
        self.wscale = wscale
        self.sack = sack
        self.stamps = stamps
        self.most = 65535
        self.less = 0
        self.on = False
        self.until = -1

    def engaged(self, half_open: cython.longlong) -> cython.bint:
        """Is the next SYN to be answered with a cookie? ``half_open`` is how many conns the service
        has in NONE, SYN_SENT, SYN_RECV or SYNACK, at all workers; those that were born before it
        had a SYN proxy are not counted.
        """
        if self.until >= 0:
            return False
        if self.above == 0:
            return True
        if self.on:
            self.on = half_open > self.above // 2
        else:
            self.on = half_open > self.above
        return self.on

    def accepts(self, now: cython.longlong) -> cython.bint:
        """May there be cookies of this service that are good?"""
        return self.until < 0 or now < self.until

    def retire(self, now: cython.longlong) -> None:
        """The configuration has the SYN proxy no more: the cookies that are out are still good."""
        if self.until < 0:
            self.until = now + _RETIRED
