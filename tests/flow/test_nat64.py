"""NAT64: the client's packets of the one family, the dest's of the other, both ways round."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow import kit
from tests.flow.kit import (
    CLIENT_MAC,
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Line,
    Net,
    Rig,
    at,
    dest,
    neigh,
    one,
    port,
    service,
    states,
    text,
)
from tests.flow.talk import proxy
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.packet import Packet
from tunlb.testing import checkers
from tunlb.testing.checkers import Matcher, check, ether, icmp, ip, quoted, tcp, udp
from tunlb.testing.flow import Memory
from tunlb.testing.frames import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    Flow,
    eth,
    vnet,
)
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import udp as datagram
from tunlb.testing.parser import Ip, parse

ECN = 0x80
HEADER = {4: 20, 6: 40}
GSO = {4: GSO_TCPV4, 6: GSO_TCPV6}
OTHER = {4: V6, 6: V4}


def both(**keys: Any) -> list[Line]:
    """Ports with an address of each family, and everybody of both."""
    lines = []
    for net in (V4, V6):
        dst = "0.0.0.0/0" if net.af == 4 else "::/0"
        lines += [
            {"kind": "route", "dst": dst, "via": net.router, "port": "wan"},
            neigh("wan", net.router, ROUTER_MAC),
            neigh("wan", net.client, CLIENT_MAC),
            neigh("lan", net.dest, DEST_MAC),
        ]
    wan = [f"{net.wan}/{net.length}" for net in (V4, V6)]
    lan = [f"{net.lan}/{net.length}" for net in (V4, V6)]
    return [
        port("wan", *wan, **keys.get("wan", {})),
        port("lan", *lan, **keys.get("lan", {})),
        *lines,
    ]


def configured(net: Net, proto: str = "tcp", **keys: Any) -> str:
    """Clients and vaddr are of ``net``, the dest is of the other family."""
    inside = OTHER[net.af]
    line = service(net, proto, laddrs=[inside.laddr])
    return text(*both(**keys), line, dest(net, daddr=inside.dest))


class Conn(kit.Conn):
    """One conn between the families; ``net`` is the client's."""

    def __init__(self, rig: Rig, net: Net, proto: str = "tcp") -> None:
        always = (ip(options=b"", flow=0),)
        super().__init__(rig, net, proto, inner=OTHER[net.af], always=always)

    def counted(self, **more: int) -> dict[str, int]:
        return super().counted(NAT64_PACKETS=sum(self.packets), **more)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_conversation(net: Net, proto: str) -> None:
    rig = Rig(configured(net, proto))
    conn = Conn(rig, net, proto).establish()
    conn.up("PA", b"question")
    conn.down("PA", b"an answer of odd length")
    assert states(rig) == ["ESTABLISHED" if proto == "tcp" else "NORMAL"]
    if proto == "tcp":
        conn.up("FA")
        conn.down("FA")
        conn.up("A")
        assert states(rig) == ["TIME_WAIT"]
    assert rig.counters() == conn.counted()
    dests = [d for d in rig.director.ipvs.dests if d.service_name == "web"]
    assert (dests[0].actconns, dests[0].inactconns) == (0, 1)


def test_tos_and_traffic_class_are_kept(net: Net) -> None:
    conn = Conn(Rig(configured(net)), net).establish()
    conn.up("PA", b"x", ip(tos=0xB9), ip={"tos": 0xB9})
    conn.down("PA", b"x", ip(tos=0x2E), ip={"tos": 0x2E})


def test_a_flow_label_is_lost_and_ipv4_options_are(net: Net) -> None:
    conn = Conn(Rig(configured(net)), net).establish()
    if net.af == 6:
        conn.up("PA", b"x", ip={"flow": 0xABCDE})
        conn.down("PA", b"x", ip(flow=0), ip={"options": b"\x01\x01\x01\x00"})
    else:
        conn.up("PA", b"x", ip={"options": b"\x94\x04\x00\x00"})
        conn.down("PA", b"x", ip={"flow": 0xABCDE})


@pytest.mark.parametrize("size", [1208, 1209])
def test_only_what_is_longer_than_1260_bytes_must_not_be_fragmented(size: int) -> None:
    """RFC 7915 section 5.1: its sender cannot be told of less than 1280 bytes."""
    conn = Conn(Rig(configured(V6)), V6).establish()
    seen = conn.up("PA", bytes(size + 12), ip(df=size > 1208, total_len=20 + 20 + 12 + size))
    header = seen.headers[2]
    assert bool(header.ident) == (size == 1208)  # type: ignore[union-attr]


