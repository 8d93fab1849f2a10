"""Frames that lie, break off or must not be on a wire: a counted drop each, never an exception."""

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
)
from tunlb.hook import Verdict
from tunlb.testing.checkers import ip as ip_header
from tunlb.testing.frames import (
    Transport,
    arp,
    echo,
    eth,
    icmp,
    ip,
    ipv4,
    ipv6,
    nd_ns,
    tcp,
    udp,
    vnet,
)

BROADCAST = "ff:ff:ff:ff:ff:ff"
OTHER_MAC = "02:00:00:00:00:99"


def framed(payload: bytes, **fields: Any) -> bytes:
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=payload, **fields))


def to_vip(net: Net, payload: Transport | bytes | None = None, **fields: Any) -> bytes:
    """A packet from the remote client to the VIP, a SYN to port 80 unless told."""
    body = tcp(40000, 80, flags="S") if payload is None else payload
    return framed(ip(net.remote, net.vip, body, **fields), type=0x0800 if net.af == 4 else 0x86DD)


def good_frames(net: Net) -> dict[str, bytes]:
    v6 = net.af == 6
    options = b"\1\1\4\2" if not v6 else b""
    found = {
        "syn": to_vip(net, tcp(40000, 80, flags="S", mss=1460), options=options)
        if not v6
        else to_vip(net, tcp(40000, 80, flags="S", mss=1460), extensions=((60, bytes(7)),)),
        "udp": to_vip(net, udp(40000, 80, b"payload")),
        "echo": to_vip(net, echo(1, 1, v6=v6)),
        "error": to_vip(
            net,
            icmp(3 if not v6 else 1, 1, 0, ip(net.vip, net.remote, tcp(80, 40000, b"data"))),
        ),
        "tagged": vnet(
            eth(WAN_MAC, ROUTER_MAC, payload=ip(net.remote, net.vip, tcp(40000, 80)), vlan=7)
        ),
    }
    if v6:
        solicit = ip(net.router, net.wan, nd_ns(net.wan, ROUTER_MAC), ttl=255)
        found["neighbour"] = framed(solicit)
    else:
        found["neighbour"] = vnet(arp(1, ROUTER_MAC, net.router, tpa=net.wan))
    return found


@pytest.mark.parametrize("name", ["syn", "udp", "echo", "error", "tagged", "neighbour"])
def test_truncated_at_every_length(net: Net, name: str) -> None:
    """No prefix of a good frame raises or leaves; each is one counted drop."""
    rig = Rig(balanced(net))
    whole = good_frames(net)[name]
    end = 10 + 14 + 28 if name == "neighbour" and net.af == 4 else len(whole)
    for length in range(end):
        before = sum(n for key, n in rig.counters().items() if key.startswith("drop."))
        verdict, sent = rig.receive("wan", whole[:length])
        after = sum(n for key, n in rig.counters().items() if key.startswith("drop."))
        assert (verdict, sent, after - before) == (Verdict.DROP, [], 1), length
    assert not any(not key.startswith("drop.") for key in rig.counters())
    assert "drop.UNKNOWN" not in rig.counters()


