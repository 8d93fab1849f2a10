"""Ingress: lengths, L2 class, VLAN, and which stage a frame belongs to."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.neigh import NeighTable
from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.pipeline.ip import Ip

if cython.compiled:
    from cython.cimports.tunlb.wire import ether, vnet
else:
    from tunlb.wire import ether, vnet

_ETH_P_IP = cython.declare(cython.int, 0x0800)
_ETH_P_IPV6 = cython.declare(cython.int, 0x86DD)
_ETH_P_ARP = cython.declare(cython.int, 0x0806)
_TRUNCATED = cython.declare(cython.int, DropReason.TRUNCATED)
_ETHER_TYPE = cython.declare(cython.int, DropReason.ETHER_TYPE)
_OTHERHOST = cython.declare(cython.int, DropReason.OTHERHOST)


class Ingress:
    """The first stage; ``receive`` takes a packet as a port loaded it."""

    def __init__(self, ip: Ip, neighs: NeighTable) -> None:
        self.ip = ip
        self.neighs = neighs

    def receive(self, pkt: Packet, now: cython.longlong) -> cython.int:
        netif: Netif = pkt.iif
        if pkt.end <= pkt.start:
            return pkt.drop(_TRUNCATED)
        reason: cython.int = vnet.parse(pkt)
        if reason != 0:
            return pkt.drop(reason)
        if netif.tun:
            version: cython.int = pkt.p[pkt.start] >> 4
            pkt.ether_type = _ETH_P_IPV6 if version == 6 else _ETH_P_IP
        else:
            reason = ether.parse(pkt)
            if reason != 0:
                return pkt.drop(reason)
            if pkt.l2_type == 3:
                return pkt.drop(_OTHERHOST)
        if pkt.ether_type == _ETH_P_IP or pkt.ether_type == _ETH_P_IPV6:
            return self.ip.rcv(pkt, now)
        if pkt.ether_type == _ETH_P_ARP:
            return self.neighs.arp_input(pkt, now)
        return pkt.drop(_ETHER_TYPE)
