"""Partial checksums, GSO, and checksums that are wrong: kept as they are, never repaired."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import (
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Conn,
    Net,
    Rig,
    at,
    balanced,
    dropped,
    one,
)
from tunlb.hook import Verdict
from tunlb.testing import checkers, frames
from tunlb.testing.checkers import check, icmp, ip, quoted
from tunlb.testing.frames import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Flow, vnet
from tunlb.testing.parser import parse

ECN = 0x80


def gso_of(net: Net, proto: str) -> int:
    if proto == "udp":
        return GSO_UDP_L4
    return GSO_TCPV4 if net.af == 4 else GSO_TCPV6


def headers(net: Net, proto: str) -> int:
    """Bytes of the IP and transport headers of a data packet."""
    return (20 if net.af == 4 else 40) + (20 if proto == "tcp" else 8)


@pytest.mark.parametrize("size", [1, 1400, 60_000])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_gso_both_ways(net: Net, mode: str, proto: str, size: int) -> None:
    rig = Rig(balanced(net, proto, mode))
    conn = Conn(rig, net, proto, mode).establish()
    kind = gso_of(net, proto)
    offload = {"needs_csum": True, "gso_type": kind, "gso_size": 1400}
    field = 6 if proto == "udp" else 16
    start = 14 + (20 if net.af == 4 else 40)
    expected = checkers.vnet(
        flags=frames.NEEDS_CSUM,
        gso_type=kind,
        gso_size=1400,
        hdr_len=14 + headers(net, proto),
        csum_start=start,
        csum_offset=field,
    )
    conn.up("PA", bytes(size), expected, offload=offload)
    if mode != "dr":
        conn.down("PA", bytes(size), expected, offload=offload)
    assert rig.counters() == conn.counted()


@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_gso_with_ecn(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, "tcp", mode))
    conn = Conn(rig, net, "tcp", mode).establish()
    kind = gso_of(net, "tcp") | ECN
    offload = {"needs_csum": True, "gso_type": kind, "gso_size": 536}
    conn.up("PAC", bytes(5000), checkers.vnet(gso_type=kind, gso_size=536), offload=offload)
    assert rig.counters() == conn.counted()


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_partial_checksum_without_gso(net: Net, mode: str, proto: str) -> None:
    rig = Rig(balanced(net, proto, mode))
    conn = Conn(rig, net, proto, mode)
    start = 14 + (20 if net.af == 4 else 40)
    field = 6 if proto == "udp" else 16
    expected = checkers.vnet(
        flags=frames.NEEDS_CSUM,
        gso_type=0,
        gso_size=0,
        hdr_len=start + field + 2,
        csum_start=start,
        csum_offset=field,
    )
    conn.up("S", b"", expected, offload={"needs_csum": True})
    if mode != "dr":
        conn.down("SA", b"", expected, offload={"needs_csum": True})
    assert rig.counters() == conn.counted()


def test_gso_with_tcp_options_has_a_longer_header(net: Net) -> None:
    rig = Rig(balanced(net))
    conn = Conn(rig, net).establish()
    offload = {"needs_csum": True, "gso_type": gso_of(net, "tcp"), "gso_size": 1000}
    expected = checkers.vnet(hdr_len=14 + headers(net, "tcp") + 12)
    stamps = b"\1\1\x08\x0a" + bytes(8)
    conn.up("PA", bytes(3000), expected, offload=offload | {"hdr_len": 20}, options=stamps)


def test_a_verified_checksum_needs_no_offload_on_the_way_out(net: Net) -> None:
    rig = Rig(balanced(net))
    conn = Conn(rig, net)
    conn.up("S", b"", checkers.vnet(flags=0, csum_start=0), offload={"data_valid": True})


# -- the MTU looks at segments


def small(net: Net, proto: str = "tcp") -> Rig:
    return Rig(balanced(net, proto).replace('"name": "lan"', '"name": "lan", "mtu": 1300'))


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("over", [0, 1])
def test_mtu_is_that_of_the_segments(net: Net, proto: str, over: int) -> None:
    rig = small(net, proto)
    conn = Conn(rig, net, proto).establish()
    size = 1300 - headers(net, proto) + over
    offload: dict[str, Any] = {"needs_csum": True, "gso_type": gso_of(net, proto), "gso_size": size}
    if not over:
        conn.up("PA", bytes(20_000), offload=offload)
        assert rig.counters() == conn.counted()
        return
    frame = conn.frame(conn.outside, "PA", bytes(20_000), False)
    verdict, sent = rig.receive("wan", vnet(frame, **offload))
    assert verdict == Verdict.DROP
    too_big(net, sent[0].frame, conn)
    assert rig.counters() == conn.counted(drop_MTU_EXCEEDED=1, ICMP_ERRORS_SENT=1)


def too_big(net: Net, frame: bytes, conn: Conn) -> None:
    """Frag needed or packet too big, with the MTU of the next link, about what the client wrote."""
    kind = icmp(type=3, code=4, info=1300) if net.af == 4 else icmp(type=2, code=0, info=1300)
    check(
        frame,
        ip(saddr=net.vip, daddr=conn.caddr, ttl=64),
        kind,
        quoted(ip(saddr=conn.caddr, daddr=net.vip, ttl=64)),
    )


@pytest.mark.parametrize("over", [0, 1])
def test_mtu_of_a_single_packet(net: Net, over: int) -> None:
    rig = small(net)
    conn = Conn(rig, net).establish()
    payload = bytes(1300 - headers(net, "tcp") + over)
    if not over:
        conn.up("PA", payload)
        return
    verdict, sent = rig.receive("wan", vnet(conn.frame(conn.outside, "PA", payload, False)))
    assert verdict == Verdict.DROP
    too_big(net, sent[0].frame, conn)
    assert rig.counters() == conn.counted(drop_MTU_EXCEEDED=1, ICMP_ERRORS_SENT=1)


# -- virtio-net headers that lie

LIES: dict[str, dict[str, Any]] = {
    "gso-of-the-other-family": {"needs_csum": True, "gso_type": "other", "gso_size": 1000},
    "gso-udp-on-tcp": {"needs_csum": True, "gso_type": GSO_UDP_L4, "gso_size": 1000},
    "gso-ufo": {"needs_csum": True, "gso_type": 3, "gso_size": 1000},
    "gso-unknown": {"needs_csum": True, "gso_type": 0x7F, "gso_size": 1000},
    "gso-ecn-alone": {"needs_csum": True, "gso_type": ECN, "gso_size": 1000},
    "gso-size-0": {"needs_csum": True, "gso_type": "right", "gso_size": 0},
    "gso-size-by-frags": {"needs_csum": True, "gso_type": "right", "gso_size": 0xFFFF},
    "gso-without-partial-checksum": {"gso_type": "right", "gso_size": 1000},
    "csum-in-the-ethernet-header": {"needs_csum": True, "csum_start": 0, "csum_offset": 16},
    "csum-in-the-ip-header": {"needs_csum": True, "csum_start": 14, "csum_offset": 10},
    "csum-just-before-tcp": {"needs_csum": True, "csum_start": "l4-1", "csum_offset": 16},
    "csum-offset-of-udp": {"needs_csum": True, "csum_start": "l4", "csum_offset": 6},
    "csum-offset-0": {"needs_csum": True, "csum_start": "l4", "csum_offset": 0},
    "csum-past-the-end": {"needs_csum": True, "csum_start": "end-1", "csum_offset": 0},
    "csum-far-past-the-end": {"needs_csum": True, "csum_start": 0xFFFF, "csum_offset": 0xFFFF},
    "gso-with-csum-in-the-payload": {
        "needs_csum": True,
        "csum_start": "l4+20",
        "csum_offset": 16,
        "gso_type": "right",
        "gso_size": 1000,
    },
}


def spelled(net: Net, fields: dict[str, Any], frame: bytes) -> dict[str, Any]:
    """The row with its words replaced by numbers of this frame."""
    l4 = 14 + (20 if net.af == 4 else 40)
    words = {
        "right": gso_of(net, "tcp"),
        "other": gso_of(V6 if net.af == 4 else V4, "tcp"),
        "l4": l4,
        "l4-1": l4 - 1,
        "l4+20": l4 + 20,
        "end-1": len(frame) - 1,
    }
    return {key: words.get(value, value) for key, value in fields.items()}


@pytest.mark.parametrize("fields", LIES.values(), ids=LIES)
def test_lying_vnet_header(net: Net, fields: dict[str, Any]) -> None:
    rig = Rig(balanced(net))
    conn = Conn(rig, net).establish()
    before = rig.counters()
    frame = conn.frame(conn.outside, "PA", bytes(3000), False)
    verdict, sent = rig.receive("wan", vnet(frame, **spelled(net, fields, frame)))
    assert (verdict, sent) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.VNET_HEADER": 1}


@pytest.mark.parametrize("kind", [GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4 | ECN])
def test_lying_gso_type_on_udp(net: Net, kind: int) -> None:
    rig = Rig(balanced(net, "udp"))
    frame = Conn(rig, net, "udp").outside.udp(bytes(3000))
    dropped(rig, "wan", vnet(frame, needs_csum=True, gso_type=kind, gso_size=1000), "VNET_HEADER")


def test_gso_on_a_ping_is_a_lie(net: Net) -> None:
    rig = Rig(balanced(net))
    ping = frames.echo(1, 1, bytes(3000), v6=net.af == 6)
    frame = frames.eth(WAN_MAC, ROUTER_MAC, payload=frames.ip(net.remote, net.vip, ping))
    l4 = 14 + (20 if net.af == 4 else 40)
    raw = vnet(
        frame, needs_csum=True, csum_start=l4, csum_offset=2, gso_type=GSO_TCPV4, gso_size=999
    )
    dropped(rig, "wan", raw, "VNET_HEADER")


def test_checksum_field_in_the_padding_behind_the_packet(net: Net) -> None:
    """Inside the frame, but behind what the IP header says is the packet's end."""
    rig = Rig(balanced(net))
    frame = Conn(rig, net).outside.syn() + bytes(40)
    raw = vnet(frame, needs_csum=True, csum_start=len(frame) - 4, csum_offset=2)
    dropped(rig, "wan", raw, "VNET_HEADER")


