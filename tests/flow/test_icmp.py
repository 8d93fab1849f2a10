"""ICMP of our own: errors and who gets none, the rate limit, and pings."""

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
    balanced,
    default_route,
    dest,
    dropped,
    neighbours,
    one,
    ports,
    service,
    text,
)
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, ether, icmp, ip, payload, quoted
from tunlb.testing.frames import Transport, echo, eth, tcp, udp, vnet
from tunlb.testing.frames import icmp as icmp_message
from tunlb.testing.frames import ip as packet


def framed(body: bytes, dst: str = WAN_MAC) -> bytes:
    return vnet(eth(dst, ROUTER_MAC, payload=body))


def refused(rig: Rig, net: Net, raw: bytes, reason: str, source: str, **error: Any) -> None:
    """The frame is dropped, and one error, quoting it as it came, goes to the remote client."""
    before = rig.counters()
    verdict, sent = rig.receive("wan", raw)
    assert (verdict, [s.port for s in sent]) == (Verdict.DROP, ["wan"])
    original = raw[24:]
    room = (576 if net.af == 4 else 1280) - (28 if net.af == 4 else 48)
    check(
        sent[0].frame,
        ether(dst=ROUTER_MAC, src=WAN_MAC),
        ip(saddr=source, daddr=net.remote, ttl=64),
        icmp(**error),
        payload(original[:room]),
    )
    expected = dict(before)
    for name in (f"drop.{reason}", "ICMP_ERRORS_SENT"):
        expected[name] = expected.get(name, 0) + 1
    assert rig.counters() == expected


EXCEEDED = {4: {"type": 11, "code": 0, "info": 0}, 6: {"type": 3, "code": 0, "info": 0}}
PORT = {4: {"type": 3, "code": 3, "info": 0}, 6: {"type": 1, "code": 4, "info": 0}}
NETWORK = {4: {"type": 3, "code": 0, "info": 0}, 6: {"type": 1, "code": 0, "info": 0}}
TOO_BIG = {4: {"type": 3, "code": 4}, 6: {"type": 2, "code": 0}}


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_ttl_of_a_new_conn(net: Net, mode: str, ttl: int) -> None:
    rig = Rig(balanced(net, "tcp", mode))
    raw = framed(packet(net.remote, net.vip, tcp(40000, 80, flags="S"), ttl=ttl))
    refused(rig, net, raw, "TTL_EXCEEDED", net.vip, **EXCEEDED[net.af])
    assert rig.director.ipvs.conns.count == 0


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_ttl_of_a_known_conn(net: Net, mode: str, ttl: int) -> None:
    rig = Rig(balanced(net, "tcp", mode))
    conn = Conn(rig, net, "tcp", mode).establish()
    raw = vnet(conn.frame(conn.outside, "PA", b"data", False, ip={"ttl": ttl}))
    refused(rig, net, raw, "TTL_EXCEEDED", net.vip, **EXCEEDED[net.af])


def test_ttl_of_a_reply(net: Net) -> None:
    """A dest that traces its way to the client hears from the laddr that it speaks to."""
    rig = Rig(balanced(net))
    conn = Conn(rig, net).establish()
    raw = vnet(conn.frame(conn.inside, "PA", b"data", True, ip={"ttl": 1}))
    verdict, sent = rig.receive("lan", raw)
    assert verdict == Verdict.DROP
    seen = quoted(ip(saddr=net.dest, daddr=net.laddr, ttl=1))
    check(sent[0].frame, ip(saddr=net.laddr, daddr=net.dest), icmp(**EXCEEDED[net.af]), seen)
    assert rig.counters() == conn.counted(drop_TTL_EXCEEDED=1, ICMP_ERRORS_SENT=1)


@pytest.mark.parametrize("ttl", [0, 1])
def test_ttl_of_a_routed_packet(net: Net, ttl: int) -> None:
    """We are a hop on the way: the port's own address answers, as traceroute wants it."""
    raw = framed(packet(net.remote, net.dest, udp(40000, 33434, b"trace"), ttl=ttl))
    refused(Rig(balanced(net)), net, raw, "TTL_EXCEEDED", net.wan, **EXCEEDED[net.af])


def test_ttl_one_is_enough_for_ourselves(net: Net) -> None:
    rig = Rig(balanced(net))
    raw = framed(packet(net.remote, net.vip, echo(1, 2, v6=net.af == 6), ttl=1))
    check(one(rig.receive("wan", raw)).frame, ip(ttl=64))


def test_routed_packet(net: Net) -> None:
    rig = Rig(balanced(net))
    raw = framed(packet(net.remote, net.dest, udp(1, 2, b"x")))
    check(
        one(rig.receive("wan", raw)).frame,
        ether(src=LAN_MAC),
        ip(saddr=net.remote, daddr=net.dest, ttl=63),
        payload(b"x"),
    )
    assert rig.counters() == {"FORWARDED": 1}


def routed(net: Net, *lines: dict[str, Any]) -> Rig:
    base = [*ports(net), *neighbours(net), service(net), dest(net), *lines]
    return Rig(text(*base))