V4_LIES: dict[str, tuple[dict[str, Any], str]] = {
    "version-6": ({"version": 6}, "IP_VERSION"),
    "version-0": ({"version": 0}, "IP_VERSION"),
    "ihl-4": ({"ihl": 4}, "IP_HEADER"),
    "ihl-0": ({"ihl": 0}, "IP_HEADER"),
    "ihl-15-past-the-end": ({"ihl": 15}, "TRUNCATED"),
    "checksum-0": ({"checksum": 0}, "IP_CHECKSUM"),
    "total-length-0": ({"total_len": 0}, "IP_LENGTH"),
    "total-length-19": ({"total_len": 19}, "IP_LENGTH"),
    "total-length-past-the-end": ({"total_len": 41}, "IP_LENGTH"),
    "total-length-huge": ({"total_len": 65535}, "IP_LENGTH"),
    "total-length-cuts-the-tcp-header": ({"total_len": 39}, "L4_HEADER"),
    "total-length-without-tcp": ({"total_len": 20}, "L4_HEADER"),
    "loose-source-route": ({"options": b"\x83\x07\x04" + bytes(4)}, "IP_OPTIONS"),
    "strict-source-route": ({"options": b"\x89\x07\x04" + bytes(4)}, "IP_OPTIONS"),
    "source-route-behind-nops": ({"options": b"\1\1\1\x83\x07\x04" + bytes(4)}, "IP_OPTIONS"),
    "option-of-length-0": ({"options": b"\x44\x00\1\1"}, "IP_OPTIONS"),
    "option-of-length-1": ({"options": b"\x44\x01\1\1"}, "IP_OPTIONS"),
    "option-past-the-header": ({"options": b"\x44\x05\1\1"}, "IP_OPTIONS"),
    "option-without-length": ({"options": b"\1\1\1\x44"}, "IP_OPTIONS"),
    "fragment-first": ({"df": False, "mf": True}, "FRAGMENT_INVALID"),
    "fragment-past-the-largest": ({"df": False, "fragment": 65528}, "FRAGMENT_INVALID"),
    "fragment-middle": ({"df": False, "fragment": 65528, "mf": True}, "FRAGMENT_INVALID"),
}


@pytest.mark.parametrize(("fields", "reason"), V4_LIES.values(), ids=V4_LIES)
def test_ipv4_lies(fields: dict[str, Any], reason: str) -> None:
    dropped(Rig(balanced(V4)), "wan", to_vip(V4, **fields), reason)


ROUTING_LEFT = (43, bytes((0, 0, 1, 0, 0, 0, 0)))
ROUTING_DONE = (43, bytes(7))
DEST_OPTIONS = (60, bytes(7))
HOP_BY_HOP = (0, bytes(7))
V6_LIES: dict[str, tuple[dict[str, Any], str]] = {
    "version-4": ({"version": 4}, "IP_VERSION"),
    "payload-past-the-end": ({"payload_len": 21}, "IP_LENGTH"),
    "payload-huge": ({"payload_len": 65535}, "IP_LENGTH"),
    "payload-cuts-the-tcp-header": ({"payload_len": 19}, "L4_HEADER"),
    "payload-0": ({"payload_len": 0}, "L4_HEADER"),
    "routing-header-with-segments-left": ({"extensions": (ROUTING_LEFT,)}, "IP_OPTIONS"),
    "hop-by-hop-not-first": ({"extensions": (DEST_OPTIONS, HOP_BY_HOP)}, "IP_OPTIONS"),
    "nine-extension-headers": ({"extensions": (DEST_OPTIONS,) * 9}, "IP_OPTIONS"),
    "extension-past-the-end": ({"extensions": ((60, b"\xff" + bytes(6)),)}, "TRUNCATED"),
    "extension-cut-off": ({"extensions": (DEST_OPTIONS,), "payload_len": 7}, "TRUNCATED"),
    "fragment-first": ({"extensions": ((44, b"\0\0\1" + bytes(4)),)}, "FRAGMENT_INVALID"),
    "fragment-past-the-largest": (
        {"extensions": ((44, b"\0\xff\xf8" + bytes(4)),)},
        "FRAGMENT_INVALID",
    ),
    "fragment-behind-options": (
        {"extensions": (DEST_OPTIONS, (44, b"\0\0\x09" + bytes(4)))},
        "FRAGMENT_INVALID",
    ),
}


@pytest.mark.parametrize(("fields", "reason"), V6_LIES.values(), ids=V6_LIES)
def test_ipv6_lies(fields: dict[str, Any], reason: str) -> None:
    dropped(Rig(balanced(V6)), "wan", to_vip(V6, **fields), reason)


