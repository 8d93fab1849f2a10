"""The frame builder and the parser against scapy: the same bytes, the same reading."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from tunlb.testing import checkers as c
from tunlb.testing import frames as f
from tunlb.testing import parser

A4, B4, A6, B6 = "10.0.0.1", "10.0.0.100", "fd00::1", "fd00::100"
ETHER = Ether(dst=f.SERVER_MAC, src=f.CLIENT_MAC)
DF: dict[str, Any] = {"flags": "DF", "id": 0}

SAME = [
    pytest.param(
        f.Flow(f"{A4}:40000", f"{B4}:80").syn(),
        ETHER
        / IP(src=A4, dst=B4, **DF)
        / TCP(sport=40000, dport=80, flags="S", seq=1000, window=65535, options=[("MSS", 1460)]),
        id="tcp4 syn",
    ),
    pytest.param(
        f.Flow(f"[{A6}]:40000", f"[{B6}]:80").data(b"odd"),
        ETHER
        / IPv6(src=A6, dst=B6)
        / TCP(sport=40000, dport=80, flags="PA", seq=1000, ack=5000, window=65535)
        / Raw(b"odd"),
        id="tcp6 data",
    ),
    pytest.param(
        f.eth(payload=f.ipv4(A4, B4, f.tcp(1, 2, flags="FRUEC", urgent=7, window=9))),
        ETHER / IP(src=A4, dst=B4, **DF) / TCP(sport=1, dport=2, flags="FRUEC", urgptr=7, window=9),
        id="tcp4 flags",
    ),
    pytest.param(
        f.eth(payload=f.ipv4(A4, B4, f.udp(53, 54, b"x"), ttl=7, tos=0xB8, ident=77, df=False)),
        ETHER / IP(src=A4, dst=B4, ttl=7, tos=0xB8, id=77) / UDP(sport=53, dport=54) / Raw(b"x"),
        id="udp4",
    ),
    pytest.param(
        f.eth(payload=f.ipv6(A6, B6, f.udp(53, 54), ttl=7, tos=0xB8, flow=0x12345)),
        ETHER / IPv6(src=A6, dst=B6, hlim=7, tc=0xB8, fl=0x12345) / UDP(sport=53, dport=54),
        id="udp6 empty",
    ),
    pytest.param(
        f.eth(payload=f.ipv4(A4, B4, f.udp(1, 2, b"x"), options=b"\x94\4\0\0")),
        ETHER
        / IP(src=A4, dst=B4, options=[b"\x94\4\0\0"], **DF)
        / UDP(sport=1, dport=2)
        / Raw(b"x"),
        id="ipv4 options",
    ),
    pytest.param(
        f.eth(payload=f.ipv4(A4, B4, b"tail", proto=17, df=False, mf=True, fragment=1480, ident=9)),
        ETHER / IP(src=A4, dst=B4, flags="MF", frag=185, id=9, proto=17) / Raw(b"tail"),
        id="ipv4 fragment",
    ),
    pytest.param(
        f.eth(
            payload=f.ipv6(
                A6,
                B6,
                f.udp(1, 2, b"x"),
                extensions=((60, b"\0\1\4\0\0\0\0"), (44, b"\0\0\0\0\0\0\7")),
            )
        ),
        ETHER
        / IPv6(src=A6, dst=B6)
        / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrFragment(id=7)
        / UDP(sport=1, dport=2)
        / Raw(b"x"),
        id="ipv6 extension headers",
    ),
    pytest.param(
        f.eth(payload=f.ipv4(A4, B4, f.echo(5, 6, b"odd"))),
        ETHER / IP(src=A4, dst=B4, **DF) / ICMP(id=5, seq=6) / Raw(b"odd"),
        id="icmp echo",
    ),
    pytest.param(
        f.eth(payload=f.ipv6(A6, B6, f.echo(5, 6, b"odd", v6=True))),
        ETHER / IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=5, seq=6, data=b"odd"),
        id="icmpv6 echo",
    ),
    pytest.param(
        f.eth(payload=f.ipv6(A6, "ff02::1:ff00:100", f.nd_ns(B6, f.CLIENT_MAC), ttl=255)),
        ETHER
        / IPv6(src=A6, dst="ff02::1:ff00:100", hlim=255)
        / ICMPv6ND_NS(tgt=B6)
        / ICMPv6NDOptSrcLLAddr(lladdr=f.CLIENT_MAC),
        id="neighbour solicitation",
    ),
    pytest.param(
        f.eth(payload=f.ipv6(A6, B6, f.nd_na(A6, f.CLIENT_MAC, router=True), ttl=255)),
        ETHER
        / IPv6(src=A6, dst=B6, hlim=255)
        / ICMPv6ND_NA(tgt=A6, R=1, S=1, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=f.CLIENT_MAC),
        id="neighbour advertisement",
    ),
    pytest.param(
        f.arp(1, f.CLIENT_MAC, A4, tpa=B4)[:42],
        Ether(dst="ff:ff:ff:ff:ff:ff", src=f.CLIENT_MAC)
        / ARP(op=1, hwsrc=f.CLIENT_MAC, psrc=A4, hwdst="00:00:00:00:00:00", pdst=B4),
        id="arp request",
    ),
    pytest.param(
        f.arp(2, f.CLIENT_MAC, A4, f.SERVER_MAC, B4, vlan=10)[:46],
        ETHER
        / Dot1Q(vlan=10)
        / ARP(op=2, hwsrc=f.CLIENT_MAC, psrc=A4, hwdst=f.SERVER_MAC, pdst=B4),
        id="arp reply, tagged",
    ),
    pytest.param(
        f.eth(payload=f.ipv4(A4, B4, f.udp(1, 2)), vlan=(10, 0xE014)),
        ETHER
        / Dot1Q(vlan=10)
        / Dot1Q(vlan=20, prio=7)
        / IP(src=A4, dst=B4, **DF)
        / UDP(sport=1, dport=2),
        id="two tags",
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), SAME)
def test_builder_and_scapy_make_the_same_bytes(ours: bytes, theirs) -> None:
    assert ours.hex(" ") == bytes(theirs).hex(" ")


@pytest.mark.parametrize(("ours", "theirs"), SAME)
def test_the_parser_reads_what_scapy_made(ours: bytes, theirs) -> None:
    frame = c.check(bytes(theirs), vnet=False)
    ether = frame.headers[0]
    assert isinstance(ether, parser.Ether)
    assert (ether.dst, ether.src) == (theirs.dst, theirs.src)
    for layer, header in ((IP, c.ipv4), (IPv6, c.ipv6)):
        if layer in theirs:
            inner = theirs[layer]
            ttl = inner.ttl if layer is IP else inner.hlim
            c.check(bytes(theirs), header(saddr=inner.src, daddr=inner.dst, ttl=ttl), vnet=False)
    if TCP in theirs:
        inner = theirs[TCP]
        # scapy's letters come in the same order, lowest bit first
        match = c.tcp(sport=inner.sport, dport=inner.dport, seq=inner.seq, flags=str(inner.flags))
        c.check(bytes(theirs), match, vnet=False)
    if UDP in theirs:
        c.check(bytes(theirs), c.udp(sport=theirs[UDP].sport), vnet=False)


@pytest.mark.parametrize(
    ("frame", "offset", "size", "expected"),
    [
        (f.ipv4(A4, B4, ihl=15), 0, 1, 0x4F),
        (f.ipv4(A4, B4, version=9), 0, 1, 0x95),
        (f.ipv4(A4, B4, total_len=3), 2, 2, 3),
        (f.ipv4(A4, B4, checksum=0xBEEF), 10, 2, 0xBEEF),
        (f.ipv4(A4, B4, proto=99), 9, 1, 99),
        (f.ipv6(A6, B6, payload_len=3), 4, 2, 3),
        (f.ipv6(A6, B6, version=4), 0, 1, 0x40),
        (f.ipv4(A4, B4, f.tcp(1, 2, doff=15)), 32, 1, 0xF0),
        (f.ipv4(A4, B4, f.tcp(1, 2, checksum=1)), 36, 2, 1),
        (f.ipv4(A4, B4, f.udp(1, 2, length=3)), 24, 2, 3),
        (f.ipv4(A4, B4, f.udp(1, 2, checksum=0)), 26, 2, 0),
        (f.ipv4(A4, B4, f.icmp(8, checksum=0xBEEF)), 22, 2, 0xBEEF),
    ],
)
def test_every_field_can_lie(frame: bytes, offset: int, size: int, expected: int) -> None:
    assert int.from_bytes(frame[offset : offset + size], "big") == expected


def test_a_flow_counts_its_sequence_numbers() -> None:
    flow = f.Flow(f"{A4}:1", f"{B4}:2")
    rows = [
        (flow.syn(), "S", 1000, 0),
        (flow.synack(), "SA", 5000, 1001),
        (flow.ack(), "A", 1001, 5001),
        (flow.data(b"12345"), "PA", 1001, 5001),
        (flow.data(b"123", reply=True), "PA", 5001, 1006),
        (flow.fin(), "FA", 1006, 5004),
        (flow.fin(reply=True), "FA", 5004, 1007),
        (flow.rst(), "R", 1007, 0),
    ]
    for frame, flags, seq, ack in rows:
        c.check(frame, c.tcp(flags=flags, seq=seq, ack=ack), vnet=False)


def test_a_flow_takes_overrides_of_one_frame() -> None:
    flow = f.Flow(f"{A4}:1", f"{B4}:2", vlan=10, ttl=9)
    frame = flow.syn(mss=None, window=5, ip={"tos": 4})
    c.check(frame, c.ether(vlan=(10,)), c.ip(ttl=9, tos=4), c.tcp(window=5, mss=None), vnet=False)
    c.check(flow.udp(b"x", reply=True), c.ether(dst=f.CLIENT_MAC), c.udp(sport=2), vnet=False)
    c.check(f.Flow(f"{A4}:1", f"{B4}:2", tun=True).ack(), c.ipv4(saddr=A4), vnet=False, tun=True)


@pytest.mark.parametrize("flow", [f.Flow(f"{A4}:1", f"{B4}:2"), f.Flow(f"[{A6}]:1", f"[{B6}]:2")])
@pytest.mark.parametrize("vlan", [None, 10])
def test_a_partial_checksum_is_the_sum_of_the_pseudo_header(flow: f.Flow, vlan) -> None:
    flow = f.Flow(flow.client, flow.server, vlan=vlan)
    for whole, at in ((flow.data(b"data"), 16), (flow.udp(b"data"), 6)):
        frame = f.vnet(whole, needs_csum=True)
        flags, _, hdr_len, _, start, offset = struct.unpack("=BBHHHH", frame[:10])
        assert (flags, offset, hdr_len) == (1, at, start + at + 2)
        # finishing it gives the whole frame again
        bare = bytearray(frame[10:])
        value = f.checksum(bytes(bare[start:]))
        bare[start + at : start + at + 2] = value.to_bytes(2, "big")
        assert bytes(bare) == whole
