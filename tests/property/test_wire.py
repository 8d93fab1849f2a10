"""No byte string from the wire raises, and what a parser accepts lies inside the frame."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunlb.counters import DropReason
from tunlb.netif import Netif
from tunlb.packet import BUFFER_LEN, L3_OFFSET, Packet
from tunlb.testing import checkers, parser
from tunlb.testing import frames as f
from tunlb.wire import arp, ether, icmp, ipv4, ipv6, tcp, udp, vnet

TAP = Netif(1, "lb0", 0x020000000002)
TAP.vlans[10] = Netif(2, "lb0.10", 0x020000000002, vid=10, queue=1)
TUN = Netif(3, "tun0", 0, tun=True)
L4 = {1: icmp, 6: tcp, 17: udp, 58: icmp}


def walk(data: bytes, netif: Netif) -> tuple[Packet, int]:
    """The parsers in the pipeline's order; the first reason that one of them gives."""
    pkt = Packet()
    pkt.load(data, netif)
    reason = vnet.parse(pkt)
    if reason:
        return pkt, reason
    if netif.tun:
        version = pkt.mem[L3_OFFSET] >> 4 if pkt.end > pkt.start else 0
        pkt.ether_type = 0x86DD if version == 6 else 0x0800
    else:
        reason = ether.parse(pkt)
        if reason:
            return pkt, reason
    if pkt.ether_type == 0x0806:
        arp.is_ethernet_ipv4(bytes(pkt.mem[L3_OFFSET : pkt.end]))
        return pkt, DropReason.ARP_INVALID
    if pkt.ether_type not in (0x0800, 0x86DD):
        return pkt, DropReason.ETHER_TYPE
    reason = (ipv4 if pkt.ether_type == 0x0800 else ipv6).parse(pkt) or vnet.check(pkt)
    if reason == 0 and pkt.fragment != 2 and pkt.proto in L4:
        room = L4[pkt.proto]
        reason = room.parse(pkt)
        if reason == 0 and room is icmp:
            reason = icmp.verify(pkt)
    return pkt, reason


def sound(data: bytes, netif: Netif) -> None:
    pkt, reason = walk(data, netif)
    assert 0 <= reason < max(DropReason) + 1
    if reason:
        return
    assert pkt.start == L3_OFFSET - (0 if netif.tun else 14)
    assert pkt.l3 == L3_OFFSET < pkt.l4 <= pkt.end <= BUFFER_LEN
    assert pkt.end - pkt.start <= len(data) - 10
    if pkt.csum_start:
        assert pkt.l4 <= pkt.csum_start
        assert pkt.csum_start + pkt.csum_offset + 2 <= L3_OFFSET + len(data)
    vnet.emit(pkt)
    if not netif.tun:
        ether.push(pkt, ether.prefix_of(TAP.vlans[10], bytes(6)))
        vnet.emit(pkt)


V4 = f.Flow("10.0.0.1:40000", "10.0.0.100:80")
V6 = f.Flow("[fd00::1]:40000", "[fd00::100]:80")
TAGGED = f.Flow("10.0.0.1:40000", "10.0.0.100:80", vlan=10)
GOOD = [
    f.vnet(V4.syn()),
    f.vnet(V6.syn()),
    f.vnet(V4.data(bytes(3000)), needs_csum=True, gso_type=1, gso_size=1448),
    f.vnet(V6.udp(bytes(3000)), needs_csum=True, gso_type=5, gso_size=1200),
    f.vnet(TAGGED.data(), needs_csum=True),
    f.vnet(f.arp(1, f.CLIENT_MAC, "10.0.0.1", tpa="10.0.0.100")),
    f.vnet(f.eth(payload=f.ipv4("10.0.0.1", "10.0.0.100", f.echo(1, 1), options=b"\x94\4\0\0"))),
    f.vnet(f.eth(payload=f.ipv6("fd00::1", "fd00::2", f.nd_ns("fd00::2", f.CLIENT_MAC), ttl=255))),
    f.vnet(
        f.eth(
            payload=f.ipv6(
                *("fd00::1", "fd00::2", f.udp(1, 2, b"x")),
                extensions=((0, bytes(7)), (60, bytes(7)), (44, b"\0\0\1" + bytes(4))),
            )
        )
    ),
]


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(data: bytes, tun: bool) -> None:
    sound(data, TUN if tun else TAP)


@given(st.binary(max_size=120), st.sampled_from([b"\x45", b"\x46", b"\x60"]))
def test_any_bytes_of_an_ip_version(data: bytes, first: bytes) -> None:
    sound(f.PLAIN + first + data, TUN)


edits = st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=6)


@given(st.sampled_from(GOOD), edits, st.none() | st.integers(0, 120))
def test_good_frames_with_some_bytes_changed(
    data: bytes, changes: list[tuple[int, int]], cut: int | None
) -> None:
    edited = bytearray(data if cut is None else data[:cut])
    for at, value in changes:
        if at < len(edited):
            edited[at] = value
    sound(bytes(edited), TAP)
    # the same packet on a TUN
    sound(bytes(edited[:10] + edited[24:]), TUN)


@given(st.sampled_from(GOOD), edits, st.none() | st.integers(0, 120))
def test_the_testing_kit_does_not_raise_either(
    data: bytes, changes: list[tuple[int, int]], cut: int | None
) -> None:
    edited = bytearray(data if cut is None else data[:cut])
    for at, value in changes:
        if at < len(edited):
            edited[at] = value
    str(parser.parse(bytes(edited)))


def test_the_good_ones_are_good() -> None:
    for data in GOOD:
        checkers.check(data)
        _, reason = walk(data, TAP)
        assert reason in (0, DropReason.ARP_INVALID)


@given(
    st.integers(65500, 65549), st.sampled_from([b"\x45", b"\x4f", b"\x60"]), st.binary(max_size=60)
)
def test_the_largest_frames(size: int, first: bytes, head: bytes) -> None:
    """As long as a port may read: 65535 bytes and an L2 header, full of one pattern."""
    data = (first + head).ljust(size, b"\xff")
    sound(f.PLAIN + data, TUN)
    sound(f.PLAIN + data, TAP)
    sound(b"\1\1\0\0\x05\0\xf0\xff\x01\0" + data, TAP)