def test_identifications_differ() -> None:
    conn = Conn(Rig(configured(V6, "udp")), V6, "udp")
    idents = {conn.up("", b"x").headers[2].ident for _ in range(100)}  # type: ignore[union-attr]
    assert len(idents) == 100


@pytest.mark.parametrize(
    ("kind", "body"),
    [(0, b"\x00" + b"\x01\x04\x00\x00\x00\x00"), (60, b"\x00" + b"\x01\x04\x00\x00\x00\x00")],
    ids=["hop-by-hop", "destination"],
)
def test_extension_headers_that_are_left_out(kind: int, body: bytes) -> None:
    conn = Conn(Rig(configured(V6)), V6).establish()
    conn.up("PA", b"data", ip(proto=6), ip={"extensions": ((kind, body),)})


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_an_authentication_header_cannot_be_translated(proto: str) -> None:
    rig = Rig(configured(V6, proto))
    conn = Conn(rig, V6, proto).establish()
    frame = conn.frame(conn.outside, "PA", b"x", ip={"extensions": ((51, b"\x04" + bytes(22)),)})
    assert rig.receive("wan", vnet(frame)) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_NAT64_HEADER=1)


# -- UDP without a checksum


def test_a_datagram_without_a_checksum_gets_one() -> None:
    rig = Rig(configured(V6, "udp"))
    conn = Conn(rig, V6, "udp")
    conn.up("", b"x")
    for payload in (b"", b"y", b"abc" * 333):
        conn.down("", payload, checksum=0)
    assert rig.counters() == conn.counted(NAT64_CHECKSUMS=3)


def test_a_datagram_over_ipv6_without_a_checksum() -> None:
    rig = Rig(configured(V6, "udp"))
    conn = Conn(rig, V6, "udp")
    conn.up("", b"x")
    frame = conn.frame(conn.outside, "", b"z", checksum=0)
    assert rig.receive("wan", vnet(frame)) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_NAT64_NO_CHECKSUM=1)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("wrong", [1, 0x1234])
def test_a_wrong_checksum_stays_wrong(net: Net, proto: str, wrong: int) -> None:
    rig = Rig(configured(net, proto))
    conn = Conn(rig, net, proto).establish()
    with pytest.raises(AssertionError, match="wrong checksum"):
        conn.up("PA", b"payload", checksum=wrong)


# -- offloads


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_gso(net: Net, proto: str) -> None:
    rig = Rig(configured(net, proto))
    conn = Conn(rig, net, proto).establish()
    l4 = 20 if proto == "tcp" else 8
    there, back = HEADER[conn.inner.af], HEADER[net.af]

    def expected(header: int, af: int) -> Matcher:
        kind = GSO[af] if proto == "tcp" else GSO_UDP_L4
        return checkers.vnet(
            flags=1,
            gso_type=kind,
            gso_size=1000,
            hdr_len=14 + header + l4,
            csum_start=14 + header,
            csum_offset=16 if proto == "tcp" else 6,
        )

    def offload(af: int) -> dict[str, Any]:
        kind = GSO[af] if proto == "tcp" else GSO_UDP_L4
        return {"needs_csum": True, "gso_type": kind, "gso_size": 1000}

    conn.up("PA", bytes(60_000), expected(there, conn.inner.af), offload=offload(net.af))
    conn.down("PA", bytes(60_000), expected(back, net.af), offload=offload(conn.inner.af))
    assert rig.counters() == conn.counted()


def test_gso_with_ecn_and_a_partial_checksum_alone(net: Net) -> None:
    conn = Conn(Rig(configured(net)), net).establish()
    conn.up(
        "PAC",
        bytes(5000),
        checkers.vnet(gso_type=GSO[conn.inner.af] | ECN),
        offload={"needs_csum": True, "gso_type": GSO[net.af] | ECN, "gso_size": 536},
    )
    conn.down("A", b"", checkers.vnet(flags=1, gso_type=0), offload={"needs_csum": True})


