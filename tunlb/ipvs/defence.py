"""Before IpvsIn: what would not survive it (DPVS: dp_vs_pre_routing)."""

from __future__ import annotations

import cython

from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.fragments import Fragments
from tunlb.packet import Packet

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)


class Defence(Hook):
    """Fragments have a way of their own: all but the first have no ports."""

    point = Point.PRE_ROUTING
    priority = 99

    def __init__(self, fragments: Fragments) -> None:
        self.fragments = fragments

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        if pkt.fragment != 0:
            return self.fragments.receive(pkt, now)
        return _ACCEPT