@pytest.mark.parametrize("length", range(10))
def test_a_read_shorter_than_the_vnet_header(net: Net, length: int) -> None:
    dropped(Rig(balanced(net)), "wan", bytes(length), "TRUNCATED")


# -- wrong checksums stay wrong


def error_of(frame: bytes) -> int:
    """How far the TCP or UDP checksum is from the right one, in ones' complement."""
    data = frame[10:]
    l3 = 14
    v6 = data[l3] >> 4 == 6
    l4 = l3 + (40 if v6 else 20)
    src, dst, size = (8, 24, 16) if v6 else (12, 16, 4)
    proto = data[l3 + (6 if v6 else 9)]
    pseudo = frames.pseudo_header(
        data[l3 + src : l3 + src + size], data[l3 + dst : l3 + dst + size], proto, len(data) - l4
    )
    return frames.ones_sum(pseudo + data[l4:]) % 0xFFFF


@pytest.mark.parametrize("wrong", [0x0001, 0x1234, 0xFFFE])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_wrong_transport_checksum_is_forwarded_as_wrong(
    net: Net, mode: str, proto: str, wrong: int
) -> None:
    rig = Rig(balanced(net, proto, mode))
    conn = Conn(rig, net, proto, mode).establish()
    raw = vnet(conn.frame(conn.outside, "PA", b"payload!", False, checksum=wrong))
    sent = one(rig.receive("wan", raw))
    assert error_of(sent.frame) == error_of(raw) != 0
    assert "wrong checksum" in parse(sent.frame).problems[0]


