"""ICMP errors about packets of a conn: passed on to who sent the packet, translated throughout."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Conn,
    Net,
    Rig,
    balanced,
    dropped,
    one,
    states,
)
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, ether, icmp, ip, quoted, tcp, udp
from tunlb.testing.frames import eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.frames import udp as datagram
from tunlb.testing.parser import Ip, Udp

# name: type, code, second word, for IPv4 and IPv6
KINDS: dict[str, dict[int, tuple[int, int, int]]] = {
    "too-big": {4: (3, 4, 1280), 6: (2, 0, 1280)},
    "port-unreachable": {4: (3, 3, 0), 6: (1, 4, 0)},
    "host-unreachable": {4: (3, 1, 0), 6: (1, 3, 0)},
    "time-exceeded": {4: (11, 0, 0), 6: (3, 0, 0)},
}


def wrote(conn: Conn, direction: str) -> bytes:
    """A packet that left us, as a router on its way quotes it."""
    seen = conn.up("PA", b"12345678") if direction == "up" else conn.down("PA", b"12345678")
    return seen.data[24:]


def error(
    net: Net, kind: str, source: str, target: str, about: bytes, side: str, **fields: Any
) -> bytes:
    number, code, info = KINDS[kind][net.af]
    macs = (WAN_MAC, ROUTER_MAC) if side == "wan" else (LAN_MAC, DEST_MAC)
    return vnet(
        eth(*macs, payload=packet(source, target, message(number, code, info, about, **fields)))
    )


@pytest.mark.parametrize("cut", [True, False], ids=["8-bytes", "whole"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_from_the_dests_side(net: Net, mode: str, proto: str, kind: str, cut: bool) -> None:
    """Somebody behind us complains about a client's packet: the client hears it from the VIP."""
    rig = Rig(balanced(net, proto, mode))
    conn = Conn(rig, net, proto, mode).establish()
    about = wrote(conn, "up")
    before = conn.counted()
    header = 20 if net.af == 4 else 40
    router = "192.0.2.77" if net.af == 4 else "2001:db8:77::1"
    raw = error(net, kind, router, conn.laddr, about[: header + 8] if cut else about, "lan")
    sent = one(rig.receive("lan", raw))
    number, code, info = KINDS[kind][net.af]
    ports = (tcp if proto == "tcp" else udp)(sport=conn.cport, dport=80)
    assert sent.port == "wan"
    check(
        sent.frame,
        ether(dst=ROUTER_MAC, src=WAN_MAC),
        ip(saddr=net.vip, daddr=conn.caddr, ttl=63),
        icmp(type=number, code=code, info=info),
        quoted(ip(saddr=conn.caddr, daddr=net.vip), ports),
    )
    assert rig.counters() == before | {"ICMP_RELATED": 1}


