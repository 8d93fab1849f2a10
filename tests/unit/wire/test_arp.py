"""ARP bodies and frames."""

from __future__ import annotations

import pytest

from tunlb.netif import Netif
from tunlb.testing import checkers as c
from tunlb.testing import frames as f
from tunlb.wire import arp

OURS = Netif(1, "lb0", 0x020000000002)
REQUEST = f.arp(1, f.CLIENT_MAC, "10.0.0.1", tpa="10.0.0.100")


@pytest.mark.parametrize("vid", [0, 10])
def test_build(vid) -> None:
    out = Netif(1, "lb0", 0x020000000002, vid=vid)
    target = f.mac_bytes(f.CLIENT_MAC)
    frame = arp.build(out, arp.REPLY, 0x0A000064, target, 0x0A000001, target)
    assert len(frame) == 60
    c.check(
        frame,
        c.ether(dst=f.CLIENT_MAC, src=f.SERVER_MAC, type=0x0806, vlan=(vid,) if vid else ()),
        c.arp(op=2, sha=f.SERVER_MAC, spa="10.0.0.100", tha=f.CLIENT_MAC, tpa="10.0.0.1"),
        vnet=False,
    )


@pytest.mark.parametrize(
    ("frame", "good"),
    [
        pytest.param(REQUEST, True, id="request"),
        pytest.param(REQUEST[:42], True, id="without padding"),
        pytest.param(REQUEST[:41], False, id="a byte short"),
        pytest.param(f.arp(1, f.CLIENT_MAC, "10.0.0.1", hardware=6), False, id="not Ethernet"),
        pytest.param(f.arp(1, f.CLIENT_MAC, "10.0.0.1", protocol=0x86DD), False, id="not IPv4"),
        pytest.param(f.arp(1, f.CLIENT_MAC, "10.0.0.1", hlen=8), False, id="long MAC addresses"),
        pytest.param(f.arp(1, f.CLIENT_MAC, "10.0.0.1", plen=16), False, id="long addresses"),
    ],
)
def test_is_ethernet_ipv4(frame, good) -> None:
    assert arp.is_ethernet_ipv4(frame[14:]) == good