# -- MTU


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("gso", [False, True])
def test_what_fits_the_other_side(net: Net, over: int, gso: bool) -> None:
    """The limit counts the header of the other side; who is told is told it in his own bytes."""
    rig = Rig(configured(net, lan={"mtu": 1400}))
    conn = Conn(rig, net).establish()
    limit = 1400 - 20 if net.af == 4 else 1400 + 20
    size = limit - HEADER[net.af] - 20 + over
    offload: dict[str, Any] = {}
    if gso:
        offload = {"needs_csum": True, "gso_type": GSO[net.af], "gso_size": size}
    payload = bytes(size * 10 if gso else size)
    if not over:
        conn.up("PA", payload, offload=offload)
        return
    frame = conn.frame(conn.outside, "PA", payload)
    verdict, sent = rig.receive("wan", vnet(frame, **offload))
    assert verdict == Verdict.DROP
    kind = icmp(type=3, code=4, info=limit) if net.af == 4 else icmp(type=2, code=0, info=limit)
    check(
        sent[0].frame,
        ip(saddr=net.vip, daddr=net.remote, version=net.af),
        kind,
        quoted(ip(saddr=net.remote, daddr=net.vip, ttl=64)),
    )
    assert rig.counters() == conn.counted(drop_MTU_EXCEEDED=1, ICMP_ERRORS_SENT=1)


def test_ttl_exceeded_is_told_in_the_senders_family(net: Net) -> None:
    rig = Rig(configured(net))
    conn = Conn(rig, net).establish()
    verdict, sent = rig.receive("wan", vnet(conn.frame(conn.outside, "A", b"", ip={"ttl": 1})))
    assert verdict == Verdict.DROP
    kind = icmp(type=11, code=0) if net.af == 4 else icmp(type=3, code=0)
    check(sent[0].frame, ip(saddr=net.vip, daddr=net.remote), kind)


# -- errors of others

# type, code, second word: as a v4 router says it and as a v6 client hears it, and the other way
FROM_V4 = {
    "net": ((3, 0, 0), (1, 0, 0)),
    "host": ((3, 1, 0), (1, 0, 0)),
    "protocol": ((3, 2, 0), (4, 1, 6)),
    "port": ((3, 3, 0), (1, 4, 0)),
    "too-big": ((3, 4, 1400), (2, 0, 1420)),
    "too-big-for-our-own-link": ((3, 4, 9000), (2, 0, 1500)),
    "too-big-below-the-least": ((3, 4, 900), (2, 0, 1280)),
    "too-big-without-mtu": ((3, 4, 0), (2, 0, 1280)),
    "admin": ((3, 13, 0), (1, 1, 0)),
    "ttl": ((11, 0, 0), (3, 0, 0)),
    "reassembly": ((11, 1, 0), (3, 1, 0)),
    "pointer": ((12, 0, 9 << 24), (4, 0, 6)),
}
FROM_V6 = {
    "route": ((1, 0, 0), (3, 1, 0)),
    "admin": ((1, 1, 0), (3, 10, 0)),
    "scope": ((1, 2, 0), (3, 1, 0)),
    "address": ((1, 3, 0), (3, 1, 0)),
    "port": ((1, 4, 0), (3, 3, 0)),
    "too-big": ((2, 0, 1400), (3, 4, 1380)),
    "too-big-for-our-own-link": ((2, 0, 9000), (3, 4, 1480)),
    "too-big-below-the-least": ((2, 0, 20), (3, 4, 1260)),
    "ttl": ((3, 0, 0), (11, 0, 0)),
    "next-header": ((4, 1, 6), (3, 2, 0)),
    "pointer": ((4, 0, 24), (12, 0, 16 << 24)),
}
ROUTERS = {4: "192.0.2.77", 6: "2001:db8:77::1"}


def about(
    conn: Conn, side: str, said: tuple[int, int, int], quote: bytes, extension: bytes = b""
) -> tuple[str, bytes]:
    """The port and the frame of an error that a router behind that side sends."""
    af = conn.inner.af if side == "lan" else conn.net.af
    target = conn.inner.laddr if side == "lan" else conn.net.vip
    macs = (LAN_MAC, DEST_MAC) if side == "lan" else (WAN_MAC, ROUTER_MAC)
    body = message(*said, quote + extension)
    return side, vnet(eth(*macs, payload=packet(ROUTERS[af], target, body)))


CASES = [(V6, "lan", *row) for row in FROM_V4.values()] + [
    (V6, "wan", *row) for row in FROM_V6.values()
]
CASES += [(V4, "wan", *row) for row in FROM_V4.values()]
CASES += [(V4, "lan", *row) for row in FROM_V6.values()]


