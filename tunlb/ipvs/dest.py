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


class Dest:
    """One real server of one service.

    ``id`` is its row in the director's dest list and in every conn that it carries. ``dport`` 0
    keeps the packet's port. A dest is *valid* for new conns when it is available, not overloaded
    and its weight is not 0 (quiescent). ``actconns`` counts conns in ESTABLISHED, ``inactconns``
    the rest (so every UDP conn), as in IPVS. After ``drain_until`` (ms, -1: no limit) its conns end
    at their next packet.
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
        self.actconns = 0
        self.inactconns = 0
        self.timeouts = NO_TIMEOUTS
        self.service_name = ""
        self.conns = 0
        self.in_packets = 0
        self.out_packets = 0
        self.in_bytes = 0
        self.out_bytes = 0

    def valid(self) -> cython.bint:
        """May it take a new conn?"""
        if not self.available or self.weight <= 0:
            return False
        return self.max_conn == 0 or self.actconns + self.inactconns < self.max_conn

    def overhead(self) -> cython.longlong:
        """IPVS' cost of a dest for lc and wlc: an active conn weighs 256 inactive ones."""
        return (self.actconns << 8) + self.inactconns


NO_DEST = Dest(-1, 4, 0, 0, 0, weight=0)  #: sits where a dest was forgotten