@pytest.mark.parametrize("cut", [True, False], ids=["8-bytes", "whole"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_from_the_clients_side(net: Net, mode: str, proto: str, kind: str, cut: bool) -> None:
    """A router before us, or the client, complains about a reply: the dest hears it."""
    rig = Rig(balanced(net, proto, mode))
    conn = Conn(rig, net, proto, mode).establish()
    about = wrote(conn, "down")
    before = conn.counted()
    header = 20 if net.af == 4 else 40
    router = "192.0.2.77" if net.af == 4 else "2001:db8:77::1"
    raw = error(net, kind, router, net.vip, about[: header + 8] if cut else about, "wan")
    sent = one(rig.receive("wan", raw))
    number, code, info = KINDS[kind][net.af]
    ports = (tcp if proto == "tcp" else udp)(sport=8080, dport=conn.lport)
    assert sent.port == "lan"
    check(
        sent.frame,
        ether(dst=DEST_MAC, src=LAN_MAC),
        # nat shows the dest the world as it is; fnat shows it nothing but our laddr
        ip(saddr=net.laddr if mode == "fnat" else router, daddr=net.dest, ttl=63),
        icmp(type=number, code=code, info=info),
        quoted(ip(saddr=net.dest, daddr=conn.laddr), ports),
    )
    assert rig.counters() == before | {"ICMP_RELATED": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_direct_routing(net: Net, kind: str) -> None:
    """The reply did not pass us, but the error about it comes to our VIP: to the dest, as it is."""
    rig = Rig(balanced(net, "tcp", "dr"))
    conn = Conn(rig, net, "tcp", "dr").establish()
    about = conn.frame(conn.outside, "PA", b"reply", True)[14:]
    router = "192.0.2.77" if net.af == 4 else "2001:db8:77::1"
    raw = error(net, kind, router, net.vip, about, "wan")
    sent = one(rig.receive("wan", raw))
    number, code, info = KINDS[kind][net.af]
    check(
        sent.frame,
        ether(dst=DEST_MAC, src=LAN_MAC),
        ip(saddr=router, daddr=net.vip, ttl=63),
        icmp(type=number, code=code, info=info),
        quoted(ip(saddr=net.vip, daddr=conn.caddr), tcp(sport=80, dport=conn.cport)),
    )
    assert rig.counters() == conn.counted(ICMP_RELATED=1)


def fnat(net: Net) -> tuple[Rig, Conn, bytes]:
    rig = Rig(balanced(net))
    conn = Conn(rig, net).establish()
    return rig, conn, wrote(conn, "up")


def test_unrelated(net: Net) -> None:
    rig, _, about = fnat(net)
    ports = 20 if net.af == 4 else 40
    other = about[:ports] + b"\xff\xf0" + about[ports + 2 :]
    raw = error(net, "too-big", net.dest, net.laddr, other, "lan")
    before = rig.counters()
    assert rig.receive("lan", raw) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.ICMP_UNRELATED": 1}


def test_error_about_somebody_elses_packet_is_routed(net: Net) -> None:
    """A dest has a life of its own: what is neither addressed to us nor of a conn is forwarded."""
    rig = Rig(balanced(net))
    about = packet(net.dest, net.nowhere, segment(22, 12345, b"x"))
    raw = error(net, "time-exceeded", net.remote, net.dest, about, "wan")
    check(one(rig.receive("wan", raw)).frame, ip(saddr=net.remote, daddr=net.dest, ttl=63))
    assert rig.counters() == {"FORWARDED": 1}


def test_inner_packet_of_another_protocol(net: Net) -> None:
    rig, _, _ = fnat(net)
    about = packet(net.laddr, net.dest, bytes(20), proto=47)
    before = rig.counters()
    assert rig.receive("lan", error(net, "too-big", net.dest, net.laddr, about, "lan")) == (0, [])
    assert rig.counters() == before | {"drop.ICMP_UNRELATED": 1}


def test_bad_outer_checksum(net: Net) -> None:
    rig, conn, about = fnat(net)
    raw = error(net, "too-big", net.dest, net.laddr, about, "lan", checksum=0x1234)
    assert rig.receive("lan", raw) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_ICMP_INVALID=1)


@pytest.mark.parametrize("length", range(28))
def test_short_quote(net: Net, length: int) -> None:
    rig, conn, about = fnat(net)
    length += 0 if net.af == 4 else 20
    raw = error(net, "too-big", net.dest, net.laddr, about[:length], "lan")
    assert rig.receive("lan", raw) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_ICMP_INVALID=1)


INNER_LIES = {
    "version": {"version": 6},
    "ihl-4": {"ihl": 4},
    "ihl-15": {"ihl": 15},
    "checksum": {"checksum": 0x1111},
    "fragment-offset": {"fragment": 8, "df": False},
}


@pytest.mark.parametrize("fields", INNER_LIES.values(), ids=INNER_LIES)
def test_inner_ipv4_header_lies(fields: dict[str, Any]) -> None:
    rig, conn, _ = fnat(V4)
    ports = conn.lport.to_bytes(2, "big") + (8080).to_bytes(2, "big")
    about = packet(V4.laddr, V4.dest, ports + bytes(4), proto=6, **fields)
    raw = error(V4, "too-big", V4.dest, V4.laddr, about, "lan")
    assert rig.receive("lan", raw) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_ICMP_INVALID=1)


def test_an_error_does_not_keep_a_conn_alive(net: Net) -> None:
    rig = Rig(balanced(net, "udp"))
    conn = Conn(rig, net, "udp")
    about = wrote(conn, "up")
    for _ in range(3):
        rig.advance(90_000, step=1000)
        one(rig.receive("lan", error(net, "port-unreachable", net.dest, net.laddr, about, "lan")))
    assert states(rig) == ["ONEWAY"]
    rig.advance(31_000)
    assert states(rig) == []
    assert rig.counters() == conn.counted(ICMP_RELATED=3, CONN_EXPIRED=1)