@pytest.mark.parametrize("cut", [8, 24, 10_000])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize(("net", "side", "said", "heard"), CASES)
def test_errors(
    net: Net,
    side: str,
    said: tuple[int, int, int],
    heard: tuple[int, int, int],
    proto: str,
    cut: int,
) -> None:
    rig = Rig(configured(net, proto))
    conn = Conn(rig, net, proto).establish()
    seen = conn.up("PA", b"12345678") if side == "lan" else conn.down("PA", b"12345678")
    before = conn.counted()
    written = seen.data[24:]
    quote = written[: HEADER[conn.inner.af if side == "lan" else net.af] + cut]
    sent = one(rig.receive(*about(conn, side, said, quote)))
    number, code, info = heard
    ports: Any = tcp if proto == "tcp" else udp
    if side == "lan":
        assert sent.port == "wan"
        check(
            sent.frame,
            ether(dst=ROUTER_MAC, src=WAN_MAC),
            ip(saddr=net.vip, daddr=net.remote, ttl=63, version=net.af),
            icmp(type=number, code=code, info=info),
            quoted(
                ip(saddr=net.remote, daddr=net.vip, ttl=63),
                ports(sport=40000, dport=80),
            ),
        )
    else:
        assert sent.port == "lan"
        check(
            sent.frame,
            ether(dst=DEST_MAC, src=LAN_MAC),
            ip(
                saddr=conn.inner.laddr,
                daddr=conn.inner.dest,
                ttl=63,
                version=conn.inner.af,
            ),
            icmp(type=number, code=code, info=info),
            quoted(
                ip(saddr=conn.inner.dest, daddr=conn.inner.laddr, ttl=63),
                ports(sport=8080, dport=conn.lport),
            ),
        )
    assert rig.counters() == before | {"ICMP_RELATED": 1}


@pytest.mark.parametrize(
    ("net", "side", "said"),
    [
        (V6, "lan", (3, 14, 0)),
        (V6, "lan", (3, 99, 0)),
        (V6, "lan", (4, 0, 0)),
        (V6, "lan", (11, 2, 0)),
        (V6, "lan", (12, 0, 5 << 24)),
        (V6, "lan", (12, 0, 99 << 24)),
        (V6, "lan", (12, 1, 0)),
        (V6, "wan", (1, 7, 0)),
        (V6, "wan", (3, 9, 0)),
        (V6, "wan", (4, 2, 0)),
        (V6, "wan", (4, 0, 3)),
        (V6, "wan", (4, 0, 0xFFFFFFFF)),
        (V6, "wan", (100, 0, 0)),
    ],
)
def test_errors_without_words(net: Net, side: str, said: tuple[int, int, int]) -> None:
    rig = Rig(configured(net))
    conn = Conn(rig, net).establish()
    seen = conn.up("PA", b"12345678") if side == "lan" else conn.down("PA", b"12345678")
    verdict, sent = rig.receive(*about(conn, side, said, seen.data[24:]))
    assert (verdict, sent) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_ICMP_UNTRANSLATABLE=1)


def test_a_long_quote_is_cut_to_what_an_error_may_have(net: Net) -> None:
    conn = Conn(rig := Rig(configured(net)), net).establish()
    limit = {4: 576, 6: 1280}
    for side in ("lan", "wan"):
        seen = conn.up("PA", bytes(1300)) if side == "lan" else conn.down("PA", bytes(1300))
        af = conn.inner.af if side == "lan" else net.af
        said = (3, 3, 0) if af == 4 else (1, 4, 0)
        sent = one(rig.receive(*about(conn, side, said, seen.data[24:])))
        out = check(sent.frame)
        assert len(out.data) - 24 == limit[10 - af]


@pytest.mark.parametrize("side", ["lan", "wan"])
def test_extensions_behind_the_quote_are_left_out(net: Net, side: str) -> None:
    """RFC 4884: a length says where the quoted packet ends."""
    conn = Conn(rig := Rig(configured(net)), net).establish()
    seen = conn.up("PA", bytes(200)) if side == "lan" else conn.down("PA", bytes(200))
    af = conn.inner.af if side == "lan" else net.af
    said = (3, 3, 32 << 16) if af == 4 else (1, 4, 16 << 24)
    sent = one(rig.receive(*about(conn, side, said, seen.data[24:][:128], b"\x20\0\0\0extension")))
    out = check(sent.frame, icmp(info=0))
    assert out.quoted is not None
    assert len(out.quoted.data) == 128 - HEADER[af] + HEADER[10 - af]