def test_no_route(net: Net) -> None:
    """The way back to the client is known, the way on is not."""
    length = 32 if net.af == 4 else 128
    back = {**default_route(net), "dst": f"{net.remote}/{length}"}
    raw = framed(packet(net.remote, net.nowhere, udp(1, 2, b"x")))
    refused(routed(net, back), net, raw, "NO_ROUTE", net.wan, **NETWORK[net.af])


def test_no_route_to_the_client_either(net: Net) -> None:
    rig = routed(net)
    raw = framed(packet(net.remote, net.nowhere, udp(1, 2, b"x")))
    verdict, sent = rig.receive("wan", raw)
    assert (verdict, sent) == (Verdict.DROP, [])
    assert rig.counters() == {"drop.NO_ROUTE": 2}


@pytest.mark.parametrize("size", [1280, 1281, 9000])
def test_mtu_of_a_route(net: Net, size: int) -> None:
    length = 32 if net.af == 4 else 128
    narrow = {"kind": "route", "dst": f"{net.nowhere}/{length}", "port": "lan", "via": net.dest}
    rig = routed(net, default_route(net), narrow | {"mtu": 1280})
    header = 28 if net.af == 4 else 48
    raw = framed(packet(net.remote, net.nowhere, udp(1, 2, bytes(size - header))))
    if size == 1280:
        one(rig.receive("wan", raw))
        assert rig.counters() == {"FORWARDED": 1}
    else:
        refused(rig, net, raw, "MTU_EXCEEDED", net.wan, **TOO_BIG[net.af], info=1280)


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_mtu_towards_the_client(net: Net, mode: str) -> None:
    """A dest's packet that does not fit the client's route: the dest hears of it."""
    lines = [*ports(net), *neighbours(net), service(net, "tcp", mode), dest(net)]
    rig = Rig(text(*lines, default_route(net, mtu=1280)))
    conn = Conn(rig, net, "tcp", mode).establish()
    raw = vnet(conn.frame(conn.inside, "PA", bytes(1400), True))
    verdict, sent = rig.receive("lan", raw)
    assert verdict == Verdict.DROP
    source = net.laddr if mode == "fnat" else net.lan
    check(
        sent[0].frame,
        ip(saddr=source, daddr=net.dest),
        icmp(**TOO_BIG[net.af], info=1280),
        quoted(ip(saddr=net.dest, daddr=conn.laddr)),
    )
    assert rig.counters() == conn.counted(drop_MTU_EXCEEDED=1, ICMP_ERRORS_SENT=1)


