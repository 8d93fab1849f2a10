"""The MSS clamp: SYNs of both directions, in every mode that sees them."""

from __future__ import annotations

import pytest

from tests.flow import kit, tunnels
from tests.flow.kit import ROUTER_MAC, WAN_MAC, Conn, Net, Rig, at, one
from tests.flow.tunnels import unwrapped
from tunlb.testing.checkers import check, tcp
from tunlb.testing.frames import Flow, vnet

MODES = pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])


@MODES
@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
@pytest.mark.parametrize(("given", "most", "left"), [(1460, 1200, 1200), (1000, 1200, 1000)])
def test_a_number(net: Net, mode: str, partial: bool, given: int, most: int, left: int) -> None:
    rig = Rig(kit.balanced(net, mode=mode, mss_clamp=most))
    conn = Conn(rig, net, mode=mode)
    offload = {"needs_csum": partial}
    conn.up("S", b"", tcp(mss=left), mss=given, offload=offload)
    lowered = int(left < given)
    if mode != "dr":
        conn.down("SA", b"", tcp(mss=left), mss=given, offload=offload)
        lowered *= 2
    conn.up("A", b"", tcp(mss=1460), mss=1460)  # no SYN
    assert rig.counters() == conn.counted(MSS_CLAMPED=lowered)


@MODES
def test_the_narrower_route(net: Net, mode: str) -> None:
    text = kit.balanced(net, mode=mode, mss_clamp=True)
    text = text.replace('"name": "wan"', '"name": "wan", "mtu": 1400')
    text = text.replace('"name": "lan"', '"name": "lan", "mtu": 1300')
    rig = Rig(text)
    conn = Conn(rig, net, mode=mode)
    header = 40 if net.af == 4 else 60
    conn.up("S", b"", tcp(mss=1300 - header), mss=1460)
    if mode != "dr":
        conn.down("SA", b"", tcp(mss=1300 - header), mss=1460)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (b"", None),
        (b"\x01\x02\x04\x05\xb4", 1200),  # at an odd place: over two words of the checksum
        (b"\x01\x01\x08\x0a12345678\x02\x04\x05\xb4", 1200),
        (b"\x00\x02\x04\x05\xb4", None),  # behind the end of the list
        (b"\x03\x03\x07\x02\x04\x05\xb4", 1200),
        (b"\x02\x03\x05", None),
    ],
    ids=["none", "odd", "last", "ended", "wscale", "short"],
)
def test_options(net: Net, options: bytes, found: int | None) -> None:
    rig = Rig(kit.balanced(net, mss_clamp=1200))
    conn = Conn(rig, net)
    conn.up("S", b"", tcp(mss=found), options=options)
    assert rig.counters() == conn.counted(MSS_CLAMPED=int(found is not None))


@pytest.mark.parametrize("options", [b"\x02\x40\x05\xb4", b"\x02\x00\x05\xb4", b"\x01\x01\x01\x02"])
def test_options_that_lie(net: Net, options: bytes) -> None:
    rig = Rig(kit.balanced(net, mss_clamp=1200))
    flow = Flow(at(net.remote, 1), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC)
    sent = one(rig.receive("wan", vnet(flow.segment("S", options=options))))
    assert sent.frame.endswith(options)
    assert "MSS_CLAMPED" not in rig.counters()


def test_a_wrong_checksum_stays_wrong(net: Net) -> None:
    rig = Rig(kit.balanced(net, mss_clamp=1200))
    flow = Flow(at(net.remote, 1), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC)
    sent = one(rig.receive("wan", vnet(flow.syn(checksum=0x1111))))
    with pytest.raises(AssertionError, match="wrong checksum"):
        check(sent.frame)


def test_none_unless_asked_for(net: Net) -> None:
    rig = Rig(kit.balanced(net))
    conn = Conn(rig, net)
    conn.up("S", b"", tcp(mss=1460), mss=1460)
    assert rig.counters() == conn.counted()


def test_a_reload_takes_it_away_from_old_conns_and_gives_it_to_new_ones(net: Net) -> None:
    rig = Rig(kit.balanced(net, mss_clamp=1200))
    conn = Conn(rig, net)
    conn.up("S", b"", tcp(mss=1200), mss=1460)
    rig.reload(kit.balanced(net))
    conn.down("SA", b"", tcp(mss=1460), mss=1460)
    rig.reload(kit.balanced(net, mss_clamp=1100))
    fresh = Conn(rig, net, cport=40001)
    fresh.up("S", b"", tcp(mss=1100), mss=1460)


@pytest.mark.parametrize(("clamp", "mss"), [(True, None), (1000, 1000)])
def test_through_a_tunnel(net: Net, clamp: bool | int, mss: int | None) -> None:
    rig = Rig(tunnels.balanced(net, net, mss_clamp=clamp))
    flow = Flow(at(net.remote, 1), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC)
    seen = unwrapped(one(rig.receive("wan", vnet(flow.syn()))).frame)
    header = 20 if net.af == 4 else 40
    expected = mss or 1500 - header - (header + 20)
    check(seen.inner, tcp(mss=expected), vnet=False, tun=True)
