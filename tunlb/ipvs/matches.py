"""Services without a vaddr, which take what passes by (DPVS: dp_vs_service_lookup, its rules).

They are asked last, for packets of no conn that are addressed to nobody here, in the order of the
configuration; the first that matches has the packet. What is addressed to us or to the host side,
to a group or to one link alone is never theirs.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.match import Match
from tunlb.ipvs.service import Service
from tunlb.ipvs.sharding import Sharding
from tunlb.netif import Addresses, Netif
from tunlb.packet import IPPROTO_ICMP, IPPROTO_ICMPV6
from tunlb.route import Route, RouteTable

_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)


class MatchTable:
    """Services with a match, in order. ``exempt`` are addresses, as (hi, lo), of the host side."""

    def __init__(self, exempt: set[tuple[int, int]]) -> None:
        self.services: list[Service] = []
        self.exempt = exempt

    def find(
        self,
        addresses: Addresses,
        routes: RouteTable,
        iif: Netif,
        af: cython.int,
        proto: cython.int,
        saddr_hi: cython.ulonglong,
        saddr: cython.ulonglong,
        sport: cython.int,
        daddr_hi: cython.ulonglong,
        daddr: cython.ulonglong,
        dport: cython.int,
    ) -> Service | None:
        """The first service that takes a packet which looks like this and came by ``iif``."""
        service: Service
        match: Match | None
        route: Route | None = None
        routed: cython.bint = False
        if bound(af, saddr_hi, saddr) or bound(af, daddr_hi, daddr):
            return None
        if addresses.is_local(daddr_hi, daddr) or (daddr_hi, daddr) in self.exempt:
            return None
        if af == 4 and routes.is_broadcast(daddr):
            return None
        for service in self.services:
            match = service.match
            if match is None or service.proto != proto or service.af != af:
                continue
            if not match.ports(sport, dport):
                continue
            if match.iport != "" and match.iport != iif.name:
                continue
            if not match.src.hold(saddr_hi, saddr) or not match.dst.hold(daddr_hi, daddr):
                continue
            if match.oport != "":
                if not routed:
                    route = routes.lookup(daddr_hi, daddr)
                    routed = True
                if route is None or route.netif.name != match.oport:
                    continue
            return service
        return None


def bound(af: cython.int, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
    """Is the address a group's, or bound to its link (169.254/16, fe80::/10)?"""
    if af == 4:
        return ((lo >> 24) & 0xFF) >= 224 or ((lo >> 16) & 0xFFFF) == 0xA9FE
    return (hi >> 56) == 0xFF or (hi >> 54) == 0x3FA


def owner(
    sharding: Sharding,
    matches: MatchTable | None,
    addresses: Addresses,
    routes: RouteTable,
    iif: Netif,
    af: cython.int,
    proto: cython.int,
    saddr_hi: cython.ulonglong,
    saddr: cython.ulonglong,
    sport: cython.int,
    daddr_hi: cython.ulonglong,
    daddr: cython.ulonglong,
    dport: cython.int,
) -> cython.int:
    """The worker that a packet of no conn belongs to.

    That of its tuple alone (see Sharding), with two exceptions. Pings are worker 0's, where the
    kernel steers them. And what a match takes without changing its source is its source's: that is
    the endpoint which the answer, whoever gives it, is addressed to.
    """
    if proto == _ICMP or proto == _ICMPV6:
        return 0
    if matches is not None:
        service: Service | None = matches.find(
            addresses,
            routes,
            iif,
            af,
            proto,
            saddr_hi,
            saddr,
            sport,
            daddr_hi,
            daddr,
            dport,
        )
        if service is not None and not service.snat:
            return sharding.by_endpoint(saddr_hi, saddr, sport)
    return sharding.owner(addresses, saddr_hi, saddr, sport, daddr_hi, daddr, dport)