@pytest.mark.parametrize("where", ["vip", "laddr", "wan", "lan"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_unknown_port(net: Net, proto: str, where: str) -> None:
    """Where a UDP service is, nobody took this port; to the rest of our addresses, never."""
    rig = Rig(balanced(net, "udp"))
    body = tcp(40000, 81, flags="S") if proto == "tcp" else udp(40000, 81, b"x")
    address = getattr(net, where)
    raw = framed(packet(net.remote, address, body))
    refused(rig, net, raw, "PORT_UNREACHABLE", address, **PORT[net.af])


@pytest.mark.parametrize("size", [1400, 4000])
def test_quote_is_as_long_as_allowed(net: Net, size: int) -> None:
    raw = framed(packet(net.remote, net.vip, udp(40000, 81, bytes(size))))
    refused(Rig(balanced(net, "udp")), net, raw, "PORT_UNREACHABLE", net.vip, **PORT[net.af])


ERRORS: dict[str, tuple[Net, Transport]] = {
    "v4-unreachable": (V4, icmp_message(3, 1, 0, bytes(28))),
    "v4-quench": (V4, icmp_message(4, 0, 0, bytes(28))),
    "v4-redirect": (V4, icmp_message(5, 1, 0, bytes(28))),
    "v4-exceeded": (V4, icmp_message(11, 0, 0, bytes(28))),
    "v4-parameter": (V4, icmp_message(12, 0, 0, bytes(28))),
    "v6-unreachable": (V6, icmp_message(1, 0, 0, bytes(48))),
    "v6-too-big": (V6, icmp_message(2, 0, 1280, bytes(48))),
    "v6-exceeded": (V6, icmp_message(3, 0, 0, bytes(48))),
    "v6-parameter": (V6, icmp_message(4, 0, 0, bytes(48))),
    "v6-unknown-error": (V6, icmp_message(100, 0, 0, bytes(48))),
    "v6-redirect": (V6, icmp_message(137, 0, 0, bytes(48))),
}


@pytest.mark.parametrize(("net", "body"), ERRORS.values(), ids=ERRORS)
def test_no_error_about_an_error(net: Net, body: Transport) -> None:
    """Redirects count as errors too (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e)."""
    rig = Rig(balanced(net))
    verdict, sent = rig.receive("wan", framed(packet(net.remote, net.dest, body, ttl=1)))
    assert (verdict, sent) == (Verdict.DROP, [])
    assert list(rig.counters().values()) == [1]


def test_an_error_about_a_ping(net: Net) -> None:
    raw = framed(packet(net.remote, net.dest, echo(1, 2, v6=net.af == 6), ttl=1))
    refused(Rig(balanced(net)), net, raw, "TTL_EXCEEDED", net.wan, **EXCEEDED[net.af])


def test_no_error_about_a_later_fragment(net: Net) -> None:
    rig = Rig(balanced(net))
    fields: dict[str, Any] = {"extensions": ((44, b"\0\0\x08" + bytes(4)),)}
    if net.af == 4:
        fields = {"fragment": 8, "df": False}
    raw = framed(packet(net.remote, net.dest, bytes(64), proto=17, ttl=1, **fields))
    dropped(rig, "wan", raw, "TTL_EXCEEDED")


def test_rate_limit(net: Net) -> None:
    """A burst of 50, then one a millisecond."""
    rig = Rig(balanced(net, "udp"))
    raw = framed(packet(net.remote, net.vip, udp(40000, 81, b"x")))
    answers = [len(rig.receive("wan", raw)[1]) for _ in range(60)]
    assert answers == [1] * 50 + [0] * 10
    expected = {"drop.PORT_UNREACHABLE": 60, "drop.RATE_LIMITED": 10, "ICMP_ERRORS_SENT": 50}
    assert rig.counters() == expected
    rig.now += 3
    assert [len(rig.receive("wan", raw)[1]) for _ in range(5)] == [1, 1, 1, 0, 0]
    rig.now += 10_000
    assert [len(rig.receive("wan", raw)[1]) for _ in range(51)] == [1] * 50 + [0]


# -- pings


@pytest.mark.parametrize("size", [0, 1, 56, 1399, 1452])
@pytest.mark.parametrize("where", ["wan", "lan", "vip", "laddr"])
def test_echo(net: Net, where: str, size: int) -> None:
    rig = Rig(balanced(net))
    data = bytes(range(256)) * 40
    address = getattr(net, where)
    raw = framed(packet(net.remote, address, echo(7, 9, data[:size], v6=net.af == 6), tos=0x10))
    check(
        one(rig.receive("wan", raw)).frame,
        ether(dst=ROUTER_MAC, src=WAN_MAC),
        ip(saddr=address, daddr=net.remote, ttl=64),
        icmp(type=0 if net.af == 4 else 129, code=0, info=7 << 16 | 9),
        payload(data[:size]),
    )
    assert rig.counters() == {"ICMP_ECHO_REPLIES": 1}


def test_echo_with_options_is_answered_without(net: Net) -> None:
    rig = Rig(balanced(net))
    fields: dict[str, Any] = {"extensions": ((60, bytes(7)),)}
    if net.af == 4:
        fields = {"options": b"\x07\x07\x04" + bytes(4)}
    raw = framed(packet(net.remote, net.vip, echo(7, 9, b"abc", v6=net.af == 6), **fields))
    check(one(rig.receive("wan", raw)).frame, ip(options=b""), payload(b"abc"))


def test_echo_to_the_vip_of_the_other_port_comes_from_where_the_client_is(net: Net) -> None:
    rig = Rig(balanced(net))
    raw = framed(packet(net.dest, net.vip, echo(7, 9, v6=net.af == 6)), LAN_MAC)
    sent = one(rig.receive("lan", raw))
    assert sent.port == "lan"
    check(sent.frame, ip(saddr=net.vip, daddr=net.dest))


def test_bad_icmp_checksum(net: Net) -> None:
    v6 = net.af == 6
    body = icmp_message(128 if v6 else 8, 0, 1, b"ping", checksum=0xBAD)
    dropped(Rig(balanced(net)), "wan", framed(packet(net.remote, net.vip, body)), "ICMP_INVALID")


@pytest.mark.parametrize("kind", ["reply", "redirect", "timestamp", "unknown"])
def test_icmp_that_needs_no_answer(net: Net, kind: str) -> None:
    numbers = {
        "reply": (0, 129),
        "redirect": (5, 137),
        "timestamp": (13, 200),
        "unknown": (99, 255),
    }
    body = icmp_message(numbers[kind][net.af == 6], 0, 1, b"abcd")
    dropped(Rig(balanced(net)), "wan", framed(packet(net.remote, net.vip, body)), "ICMP_IGNORED")


def test_broadcast_ping_is_not_answered(net: Net) -> None:
    """No amplifier (RFC 1122 section 3.2.2.6 lets us)."""
    raw = framed(packet(net.remote, net.vip, echo(1, 1, v6=net.af == 6)), "ff:ff:ff:ff:ff:ff")
    dropped(Rig(balanced(net)), "wan", raw, "NOT_FORWARDED")


def test_a_reply_that_does_not_fit_its_route(net: Net) -> None:
    """MTU is looked at on the way out, for packets of our own too (design, section 3)."""
    lines = [*ports(net), *neighbours(net), service(net), dest(net), default_route(net, mtu=1280)]
    rig = Rig(text(*lines))
    raw = framed(packet(net.remote, net.vip, echo(1, 1, bytes(1300), v6=net.af == 6)))
    verdict, sent = rig.receive("wan", raw)
    assert (verdict, sent) == (Verdict.DROP, [])
    assert rig.counters() == {"ICMP_ECHO_REPLIES": 1, "drop.MTU_EXCEEDED": 1}
