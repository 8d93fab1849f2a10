"""IPv6: the header, and the walk over extension headers."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason as Reason
from tunlb.packet import FIRST_FRAGMENT, L3_OFFSET, LATER_FRAGMENT, NOT_FRAGMENT
from tunlb.testing import checkers as c
from tunlb.testing import frames as f
from tunlb.wire import ipv6

A, B = "fd00::1", "fd00::100"
DATA = f.udp(1, 2, b"hello")
PAD = b"\0" + bytes(6)  # the rest of an extension header of 8 bytes


def test_fields(load) -> None:
    pkt = load(f.ipv6(A, B, DATA, ttl=17, tos=0xB8, flow=0xABCDE), tun=True)
    assert ipv6.parse(pkt) == 0
    assert (pkt.af, pkt.proto, pkt.ttl, pkt.fragment) == (6, 17, 17, NOT_FRAGMENT)
    assert (pkt.saddr_hi, pkt.saddr) == (0xFD00 << 48, 1)
    assert (pkt.daddr_hi, pkt.daddr) == (0xFD00 << 48, 0x100)
    assert (pkt.l4, pkt.end) == (L3_OFFSET + 40, L3_OFFSET + 53)


def test_padding_is_trimmed(load) -> None:
    pkt = load(f.ipv6(A, B, DATA) + bytes(7), tun=True)
    assert ipv6.parse(pkt) == 0
    assert pkt.end == L3_OFFSET + 53


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        pytest.param(b"", Reason.TRUNCATED, id="nothing"),
        pytest.param(f.ipv6(A, B)[:39], Reason.TRUNCATED, id="39 bytes"),
        pytest.param(f.ipv6(A, B, version=4), Reason.IP_VERSION, id="version 4"),
        pytest.param(f.ipv6(A, B, DATA, payload_len=14), Reason.IP_LENGTH, id="a byte too many"),
        pytest.param(f.ipv6(A, B, DATA, payload_len=65535), Reason.IP_LENGTH, id="the most"),
        pytest.param(f.ipv6("::1", B, DATA), Reason.MARTIAN, id="source loopback"),
        pytest.param(f.ipv6(A, "::1", DATA), Reason.MARTIAN, id="to loopback"),
        pytest.param(f.ipv6(A, "::", DATA), Reason.MARTIAN, id="to unspecified"),
        pytest.param(f.ipv6("ff02::1", B, DATA), Reason.MARTIAN, id="source multicast"),
        pytest.param(f.ipv6("::ffff:10.0.0.1", B, DATA), Reason.MARTIAN, id="source mapped"),
        pytest.param(f.ipv6(A, "::ffff:10.0.0.1", DATA), Reason.MARTIAN, id="to mapped"),
        pytest.param(f.ipv6("::", "ff02::1", DATA), 0, id="source unspecified, as in DAD"),
        pytest.param(f.ipv6(A, B, DATA, proto=59), 0, id="no next header"),
    ],
)
def test_header(packet, reason, load) -> None:
    assert ipv6.parse(load(packet, tun=True)) == reason


@pytest.mark.parametrize(
    ("extensions", "reason", "length", "fragment"),
    [
        pytest.param([(0, PAD)], 0, 8, NOT_FRAGMENT, id="hop-by-hop"),
        pytest.param([(60, PAD), (60, PAD)], 0, 16, NOT_FRAGMENT, id="dest options twice"),
        pytest.param([(0, b"\1" + bytes(14))], 0, 16, NOT_FRAGMENT, id="a long one"),
        pytest.param([(51, b"\1" + bytes(10))], 0, 12, NOT_FRAGMENT, id="AH counts words"),
        pytest.param([(43, b"\0\0\0" + bytes(4))], 0, 8, NOT_FRAGMENT, id="routing, none left"),
        pytest.param(
            [(43, b"\0\0\1" + bytes(4))], Reason.IP_OPTIONS, None, None, id="a source route"
        ),
        pytest.param(
            [(60, PAD), (0, PAD)], Reason.IP_OPTIONS, None, None, id="hop-by-hop not first"
        ),
        pytest.param([(60, PAD)] * 8, 0, 64, NOT_FRAGMENT, id="as many as allowed"),
        pytest.param([(60, PAD)] * 9, Reason.IP_OPTIONS, None, None, id="one more"),
        pytest.param([(60, b"\xff" + bytes(6))], Reason.TRUNCATED, None, None, id="too long"),
        pytest.param([(44, b"\0\0\1" + bytes(4))], 0, 8, FIRST_FRAGMENT, id="first fragment"),
        pytest.param([(44, b"\0\0\x09" + bytes(4))], 0, 8, LATER_FRAGMENT, id="a later fragment"),
        pytest.param([(44, b"\0\x01\0" + bytes(4))], 0, 8, LATER_FRAGMENT, id="the last fragment"),
        pytest.param([(44, PAD)], 0, 8, NOT_FRAGMENT, id="an atomic fragment"),
        pytest.param(
            [(44, b"\0\0\x09" + bytes(4)), (60, b"\xff" + bytes(6))],
            *(0, 8, LATER_FRAGMENT),
            id="data behind a later fragment is not walked",
        ),
    ],
)
def test_extension_headers(extensions, reason, length, fragment, load) -> None:
    pkt = load(f.ipv6(A, B, DATA, extensions=tuple(extensions)), tun=True)
    assert ipv6.parse(pkt) == reason
    if reason == 0:
        assert pkt.l4 == L3_OFFSET + 40 + length
        assert pkt.fragment == fragment
        assert pkt.proto == (60 if len(extensions) == 2 and extensions[0][0] == 44 else 17)


@pytest.mark.parametrize("length", range(1, 8))
def test_an_extension_header_is_cut_off(length, load) -> None:
    packet = f.ipv6(A, B, bytes(length), proto=0)
    assert ipv6.parse(load(packet, tun=True)) == Reason.TRUNCATED


def test_decrement_hop_limit(load) -> None:
    pkt = load(f.ipv6(A, B, DATA, ttl=2), tun=True)
    assert ipv6.parse(pkt) == 0
    ipv6.decrement_hop_limit(pkt)
    assert pkt.frame() == f.ipv6(A, B, DATA, ttl=1)
    assert pkt.ttl == 1


def test_build(load) -> None:
    pkt = load(f.ipv6(B, A, DATA, ttl=3, flow=77, tos=3), tun=True)
    assert ipv6.parse(pkt) == 0
    pkt.saddr, pkt.daddr = pkt.daddr, pkt.saddr
    ipv6.build(pkt, 17, 13, 255)
    c.check(
        pkt.frame(),
        c.ipv6(saddr=A, daddr=B, ttl=255, tos=0, flow=0, proto=17),
        c.udp(sport=1, dport=2),
        vnet=False,
        tun=True,
    )
    assert (pkt.af, pkt.ttl, pkt.l4, pkt.end) == (6, 255, L3_OFFSET + 40, L3_OFFSET + 53)
