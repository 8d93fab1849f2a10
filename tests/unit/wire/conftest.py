"""Packets for header tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.testing.frames import PLAIN, SERVER_MAC, mac_bytes

Load = Callable[..., Packet]


@pytest.fixture
def port() -> Netif:
    """A TAP at SERVER_MAC with the VLAN 10."""
    mac = int.from_bytes(mac_bytes(SERVER_MAC), "big")
    netif = Netif(1, "lb0", mac)
    netif.vlans[10] = Netif(2, "lb0.10", mac, vid=10, queue=1)
    return netif


@pytest.fixture
def load(port: Netif) -> Load:
    """``load(frame)``: a Packet as read from the port; ``tun=True``: a bare IP packet from a TUN.

    ``frame`` has no virtio-net header, unless ``vnet=True``.
    """

    def build(frame: bytes, *, tun: bool = False, vnet: bool = False) -> Packet:
        pkt = Packet()
        netif = Netif(3, "tun0", 0, tun=True) if tun else port
        pkt.load(frame if vnet else PLAIN + frame, netif)
        return pkt

    return build
