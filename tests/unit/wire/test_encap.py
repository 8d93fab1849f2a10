"""Outer headers, put on and found again."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tunlb.packet import Packet
from tunlb.testing import frames as f
from tunlb.wire import encap, ipv4, ipv6, vnet
from tunlb.wiring import pair

INNER = {4: ("192.0.2.1", "10.0.0.100"), 6: ("2001:db8::1", "fd00::100")}
OUTER = {4: ("10.1.0.254", "10.1.0.11"), 6: ("fd01::fe", "fd01::11")}
KINDS = [(kind, csum) for kind in range(3) for csum in (False, True)]


def packet(af: int, load, **fields) -> Packet:
    pkt: Packet = load(f.ip(*INNER[af], f.udp(7, 80, b"odd"), **fields), tun=True)
    assert (ipv4 if af == 4 else ipv6).parse(pkt) == 0
    return pkt


def push(pkt: Packet, af: int, kind: int, csum: bool, ident: int = -1) -> bytes:
    (pkt.saddr_hi, pkt.saddr), (pkt.daddr_hi, pkt.daddr) = (
        pair(ip_address(address)) for address in OUTER[af]
    )
    encap.push(pkt, kind, af, csum, 6080, 0xABCD_EF01, ident)
    return bytes(pkt.mem[pkt.l3 : pkt.end])


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize(("kind", "csum"), KINDS)
def test_push_and_peel(inner, outer, kind, csum, load) -> None:
    pkt = packet(inner, load, tos=0x2E, ttl=9)
    before = bytes(pkt.mem[pkt.l3 : pkt.end])
    whole = push(pkt, outer, kind, csum)
    assert whole.endswith(before)
    assert len(whole) - len(before) == encap.overhead(kind, outer, csum)
    assert (pkt.af, pkt.proto) == (outer, {1: 47, 2: 17}.get(kind, 4 if inner == 4 else 41))
    assert pkt.l4 == pkt.l3 + (20 if outer == 4 else 40)
    assert encap.peel(pkt, pkt.l4, pkt.proto) == pkt.end - len(before)
    # What was put on is a packet that checks out, with a next header of what it holds.
    again = load(whole, tun=True)
    assert (ipv4 if outer == 4 else ipv6).parse(again) == 0
    assert (again.ttl, again.proto) == (9, pkt.proto)


def test_ident(load) -> None:
    assert push(packet(4, load), 4, 0, False)[4:8] == b"\0\0\x40\0"
    assert push(packet(4, load), 4, 0, False, ident=0x1234)[4:8] == b"\x12\x34\0\0"
    assert push(packet(4, load), 4, 0, False, ident=0xFFFF)[4:8] == b"\xff\xff\0\0"


def test_the_kernel_is_asked_for_gues_checksum_when_it_has_no_other(load) -> None:
    pkt = packet(4, load)
    push(pkt, 4, encap.GUE, True)
    assert (pkt.csum_start, pkt.csum_offset) == (pkt.l4, 6)
    vnet.emit(pkt)
    assert pkt.partial()


@pytest.mark.parametrize("cut", range(12))
def test_peel_what_is_cut_off(cut, load) -> None:
    pkt = packet(4, load)
    push(pkt, 4, encap.GUE, False)
    pkt.end = pkt.l4 + cut
    assert encap.peel(pkt, pkt.l4, 17) == -1
    if cut < 4:
        assert encap.peel(pkt, pkt.l4, 47) == -1


@pytest.mark.parametrize(
    ("proto", "start"),
    [
        (47, b"\x20\x00\x08\x00"),  # GRE with a key
        (47, b"\x00\x01\x08\x00"),  # version 1: PPTP
        (17, b"\x20\x00\x17\xc0" + bytes(8)),  # UDP from a low port
        (17, b"\xc0\x00\x17\xc0" + bytes(4) + b"\x40\x04\0\0"),  # GUE, variant 1
        (6, bytes(12)),
    ],
)
def test_peel_what_is_not_ours(proto, start, load) -> None:
    pkt = load(f.ip(*OUTER[4], start + bytes(40), proto=proto), tun=True)
    assert ipv4.parse(pkt) == 0
    assert encap.peel(pkt, pkt.l4, proto) == -1