FINE: dict[str, tuple[Net, dict[str, Any]]] = {
    "v4-record-route": (V4, {"options": b"\x07\x07\x04" + bytes(4)}),
    "v4-router-alert": (V4, {"options": b"\x94\x04\0\0"}),
    "v4-end-of-options": (V4, {"options": b"\0\x83\x03\0"}),
    "v4-nops": (V4, {"options": b"\1" * 40}),
    "v4-tos": (V4, {"tos": 0xFF}),
    "v4-without-df": (V4, {"df": False, "ident": 77}),
    "v6-hop-by-hop": (V6, {"extensions": (HOP_BY_HOP,)}),
    "v6-eight-headers": (V6, {"extensions": (HOP_BY_HOP, *(DEST_OPTIONS,) * 7)}),
    "v6-routing-done": (V6, {"extensions": (ROUTING_DONE,)}),
    "v6-atomic-fragment": (V6, {"extensions": ((44, bytes(7)),)}),
    "v6-authentication": (V6, {"extensions": ((51, b"\x04" + bytes(22)),)}),
    "v6-flow-label": (V6, {"flow": 0xFFFFF, "tos": 0xFF}),
}


@pytest.mark.parametrize(("net", "fields"), FINE.values(), ids=FINE)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_unusual_headers_that_are_fine(net: Net, fields: dict[str, Any], proto: str) -> None:
    """They pass, and leave as they came."""
    rig = Rig(balanced(net, proto))
    conn = Conn(rig, net, proto)
    expected = ip_header(tos=fields.get("tos", 0), flow=fields.get("flow", 0))
    conn.up("S", b"", expected, ip=fields)
    conn.down("SA", b"", ip=fields)
    if "options" in fields:
        padded = fields["options"] + bytes(-len(fields["options"]) % 4)
        conn.up("A", b"", ip_header(options=padded), ip=fields)
    assert rig.counters() == conn.counted()


L4_LIES: dict[str, tuple[Transport, str]] = {
    "tcp-doff-4": (tcp(40000, 80, flags="S", doff=4), "L4_HEADER"),
    "tcp-doff-0": (tcp(40000, 80, flags="S", doff=0), "L4_HEADER"),
    "tcp-doff-past-the-end": (tcp(40000, 80, flags="S", doff=6), "L4_HEADER"),
    "tcp-doff-15": (tcp(40000, 80, b"data", flags="S", doff=15), "L4_HEADER"),
    "udp-length-0": (udp(40000, 80, b"data", length=0), "L4_HEADER"),
    "udp-length-7": (udp(40000, 80, b"data", length=7), "L4_HEADER"),
    "udp-length-past-the-end": (udp(40000, 80, b"data", length=13), "L4_HEADER"),
    "udp-length-huge": (udp(40000, 80, b"data", length=65535), "L4_HEADER"),
}


@pytest.mark.parametrize(("payload", "reason"), L4_LIES.values(), ids=L4_LIES)
def test_transport_lies(net: Net, payload: Transport, reason: str) -> None:
    dropped(Rig(balanced(net)), "wan", to_vip(net, payload), reason)


@pytest.mark.parametrize("length", range(8))
@pytest.mark.parametrize("proto", ["icmp", "tcp", "udp"])
def test_short_transport_header(net: Net, proto: str, length: int) -> None:
    number = {"icmp": 1 if net.af == 4 else 58, "tcp": 6, "udp": 17}[proto]
    dropped(Rig(balanced(net)), "wan", to_vip(net, bytes(length), proto=number), "L4_HEADER")


