"""IPv4: one check, everything that can lie."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason as Reason
from tunlb.packet import FIRST_FRAGMENT, L3_OFFSET, LATER_FRAGMENT, NOT_FRAGMENT
from tunlb.testing import checkers as c
from tunlb.testing import frames as f
from tunlb.wire import ipv4

A, B = "10.0.0.1", "10.0.0.100"
DATA = f.udp(1, 2, b"hello")


def test_fields(load) -> None:
    pkt = load(f.ipv4(A, B, DATA, ttl=17), tun=True)
    assert ipv4.parse(pkt) == 0
    assert (pkt.af, pkt.proto, pkt.ttl, pkt.fragment) == (4, 17, 17, NOT_FRAGMENT)
    assert (pkt.saddr_hi, pkt.daddr_hi) == (0, 0)
    assert pkt.saddr == ipv4.MAPPED | 0x0A000001
    assert pkt.daddr == ipv4.MAPPED | 0x0A000064
    assert pkt.l4 == L3_OFFSET + 20
    assert pkt.end == L3_OFFSET + 33


def test_padding_is_trimmed(load) -> None:
    pkt = load(f.ipv4(A, B, DATA) + bytes(13), tun=True)
    assert ipv4.parse(pkt) == 0
    assert pkt.end == L3_OFFSET + 33


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        pytest.param(b"", Reason.TRUNCATED, id="nothing"),
        pytest.param(f.ipv4(A, B)[:19], Reason.TRUNCATED, id="19 bytes"),
        pytest.param(f.ipv4(A, B, version=6), Reason.IP_VERSION, id="version 6"),
        pytest.param(f.ipv4(A, B, version=0), Reason.IP_VERSION, id="version 0"),
        pytest.param(f.ipv4(A, B, ihl=4), Reason.IP_HEADER, id="header of 16 bytes"),
        pytest.param(f.ipv4(A, B, ihl=0), Reason.IP_HEADER, id="header of 0 bytes"),
        pytest.param(f.ipv4(A, B, ihl=15), Reason.TRUNCATED, id="header beyond the frame"),
        pytest.param(f.ipv4(A, B, DATA, checksum=0), Reason.IP_CHECKSUM, id="no checksum"),
        pytest.param(f.ipv4(A, B, DATA, checksum=0xDEAD), Reason.IP_CHECKSUM, id="wrong checksum"),
        pytest.param(f.ipv4(A, B, DATA, total_len=19), Reason.IP_LENGTH, id="total below header"),
        pytest.param(f.ipv4(A, B, DATA, total_len=0), Reason.IP_LENGTH, id="total 0"),
        pytest.param(f.ipv4(A, B, DATA, total_len=34), Reason.IP_LENGTH, id="a byte too many"),
        pytest.param(f.ipv4(A, B, DATA, total_len=65535), Reason.IP_LENGTH, id="the most"),
        pytest.param(f.ipv4("0.0.0.0", B, DATA), Reason.MARTIAN, id="source unspecified"),
        pytest.param(f.ipv4("0.1.2.3", B, DATA), Reason.MARTIAN, id="source this-network"),
        pytest.param(f.ipv4("127.0.0.1", B, DATA), Reason.MARTIAN, id="source loopback"),
        pytest.param(f.ipv4("224.0.0.1", B, DATA), Reason.MARTIAN, id="source multicast"),
        pytest.param(f.ipv4("240.0.0.1", B, DATA), Reason.MARTIAN, id="source reserved"),
        pytest.param(f.ipv4("255.255.255.255", B, DATA), Reason.MARTIAN, id="source broadcast"),
        pytest.param(f.ipv4(A, "0.0.0.0", DATA), Reason.MARTIAN, id="to unspecified"),
        pytest.param(f.ipv4(A, "127.0.0.1", DATA), Reason.MARTIAN, id="to loopback"),
    ],
)
def test_refused(packet, reason, load) -> None:
    assert ipv4.parse(load(packet, tun=True)) == reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param(b"\1\1\1\1", 0, id="no-operations"),
        pytest.param(b"\0\xff\xff\xff", 0, id="nothing counts behind the end"),
        pytest.param(b"\x94\4\0\0", 0, id="router alert"),
        pytest.param(b"\7\7\4\0\0\0\0\0", 0, id="record route"),
        pytest.param(b"\1" * 40, 0, id="the most"),
        pytest.param(b"\x83\7\4\0\0\0\0\0", Reason.IP_OPTIONS, id="loose source route"),
        pytest.param(b"\1\x89\7\4\0\0\0\0", Reason.IP_OPTIONS, id="strict source route"),
        pytest.param(b"\x94\1\0\0", Reason.IP_OPTIONS, id="option of length 1"),
        pytest.param(b"\x94\0\0\0", Reason.IP_OPTIONS, id="option of length 0"),
        pytest.param(b"\x94\5\0\0", Reason.IP_OPTIONS, id="option beyond the header"),
        pytest.param(b"\1\1\1\x94", Reason.IP_OPTIONS, id="option without a length"),
    ],
)
def test_options(options, reason, load) -> None:
    pkt = load(f.ipv4(A, B, DATA, options=options), tun=True)
    assert ipv4.parse(pkt) == reason
    assert pkt.l4 == L3_OFFSET + 20 + len(options)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"df": True}, NOT_FRAGMENT),
        ({"df": False}, NOT_FRAGMENT),
        ({"df": False, "mf": True}, FIRST_FRAGMENT),
        ({"df": False, "mf": True, "fragment": 8}, LATER_FRAGMENT),
        ({"df": False, "fragment": 8}, LATER_FRAGMENT),
        ({"df": False, "fragment": 2048 * 8}, LATER_FRAGMENT),
    ],
    ids=["df", "plain", "first", "middle", "last", "high bits of the offset"],
)
def test_fragments(fields, expected, load) -> None:
    pkt = load(f.ipv4(A, B, bytes(24), **fields), tun=True)
    assert ipv4.parse(pkt) == 0
    assert pkt.fragment == expected


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("ident", [0, 0x1234, 0xFFFF])
def test_decrement_ttl_keeps_the_checksum(ttl, ident, load) -> None:
    pkt = load(f.ipv4(A, B, DATA, ttl=ttl, ident=ident), tun=True)
    assert ipv4.parse(pkt) == 0
    ipv4.decrement_ttl(pkt)
    assert pkt.ttl == ttl - 1
    c.check(pkt.frame(), c.ipv4(ttl=ttl - 1, ident=ident), vnet=False, tun=True)


def test_build(load) -> None:
    pkt = load(f.ipv4(B, A, DATA, ttl=3), tun=True)
    assert ipv4.parse(pkt) == 0
    pkt.saddr, pkt.daddr = pkt.daddr, pkt.saddr
    ipv4.build(pkt, 17, 13, 0x10)
    # the UDP checksum does not know which address comes first
    c.check(
        pkt.frame(),
        c.ipv4(saddr=A, daddr=B, ttl=64, tos=0x10, df=True, ident=0, proto=17),
        c.udp(sport=1, dport=2),
        c.payload(b"hello"),
        vnet=False,
        tun=True,
    )
    assert (pkt.af, pkt.ttl, pkt.l4, pkt.end) == (4, 64, L3_OFFSET + 20, L3_OFFSET + 33)
