"""TCP: header length and flags."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tunlb.counters import DropReason
from tunlb.packet import Packet
from tunlb.testing import frames as f
from tunlb.wire import ipv4, ipv6, tcp
from tunlb.wiring import pair

ENDS = {4: ("10.0.0.1", "10.0.0.100"), 6: ("fd00::1", "fd00::100")}


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize(
    ("segment", "cut", "reason"),
    [
        pytest.param(f.tcp(40000, 80), 0, 0, id="bare"),
        pytest.param(f.tcp(40000, 80, mss=1460), 0, 0, id="options"),
        pytest.param(f.tcp(40000, 80, options=bytes(40)), 0, 0, id="the most options"),
        pytest.param(f.tcp(40000, 80), 1, DropReason.L4_HEADER, id="19 bytes"),
        pytest.param(f.tcp(40000, 80), 20, DropReason.L4_HEADER, id="nothing"),
        pytest.param(f.tcp(40000, 80, doff=4), 0, DropReason.L4_HEADER, id="doff below 5"),
        pytest.param(f.tcp(40000, 80, doff=0), 0, DropReason.L4_HEADER, id="doff 0"),
        pytest.param(f.tcp(40000, 80, b"abc", doff=6), 0, DropReason.L4_HEADER, id="doff too far"),
        pytest.param(f.tcp(40000, 80, b"abcd", doff=6), 0, 0, id="doff up to the end"),
    ],
)
def test_header(af, segment, cut, reason, load) -> None:
    saddr, daddr = ENDS[af]
    body = segment.build(f.address_bytes(saddr), f.address_bytes(daddr))
    pkt = load(f.ip(saddr, daddr, body[: len(body) - cut], proto=6), tun=True)
    assert (ipv4 if af == 4 else ipv6).parse(pkt) == 0
    assert tcp.parse(pkt) == reason
    if reason == 0:
        assert (pkt.sport, pkt.dport) == (40000, 80)


@pytest.mark.parametrize(
    ("letters", "bits"),
    [
        ("S", tcp.SYN),
        ("SA", tcp.SYN | tcp.ACK),
        ("FA", tcp.FIN | tcp.ACK),
        ("R", tcp.RST),
        ("", 0),
        ("FSRPAUEC", 0xFF),
    ],
)
def test_flags(letters, bits, load) -> None:
    pkt = load(f.ipv4(*ENDS[4], f.tcp(1, 65535, flags=letters)), tun=True)
    assert ipv4.parse(pkt) == 0
    assert tcp.parse(pkt) == 0
    assert pkt.tcp_flags == bits
    assert pkt.dport == 65535


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"], ids=len)
def test_a_built_segment_is_what_the_builder_of_the_tests_makes(af: int, payload: bytes) -> None:
    saddr, daddr = ENDS[af]
    options = bytes.fromhex("020405b4")
    pkt = Packet()
    pkt.af = af
    pkt.saddr_hi, pkt.saddr = pair(ip_address(saddr))
    pkt.daddr_hi, pkt.daddr = pair(ip_address(daddr))
    pkt.sport, pkt.dport = 80, 40000
    tcp.build(pkt, 0xFFFFFFF0, 7, tcp.SYN | tcp.ACK, 1234, len(options), len(payload))
    pkt.mem[pkt.l4 + 20 : pkt.end] = options + payload
    tcp.seal(pkt)
    pkt.start = pkt.l3
    expected = f.tcp(80, 40000, payload, flags="SA", seq=0xFFFFFFF0, ack=7, window=1234, mss=1460)
    fields = {"df": True, "ident": 0} if af == 4 else {}
    assert pkt.frame() == f.ip(saddr, daddr, expected, ttl=64, **fields)
