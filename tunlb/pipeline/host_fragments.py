"""Fragments for the host, past IPVS: the host puts them together itself."""

from __future__ import annotations

import cython

from tunlb.hook import Hook, Point, Verdict
from tunlb.netif import ADDRESS, HOST_SIDE
from tunlb.packet import HOST, Packet
from tunlb.pipeline.ip import Ip

if cython.compiled:
    from cython.cimports.tunlb.pipeline.ip import is_group
else:
    from tunlb.pipeline.ip import is_group

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_STOP = cython.declare(cython.int, Verdict.STOP)
_HOST = cython.declare(cython.int, HOST)
_ADDRESS = cython.declare(cython.int, ADDRESS)
_HOST_SIDE = cython.declare(cython.int, HOST_SIDE)


class HostFragments(Hook):
    """Before Defence. Fragments to a VIP are not the host's: they may be of a service.

    Registered where a port has a host.
    """

    point = Point.PRE_ROUTING
    priority = 98

    def __init__(self, ip: Ip) -> None:
        self.ip = ip

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        if pkt.fragment == 0 or pkt.iif.host is None:
            return _ACCEPT
        if pkt.l2_type != _HOST or is_group(pkt):
            return _STOP
        kind: cython.int = self.ip.addresses.kind(pkt.daddr_hi, pkt.daddr)
        if kind == _ADDRESS or kind == _HOST_SIDE:
            return _STOP
        return _ACCEPT