V4_MARTIANS = {
    "source-zero": ("0.0.0.0", V4.vip),
    "source-this-network": ("0.1.2.3", V4.vip),
    "source-loopback": ("127.0.0.1", V4.vip),
    "source-multicast": ("224.0.0.1", V4.vip),
    "source-class-e": ("240.0.0.1", V4.vip),
    "source-broadcast": ("255.255.255.255", V4.vip),
    "destination-zero": (V4.remote, "0.0.0.0"),
    "destination-loopback": (V4.remote, "127.0.0.1"),
}
V6_MARTIANS = {
    "source-unspecified": ("::", V6.vip),
    "source-loopback": ("::1", V6.vip),
    "source-multicast": ("ff02::1", V6.vip),
    "source-mapped": ("::ffff:10.0.0.7", V6.vip),
    "destination-unspecified": (V6.remote, "::"),
    "destination-loopback": (V6.remote, "::1"),
    "destination-mapped": (V6.remote, "::ffff:10.0.0.100"),
}
MARTIANS = {f"v4-{name}": row for name, row in V4_MARTIANS.items()}
MARTIANS |= {f"v6-{name}": row for name, row in V6_MARTIANS.items()}


@pytest.mark.parametrize(("saddr", "daddr"), MARTIANS.values(), ids=MARTIANS)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_martian(saddr: str, daddr: str, proto: str) -> None:
    rig = Rig(balanced(V6 if ":" in saddr else V4, proto))
    body = tcp(40000, 80, flags="S") if proto == "tcp" else udp(40000, 80)
    dropped(rig, "wan", framed(ip(saddr, daddr, body)), "MARTIAN")


@pytest.mark.parametrize("whose", ["wan", "lan", "vip2", "laddr"])
@pytest.mark.parametrize("to", ["service", "ping", "elsewhere"])
def test_our_own_address_as_a_source(net: Net, whose: str, to: str) -> None:
    """Nobody else may speak as us: replies to such a client would come back to ourselves."""
    second = '{"kind":"service","name":"two","proto":"tcp","vaddr":"%s","vport":80,"fwdmode":"nat"}'
    rig = Rig(balanced(net) + "\n" + second % net.vip2)
    body = echo(1, 1, v6=net.af == 6) if to == "ping" else tcp(40000, 80, flags="S")
    target = net.nowhere if to == "elsewhere" else net.vip
    dropped(rig, "wan", framed(ip(getattr(net, whose), target, body)), "MARTIAN")


@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_land(net: Net, proto: str) -> None:
    body = {"tcp": tcp(80, 80, flags="S"), "udp": udp(80, 80)}.get(
        proto, echo(1, 1, v6=net.af == 6)
    )
    dropped(Rig(balanced(net)), "wan", framed(ip(net.vip, net.vip, body)), "LAND")


L2_ROWS = {
    "own-mac": ({"src": WAN_MAC}, "OWN_MAC"),
    "group-source": ({"src": "03:00:00:00:00:01"}, "MARTIAN"),
    "broadcast-source": ({"src": BROADCAST}, "MARTIAN"),
    "other-host": ({"dst": OTHER_MAC}, "OTHERHOST"),
    "unknown-type": ({"type": 0x88CC}, "ETHER_TYPE"),
    "length-instead-of-type": ({"type": 40}, "ETHER_TYPE"),
    "type-of-the-other-family": ({"type": "other"}, "IP_VERSION"),
    "unknown-vlan": ({"vlan": 7}, "VLAN_UNKNOWN"),
    "reserved-vlan": ({"vlan": 0xFFF}, "VLAN_UNKNOWN"),
    "stacked-vlan": ({"vlan": (7, 8)}, "VLAN_STACK"),
    "priority-tag-on-a-vlan": ({"vlan": (0, 7)}, "VLAN_STACK"),
    "broadcast-mac-to-the-vip": ({"dst": BROADCAST}, "NOT_FORWARDED"),
    "multicast-mac-to-the-vip": ({"dst": "01:00:5e:00:00:01"}, "NOT_FORWARDED"),
}


@pytest.mark.parametrize(("fields", "reason"), L2_ROWS.values(), ids=L2_ROWS)
def test_link_layer(net: Net, fields: dict[str, Any], reason: str) -> None:
    fields = {"dst": WAN_MAC, "src": ROUTER_MAC, **fields}
    if fields.get("type") == "other":
        fields["type"] = 0x86DD if net.af == 4 else 0x0800
    packet = ip(net.remote, net.vip, tcp(40000, 80, b"four", flags="S"))
    dropped(Rig(balanced(net)), "wan", vnet(eth(**fields, payload=packet)), reason)