def test_ttl_of_an_error(net: Net) -> None:
    """Used up on the way through us: dropped, and no error about an error."""
    rig, conn, about = fnat(net)
    number, code, info = KINDS["too-big"][net.af]
    body = packet(net.dest, net.laddr, message(number, code, info, about), ttl=1)
    assert rig.receive("lan", vnet(eth(LAN_MAC, DEST_MAC, payload=body))) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_TTL_EXCEEDED=1)


def test_udp_without_checksum_inside() -> None:
    """The quoted 0 says that there is none, and goes on saying so."""
    rig = Rig(balanced(V4, "udp"))
    conn = Conn(rig, V4, "udp")
    about = conn.up("", b"12345678", checksum=0).data[24:]
    raw = error(V4, "port-unreachable", V4.dest, V4.laddr, about, "lan")
    check(one(rig.receive("lan", raw)).frame, quoted(udp(checksum=0)))


def test_to_another_station(net: Net) -> None:
    _, _, about = fnat(net)
    rig = Rig(balanced(net))
    number, code, info = KINDS["too-big"][net.af]
    body = packet(net.dest, net.laddr, message(number, code, info, about))
    dropped(rig, "lan", vnet(eth("02:00:00:00:00:99", DEST_MAC, payload=body)), "OTHERHOST")


# -- IPv6: what lies between the quoted header and the ports

FRAGMENT_HEADER = (44, bytes((0, 0, 1)) + (77).to_bytes(4, "big"))  # the first one, more follow
EXTENSIONS = {
    "fragment": (FRAGMENT_HEADER,),
    "options": ((60, bytes(7)),),
    "both": ((60, bytes(15)[:7]), FRAGMENT_HEADER),
}


def answer(conn: Conn, extensions: tuple[tuple[int, bytes], ...]) -> bytes:
    """What left us for the client, with headers in between."""
    return packet(
        conn.vaddr,
        conn.caddr,
        datagram(80, conn.cport, b"12345678" * 20),
        extensions=extensions,
    )


@pytest.mark.parametrize("extensions", EXTENSIONS.values(), ids=EXTENSIONS)
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_behind_extension_headers(mode: str, extensions: tuple[tuple[int, bytes], ...]) -> None:
    """A fragmented answer that is too large somewhere: its sender has to hear of it."""
    rig = Rig(balanced(V6, "udp", mode))
    conn = Conn(rig, V6, "udp", mode).establish()
    before = conn.counted()
    raw = error(V6, "too-big", "2001:db8:77::1", V6.vip, answer(conn, extensions), "wan")
    sent = one(rig.receive("wan", raw))
    seen = check(sent.frame, icmp(type=2, code=0, info=1280))
    quote = seen.quoted
    assert quote is not None
    head = quote.find(Ip)
    ports = quote.find(Udp)
    assert isinstance(head, Ip)
    assert isinstance(ports, Udp)
    expected = (V6.vip, 80) if mode == "dr" else (V6.dest, 8080)
    assert (head.saddr, ports.sport) == expected
    assert rig.counters() == before | {"ICMP_RELATED": 1}


def test_a_quoted_later_fragment(net: Net) -> None:
    """It has no ports."""
    rig = Rig(balanced(net, "udp"))
    conn = Conn(rig, net, "udp").establish()
    if net.af == 6:
        later = (44, bytes((0, 0x10, 0)) + (77).to_bytes(4, "big"))
        about = answer(conn, (later,))
    else:
        about = packet(conn.vaddr, conn.caddr, bytes(64), proto=17, fragment=1480, df=False)
    raw = error(net, "too-big", conn.caddr, net.vip, about, "wan")
    dropped(rig, "wan", raw, "ICMP_INVALID")


@pytest.mark.parametrize("cut", range(40, 64))
def test_a_quote_that_ends_in_its_headers(cut: int) -> None:
    rig = Rig(balanced(V6, "udp"))
    conn = Conn(rig, V6, "udp").establish()
    about = answer(conn, EXTENSIONS["both"])[:cut]
    raw = error(V6, "too-big", conn.caddr, V6.vip, about, "wan")
    dropped(rig, "wan", raw, "ICMP_INVALID")