# -- beside the packets


def test_dests_of_both_families_in_one_service(net: Net) -> None:
    line = service(net, laddrs=[V4.laddr, V6.laddr])
    lines = [*both(), line, dest(net, daddr=V4.dest), dest(net, daddr=V6.dest)]
    rig = Rig(text(*lines))
    for cport in range(1, 7):
        frame = eth(
            WAN_MAC,
            ROUTER_MAC,
            payload=packet(net.remote, net.vip, datagram(cport, 9)),
        )
        assert rig.receive("wan", vnet(frame))[0] == Verdict.DROP  # not a service of ours
    seen = []
    for cport in range(40000, 40006):
        flow = Flow(
            at(net.remote, cport), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC
        )
        out = check(one(rig.receive("wan", vnet(flow.syn()))).frame)
        header = out.headers[2]
        seen.append((header.version, header.saddr, header.daddr))  # type: ignore[union-attr]
    assert sorted(set(seen)) == [(n.af, n.laddr, n.dest) for n in (V4, V6)]
    assert [seen.count(kind) for kind in sorted(set(seen))] == [3, 3]


def test_a_successor_goes_on(net: Net) -> None:
    memory = Memory()
    rig = Rig(configured(net), memory=memory)
    conn = Conn(rig, net).establish()
    conn.rig = Rig(configured(net), memory=memory.copy(), now=rig.now + 1000)
    assert conn.rig.director.adopt(conn.rig.now).kept == 1
    conn.up("PA", b"still here")
    conn.down("PA", b"me too")


def test_a_reload_keeps_conns_and_a_dest_may_change_its_family(net: Net) -> None:
    rig = Rig(configured(net))
    conn = Conn(rig, net).establish()
    line = service(net, laddrs=[V4.laddr, V6.laddr])
    rig.reload(text(*both(), line, dest(net, daddr=net.dest)))
    conn.up("PA", b"drains")
    conn.down("PA", b"drains")
    flow = Flow(at(net.remote, 41000), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC)
    check(one(rig.receive("wan", vnet(flow.syn()))).frame, ip(saddr=net.laddr, daddr=net.dest))


# -- corners


class Watcher(Hook):
    """What a user's hook sees of a packet that goes to the other family."""

    point = Point.POST_ROUTING

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def run(self, pkt: Packet, now: int) -> int:
        self.seen.append(pkt.frame())
        return Verdict.ACCEPT


def test_what_a_hook_at_post_routing_sees(net: Net) -> None:
    """A bare packet of the other family: its L2 header comes later."""
    hook = Watcher()
    rig = Rig(configured(net), hooks=[hook])
    out = Conn(rig, net).up("S")
    assert hook.seen == [out.data[24:]]


def test_identifications_of_workers_that_share_a_laddr() -> None:
    """Also when they begin again: what one worker uses no other one does."""
    sharding = Sharding(63, 5, shard_keys(b"test"))
    conn = Conn(Rig(configured(V6, "udp"), sharding=sharding), V6, "udp")
    frame = vnet(conn.outside.udp(b"x"))
    pkt = conn.rig.director.packet
    for _ in range(1100):
        pkt.load(frame, conn.rig.netif("wan"))
        pkt.handed = True  # whoever owns the flow
        assert conn.rig.director.receive(pkt, conn.rig.now) == Verdict.ACCEPT
        assert pkt.be16(pkt.l3 + 4) % 63 == 5


def test_a_quote_that_says_it_was_longer_than_ipv4_can_be() -> None:
    conn = Conn(rig := Rig(configured(V6)), V6).establish()
    quote = bytearray(conn.down("PA", b"12345678").data[24:])
    quote[4:6] = b"\xff\xff"
    sent = one(rig.receive(*about(conn, "wan", (1, 4, 0), bytes(quote))))
    whole = parse(sent.frame)
    assert whole.quoted is not None
    assert whole.quoted.find(Ip).total_len == 65535  # type: ignore[union-attr]