def test_service_provider_tag_is_a_stack() -> None:
    raw = eth(WAN_MAC, ROUTER_MAC, 0x88A8, b"\0\x07\x08\0" + ipv4(V4.remote, V4.vip))
    dropped(Rig(balanced(V4)), "wan", vnet(raw), "VLAN_STACK")


GROUPS = {
    "v4-limited-broadcast": (V4, "255.255.255.255", BROADCAST),
    "v4-multicast": (V4, "224.0.0.251", "01:00:5e:00:00:fb"),
    "v4-multicast-to-our-mac": (V4, "239.1.2.3", WAN_MAC),
    "v4-class-e": (V4, "240.0.0.9", WAN_MAC),
    "v4-link-local": (V4, "169.254.7.7", WAN_MAC),
    "v6-all-nodes": (V6, "ff02::1", "33:33:00:00:00:01"),
    "v6-wide-multicast-to-our-mac": (V6, "ff0e::7", WAN_MAC),
    "v6-link-local": (V6, "fe80::7", WAN_MAC),
}


@pytest.mark.parametrize(("net", "daddr", "mac"), GROUPS.values(), ids=GROUPS)
def test_not_forwarded(net: Net, daddr: str, mac: str) -> None:
    """And no ICMP error tells (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e)."""
    packet = ip(net.remote, daddr, udp(5353, 5353, b"x"), ttl=1)
    dropped(Rig(balanced(net)), "wan", vnet(eth(mac, ROUTER_MAC, payload=packet)), "NOT_FORWARDED")


def test_a_link_local_source_is_not_forwarded(net: Net) -> None:
    saddr = "169.254.1.1" if net.af == 4 else "fe80::1"
    packet = ip(saddr, net.nowhere, udp(1, 2))
    dropped(Rig(balanced(net)), "wan", framed(packet), "NOT_FORWARDED")


def test_padding_of_a_short_frame_is_cut_off(net: Net) -> None:
    rig = Rig(balanced(net))
    conn = Conn(rig, net)
    raw = conn.outside.syn(mss=None, options=b"")
    verdict, sent = rig.receive("wan", vnet(raw + b"\xaa" * 6))
    assert verdict == Verdict.ACCEPT
    assert len(sent[0].frame) == 10 + len(raw)


def test_an_unknown_protocol_to_the_vip(net: Net) -> None:
    rig = Rig(balanced(net))
    raw = framed(ip(net.remote, net.vip, bytes(40), proto=253))
    verdict, sent = rig.receive("wan", raw)
    assert (verdict, len(sent)) == (Verdict.DROP, 1)
    assert rig.counters() == {"drop.PORT_UNREACHABLE": 1, "ICMP_ERRORS_SENT": 1}


def test_ipv6_in_a_jumbo_of_zeroes() -> None:
    raw = vnet(eth(WAN_MAC, ROUTER_MAC, 0x86DD, bytes(65000)))
    dropped(Rig(balanced(V6)), "wan", raw, "IP_VERSION")


def test_both_sides_are_checked_alike(net: Net) -> None:
    rig = Rig(balanced(net))
    bad = vnet(eth(LAN_MAC, DEST_MAC, payload=ip(net.dest, net.laddr, bytes(7), proto=6)))
    dropped(rig, "lan", bad, "L4_HEADER")


def test_next_header_none(net: Net) -> None:
    """59 says that nothing follows; to us it is a protocol that nobody takes."""
    rig = Rig(balanced(net))
    packet = ipv6(net.remote, net.vip) if net.af == 6 else ipv4(net.remote, net.vip)
    verdict, sent = rig.receive("wan", framed(packet))
    assert (verdict, len(sent)) == (Verdict.DROP, 1)
    assert rig.counters() == {"drop.PORT_UNREACHABLE": 1, "ICMP_ERRORS_SENT": 1}
