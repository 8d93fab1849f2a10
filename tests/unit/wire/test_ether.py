"""Ethernet: L2 classes, VLAN tags both ways, our own frames."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason
from tunlb.netif import Netif
from tunlb.packet import BROADCAST, HOST, L3_OFFSET, MULTICAST, OTHERHOST
from tunlb.testing import frames as f
from tunlb.wire import ether, vnet

PACKET = f.ipv4("10.0.0.1", "10.0.0.100", f.udp(1, 2, b"hello"))


@pytest.mark.parametrize(
    ("dst", "expected"),
    [
        pytest.param(f.SERVER_MAC, HOST, id="ours"),
        pytest.param("ff:ff:ff:ff:ff:ff", BROADCAST, id="broadcast"),
        pytest.param("01:00:5e:00:00:01", MULTICAST, id="IPv4 multicast"),
        pytest.param("33:33:00:00:00:01", MULTICAST, id="IPv6 multicast"),
        pytest.param("02:00:00:00:00:09", OTHERHOST, id="another station"),
    ],
)
def test_l2_class(dst, expected, load) -> None:
    pkt = load(f.eth(dst, payload=PACKET))
    assert ether.parse(pkt) == 0
    assert pkt.l2_type == expected
    assert pkt.ether_type == f.ETH_P_IP
    assert pkt.start == L3_OFFSET - 14


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(b"", DropReason.TRUNCATED, id="nothing"),
        pytest.param(f.eth()[:13], DropReason.TRUNCATED, id="13 bytes"),
        pytest.param(f.eth(vlan=10)[:17], DropReason.TRUNCATED, id="cut in the tag"),
        pytest.param(f.eth(src=f.SERVER_MAC), DropReason.OWN_MAC, id="our own source"),
        pytest.param(f.eth(src="01:00:5e:00:00:01"), DropReason.MARTIAN, id="group source"),
        pytest.param(f.eth(src="ff:ff:ff:ff:ff:ff"), DropReason.MARTIAN, id="broadcast source"),
        pytest.param(f.eth(vlan=11), DropReason.VLAN_UNKNOWN, id="unknown VLAN"),
        pytest.param(f.eth(vlan=0xFFF), DropReason.VLAN_UNKNOWN, id="reserved VLAN"),
        pytest.param(f.eth(vlan=(10, 10)), DropReason.VLAN_STACK, id="two tags"),
        pytest.param(f.eth(vlan=(0, 10)), DropReason.VLAN_STACK, id="priority tag before a tag"),
        pytest.param(
            f.eth(type=0x88A8, payload=bytes(50)), DropReason.VLAN_STACK, id="service tag"
        ),
        pytest.param(
            f.eth(vlan=10, type=0x88A8, payload=bytes(50)),
            DropReason.VLAN_STACK,
            id="service tag in a tag",
        ),
    ],
)
def test_refused(frame, reason, load) -> None:
    assert ether.parse(load(frame)) == reason


@pytest.mark.parametrize(
    ("tci", "netif"),
    [
        pytest.param(10, "lb0.10", id="a VLAN of ours"),
        pytest.param(0xE00A, "lb0.10", id="with priority bits"),
        pytest.param(0xA000, "lb0", id="a priority tag only"),
    ],
)
def test_a_tag_is_taken_off(tci, netif, load) -> None:
    pkt = load(f.eth(payload=PACKET, vlan=tci))
    assert ether.parse(pkt) == 0
    assert pkt.iif.name == netif
    assert bytes(pkt.mem[L3_OFFSET : pkt.end]) == PACKET
    assert pkt.end - pkt.start == 14 + len(PACKET)


def test_a_partial_checksum_moves_with_the_packet(load) -> None:
    pkt = load(f.vnet(f.eth(payload=PACKET, vlan=10), needs_csum=True), vnet=True)
    assert vnet.parse(pkt) == 0
    assert ether.parse(pkt) == 0
    assert pkt.csum_start == L3_OFFSET + 20


def test_a_partial_checksum_inside_the_tag_is_refused(load) -> None:
    frame = f.eth(payload=PACKET, vlan=10)
    pkt = load(f.vnet(frame, flags=1, csum_start=15, csum_offset=1), vnet=True)
    assert vnet.parse(pkt) == 0
    assert ether.parse(pkt) == 0
    pkt.l4 = L3_OFFSET + 20
    assert vnet.check(pkt) == DropReason.VNET_HEADER


@pytest.mark.parametrize("vid", [0, 10])
def test_push_writes_the_header_of_the_way_out(vid, load) -> None:
    pkt = load(f.eth(payload=PACKET))
    assert ether.parse(pkt) == 0
    out = Netif(2, "out", 0x02000000000A, vid=vid)
    ether.push(pkt, ether.prefix_of(out, bytes.fromhex("02000000000b")))
    expected = f.eth(
        "02:00:00:00:00:0b", "02:00:00:00:00:0a", payload=PACKET, vlan=vid if vid else None
    )
    assert pkt.frame() == expected


@pytest.mark.parametrize("vid", [0, 10])
def test_header(vid) -> None:
    out = Netif(2, "out", 0x02000000000A, vid=vid)
    expected = f.eth(f.CLIENT_MAC, "02:00:00:00:00:0a", f.ETH_P_ARP, vlan=vid if vid else None)
    assert ether.header(out, f.mac_bytes(f.CLIENT_MAC), ether.ETH_P_ARP) == expected