@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_udp_without_checksum_stays_without(mode: str) -> None:
    rig = Rig(balanced(V4, "udp", mode))
    conn = Conn(rig, V4, "udp", mode)
    conn.up("", b"x", checkers.udp(checksum=0), checksum=0)
    if mode != "dr":
        conn.down("", b"y", checkers.udp(checksum=0), checksum=0)


def test_wrong_ip_header_checksum() -> None:
    rig = Rig(balanced(V4))
    frame = Conn(rig, V4).outside.syn(ip={"checksum": 0xDEAD})
    dropped(rig, "wan", vnet(frame), "IP_CHECKSUM")


def test_udp_checksum_that_comes_out_as_zero(net: Net) -> None:
    """A sum of zero is written as 0xFFFF: 0 would mean that there is none (RFC 768)."""
    rig = Rig(balanced(net, "udp"))
    conn = Conn(rig, net, "udp")
    conn.up("", b"first")
    inside = Flow(at(conn.laddr, conn.lport), at(conn.daddr, conn.dport), client_mac=LAN_MAC)
    # With a payload of zero the checksum is the complement of the sum, the word that is missing.
    missing = inside.udp(b"\0\0")[-4:-2]
    conn.up("", missing, checkers.udp(checksum=0xFFFF))
    assert rig.counters() == conn.counted()