@pytest.mark.parametrize("length", [1, 4, 6])
def test_an_extension_that_claims_the_ports(net: Net, length: int) -> None:
    """A quote keeps the 8 bytes of transport that tell its conn, whatever its length says."""
    conn = Conn(rig := Rig(configured(net)), net).establish()
    side = "lan" if net.af == 6 else "wan"
    seen = conn.up("PA", b"x") if side == "lan" else conn.down("PA", b"x")
    said = (3, 3, length << 16)
    sent = one(rig.receive(*about(conn, side, said, seen.data[24:])))
    quote = check(sent.frame).quoted
    assert quote is not None
    assert len(quote.data) == 48


def test_a_quoted_checksum_that_comes_out_as_zero(net: Net) -> None:
    """A sum of zero is written as 0xFFFF: 0 would say that there was none."""
    conn = Conn(rig := Rig(configured(net, "udp")), net, "udp").establish()
    quote = bytearray(conn.up("", b"12345678").data[24:])
    field = HEADER[conn.inner.af] + 6
    said = (3, 3, 0) if conn.inner.af == 4 else (1, 4, 0)

    def outcome(value: int) -> int:
        quote[field : field + 2] = value.to_bytes(2, "big")
        sent = one(rig.receive(*about(conn, "lan", said, bytes(quote)[: field + 2])))
        return int.from_bytes(sent.frame[-2:], "big")

    change = (outcome(1000) - 1000) % 0xFFFF
    assert outcome(0xFFFF - change) == 0xFFFF


# -- with what makes packets longer or counts them otherwise


def header_of(net: Net, proto: str) -> bytes:
    return proxy(net, "proxy-v2", proto)


def test_a_proxy_header_and_errors_about_what_follows_it(net: Net) -> None:
    """The client is quoted the number that it gave, else its kernel does not believe the error."""
    rig = Rig(told(net))
    conn = Conn(rig, net)
    conn.up("S", seq=1000)
    conn.down("SA", seq=5000, ack=1001)
    header, seq = header_of(net, "tcp"), 1001
    frame = vnet(conn.frame(conn.outside, "A", b"", seq=seq, ack=5001))
    assert check(one(rig.receive("wan", frame)).frame, tcp(seq=seq)).payload == header
    frame = vnet(conn.frame(conn.outside, "PA", b"12345678", seq=seq, ack=5001))
    seen = check(one(rig.receive("wan", frame)).frame, tcp(seq=seq + len(header)))
    said = (3, 4, 1400) if conn.inner.af == 4 else (2, 0, 1400)
    sent = one(rig.receive(*about(conn, "lan", said, seen.data[24:])))
    heard = 1420 if net.af == 6 else 1380
    check(sent.frame, icmp(info=heard), quoted(ip(saddr=net.remote), tcp(seq=seq)))


def told(net: Net, proto: str = "tcp", **keys: Any) -> str:
    inside = OTHER[net.af]
    line = service(net, proto, laddrs=[inside.laddr], client_ip="proxy-v2", **keys)
    return text(*both(), line, dest(net, daddr=inside.dest))


def test_an_error_about_a_datagram_with_a_header(net: Net) -> None:
    """It has room for less than the path, by the header that its sender knows nothing of."""
    rig = Rig(told(net, "udp", client_ip_udp="every"))
    conn = Conn(rig, net, "udp")
    header = header_of(net, "udp")
    frame = vnet(conn.frame(conn.outside, "", bytes(500)))
    seen = check(one(rig.receive("wan", frame)).frame)
    assert seen.payload == header + bytes(500)
    said = (3, 4, 1400) if conn.inner.af == 4 else (2, 0, 1400)
    sent = one(rig.receive(*about(conn, "lan", said, seen.data[24:])))
    heard = (1420 if net.af == 6 else 1380) - len(header)
    check(sent.frame, icmp(info=heard), quoted(ip(saddr=net.remote)))


def test_offloaded_datagrams_with_a_header_each(net: Net) -> None:
    rig = Rig(told(net, "udp", client_ip_udp="every"))
    conn = Conn(rig, net, "udp")
    frame = conn.frame(conn.outside, "", bytes(3000))
    whole = vnet(frame, needs_csum=True, gso_type=GSO_UDP_L4, gso_size=1000)
    verdict, sent = rig.receive("wan", whole)
    assert verdict == Verdict.ACCEPT
    header = header_of(net, "udp")
    found = [check(each.frame, ip(version=conn.inner.af, ttl=63)).payload for each in sent]
    assert found == [header + bytes(1000)] * 3
