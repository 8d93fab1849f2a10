"""Ingress: lengths, L2 class, VLAN, and which stage a frame belongs to."""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.hook import Verdict
from tunlb.neigh import NeighTable
from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.pipeline.ip import Ip
from tunlb.wire.arp import REQUEST

if cython.compiled:
    from cython.cimports.tunlb.pipeline import host
    from cython.cimports.tunlb.wire import ether, vnet
else:
    from tunlb.pipeline import host
    from tunlb.wire import ether, vnet

_ETH_P_IP = cython.declare(cython.int, 0x0800)
_ETH_P_IPV6 = cython.declare(cython.int, 0x86DD)
_ETH_P_ARP = cython.declare(cython.int, 0x0806)
_TRUNCATED = cython.declare(cython.int, DropReason.TRUNCATED)
_ETHER_TYPE = cython.declare(cython.int, DropReason.ETHER_TYPE)
_OTHERHOST = cython.declare(cython.int, DropReason.OTHERHOST)
_VLAN_UNKNOWN = cython.declare(cython.int, DropReason.VLAN_UNKNOWN)
_VLAN_STACK = cython.declare(cython.int, DropReason.VLAN_STACK)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_ARP_REQUEST = cython.declare(cython.int, REQUEST)
_MAPPED = cython.declare(cython.ulonglong, 0xFFFF_0000_0000)


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
                return self._refuse(pkt, reason)
            if pkt.l2_type == 3:
                return pkt.drop(_OTHERHOST)
        if pkt.ether_type == _ETH_P_IP or pkt.ether_type == _ETH_P_IPV6:
            return self.ip.rcv(pkt, now)
        if pkt.ether_type == _ETH_P_ARP:
            return self._arp(pkt, now)
        return self._refuse(pkt, _ETHER_TYPE)

    def _refuse(self, pkt: Packet, reason: cython.int) -> cython.int:
        """Not ours to read: the host's, if there is one, and else dropped."""
        if (
            pkt.iif.host is not None
            and pkt.l2_type != 3
            and (reason == _ETHER_TYPE or reason == _VLAN_UNKNOWN or reason == _VLAN_STACK)
        ):
            return host.pass_on(pkt, self.ip.counters)
        return pkt.drop(reason)

    def _arp(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Ours; the host sees it as well, but for requests that were answered."""
        netif: Netif = pkt.iif
        verdict: cython.int = self.neighs.arp_input(pkt, now)
        if netif.host is None or verdict != _STOLEN or pkt.owner >= 0:
            return verdict
        if pkt.be16(pkt.l3 + 6) == _ARP_REQUEST and self.neighs.addresses.owned_by(
            netif, 0, _MAPPED | pkt.be32(pkt.l3 + 24)
        ):
            return verdict
        return host.pass_on(pkt, self.ip.counters)
