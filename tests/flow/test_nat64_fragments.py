"""Fragments between the families: RFC 7915 sections 4, 4.1, 4.5, 5.1 and 5.1.1."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest

from tests.flow.fragmenting import cut, framed, joined
from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Net,
    Rig,
    dest,
    dropped,
    neigh,
    one,
    service,
    states,
    text,
)
from tests.flow.test_nat64 import OTHER, both, configured
from tunlb.hook import Hook, Point, Verdict
from tunlb.packet import FIRST_FRAGMENT, LATER_FRAGMENT, Packet
from tunlb.testing import flow as testing
from tunlb.testing.checkers import check, ether, icmp, ip
from tunlb.testing.flow import Memory, Sent
from tunlb.testing.frames import Transport, eth, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.frames import udp as datagram
from tunlb.testing.parser import Frame, Ip, Tcp, Udp, parse
from tunlb.testing.sctp import init
from tunlb.testing.sctp import sctp as association
from tunlb.testing.workers import Workers
from tunlb.wire.translate import PIECE

CPORT, VPORT, DPORT = 40000, 80, 8080
DATA = bytes(range(256)) * 16  # 4096 bytes
IDENT = 0xABCD1234


class Side:
    """Who sends fragments, and how they must come out on the other side."""

    def __init__(self, rig: testing.Rig, net: Net) -> None:
        self.rig, self.net, self.inner = rig, net, OTHER[net.af]
        self.lport = 0

    def up(self, transport: Transport, size: int = 1440, **fields: Any) -> list[bytes]:
        whole = packet(self.net.remote, self.net.vip, transport)
        return [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole, size, **fields)]

    def down(self, transport: Transport, size: int = 1440, **fields: Any) -> list[bytes]:
        whole = packet(self.inner.dest, self.inner.laddr, transport)
        return [framed(part, LAN_MAC, DEST_MAC) for part in cut(whole, size, **fields)]

    def seen(self, sent: list[Sent], data: bytes = DATA, kind: type = Udp) -> list[Ip]:
        """What the dest puts together."""
        assert {each.port for each in sent} == {"lan"}
        inner = self.inner
        headers = [
            network(
                check(
                    each.frame,
                    ether(src=LAN_MAC, dst=DEST_MAC),
                    ip(version=inner.af, saddr=inner.laddr, daddr=inner.dest, ttl=63, df=False),
                )
            )
            for each in sent
        ]
        whole = check(joined([each.frame for each in sent]))
        found = whole.find(kind)
        assert isinstance(found, Udp | Tcp)
        assert (found.sport, found.dport) == (self.lport or found.sport, DPORT)
        self.lport = found.sport
        assert whole.payload == data
        return headers

    def heard(self, sent: list[Sent], data: bytes = DATA) -> list[Ip]:
        """What the client puts together."""
        assert {each.port for each in sent} == {"wan"}
        net = self.net
        headers = [
            network(
                check(
                    each.frame,
                    ether(src=WAN_MAC, dst=ROUTER_MAC),
                    ip(version=net.af, saddr=net.vip, daddr=net.remote, ttl=63, df=False),
                )
            )
            for each in sent
        ]
        whole = check(joined([each.frame for each in sent]))
        found = whole.find(Udp)
        assert isinstance(found, Udp)
        assert (found.sport, found.dport) == (VPORT, CPORT)
        assert whole.payload == data
        return headers

    def opened(self) -> Side:
        """A conn, by a datagram in one piece."""
        whole = packet(self.net.remote, self.net.vip, datagram(CPORT, VPORT, b"x"))
        found = parse(one(self.rig.receive("wan", framed(whole, WAN_MAC, ROUTER_MAC))).frame)
        header = found.find(Udp)
        assert isinstance(header, Udp)
        self.lport = header.sport
        return self


def network(frame: Frame) -> Ip:
    found = frame.find(Ip)
    assert isinstance(found, Ip)
    return found


def drops(rig: Any) -> list[str]:
    return [name for name in rig.counters() if name.startswith("drop")]


def identification(sent: Sent) -> int:
    """Of a fragment; the 32 bits of an IPv6 one."""
    raw = sent.frame[24:]
    return int.from_bytes(raw[44:48] if raw[0] >> 4 == 6 else raw[4:6], "big")


def test_a_datagram_and_its_answer(net: Net) -> None:
    side = Side(rig := Rig(configured(net, "udp")), net)
    there = side.up(datagram(CPORT, VPORT, DATA), ident=IDENT & (0xFFFF if net.af == 4 else -1))
    sent = rig.send("wan", there)
    side.seen(sent)
    assert {identification(each) for each in sent} == {IDENT & 0xFFFF}
    # Three of 1440 bytes; over IPv6 each of the first two is one of 1232 and one of 208.
    assert len(sent) == (3 if net.af == 6 else 5)
    counted = {
        "CONN_NEW": 1,
        "FRAGMENT_FIRST": 1,
        "FRAGMENT_LATER": 2,
        "IPVS_IN_PACKETS": 3,
        "IPVS_IN_BYTES": sum(len(frame) - 24 for frame in there),
        "NAT64_PACKETS": 3,
    }
    cuts = {4: {"NAT64_CUT": 2}, 6: {}}
    assert rig.counters() == counted | cuts[net.af]
    back = side.down(datagram(DPORT, side.lport, DATA), ident=IDENT & 0xFFFF)
    sent = rig.send("lan", back)
    side.heard(sent)
    assert {identification(each) for each in sent} == {IDENT & 0xFFFF}
    assert rig.counters() == counted | {
        "FRAGMENT_FIRST": 2,
        "FRAGMENT_LATER": 4,
        "IPVS_OUT_PACKETS": 3,
        "IPVS_OUT_BYTES": sum(len(frame) - 24 for frame in back),
        "NAT64_PACKETS": 6,
        "NAT64_CUT": 2,
    }
    assert states(rig) == ["NORMAL"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_any_order(net: Net, order: tuple[int, ...]) -> None:
    side = Side(rig := Rig(configured(net, "udp")), net)
    there = side.up(datagram(CPORT, VPORT, DATA))
    side.seen(rig.send("wan", [there[i] for i in order]))
    back = side.down(datagram(DPORT, side.lport, DATA))
    side.heard(rig.send("lan", [back[i] for i in order]))
    assert rig.counters().get("FRAGMENT_HELD", 0) == 2 * order.index(0)
    assert not drops(rig)


@pytest.mark.parametrize("size", [8, 1224, 1232, 1240, 1472, 1480])
def test_every_size_fits_ipv6(size: int) -> None:
    """RFC 7915 section 4: no more than 1280 bytes, whatever our own link takes."""
    side = Side(rig := Rig(configured(V6, "udp")), V6).opened()
    data = DATA[:64] if size == 8 else DATA
    sent = rig.send("lan", side.down(datagram(DPORT, side.lport, data), size))
    headers = side.heard(sent, data)
    assert max(header.total_len for header in headers) <= 48 + PIECE
    assert ("NAT64_CUT" in rig.counters()) == (size > PIECE)


def test_jumbo_fragments_are_cut_into_many() -> None:
    side = Side(rig := Rig(configured(V6, "udp", wan={"mtu": 9000}, lan={"mtu": 9000})), V6)
    side.opened()
    data = DATA * 5
    sent = rig.send("lan", side.down(datagram(DPORT, side.lport, data), 8976))
    headers = side.heard(sent, data)
    assert [header.fragment for header in headers if not header.mf] == [8976 * 2 + PIECE * 2]
    assert rig.counters()["NAT64_CUT"] == 3


@pytest.mark.parametrize("wrong", [1, 0x1234])
def test_a_wrong_checksum_stays_wrong(net: Net, wrong: int) -> None:
    side = Side(rig := Rig(configured(net, "udp")), net)
    sent = rig.send("wan", side.up(datagram(CPORT, VPORT, DATA, checksum=wrong)))
    with pytest.raises(AssertionError, match="wrong checksum"):
        check(joined([each.frame for each in sent]))


def test_a_datagram_in_fragments_over_ipv4_without_a_checksum() -> None:
    """RFC 7915 section 4.5: its sum is not to be had from the first fragment."""
    side = Side(rig := Rig(configured(V6, "udp")), V6).opened()
    first = side.down(datagram(DPORT, side.lport, DATA, checksum=0))[0]
    before = rig.counters()
    assert rig.receive("lan", first) == (Verdict.DROP, [])
    assert rig.counters() == before | {"FRAGMENT_FIRST": 1, "drop.NAT64_NO_CHECKSUM": 1}


def test_a_segment_of_tcp_in_fragments(net: Net) -> None:
    side = Side(rig := Rig(configured(net)), net)
    syn = packet(net.remote, net.vip, segment(CPORT, VPORT, flags="S"))
    found = parse(one(rig.receive("wan", framed(syn, WAN_MAC, ROUTER_MAC))).frame).find(Tcp)
    assert isinstance(found, Tcp)
    side.lport = found.sport
    sent = rig.send("wan", side.up(segment(CPORT, VPORT, DATA[:2000], flags="PA"), 1000))
    side.seen(sent, DATA[:2000], Tcp)


def test_of_two_workers_one_reads_and_another_translates(net: Net) -> None:
    workers = Workers(configured(net, "udp"), 3)
    owners = set()
    for cport in range(CPORT, CPORT + 12):
        whole = packet(net.remote, net.vip, datagram(cport, VPORT, DATA))
        sent = []
        for part in cut(whole, ident=cport):
            sent += workers.receive(0, "wan", framed(part, WAN_MAC, ROUTER_MAC))
        side = Side(workers.rigs[0], net)
        side.seen(sent)
        whole = packet(side.inner.dest, side.inner.laddr, datagram(DPORT, side.lport, DATA))
        sent = []
        for part in reversed(cut(whole, ident=cport)):
            sent += workers.receive(0, "lan", framed(part, LAN_MAC, DEST_MAC))
        assert check(joined([each.frame for each in sent])).payload == DATA
        owners |= {n for n, rig in enumerate(workers.rigs) if rig.director.ipvs.conns.count}
    assert owners == {0, 1, 2}
    assert not drops(workers)


def test_a_successor_goes_on(net: Net) -> None:
    memory = Memory()
    side = Side(rig := Rig(configured(net, "udp"), memory=memory), net).opened()
    heir = Rig(configured(net, "udp"), memory=memory.copy(), now=rig.now + 1000)
    assert heir.director.adopt(heir.now).kept == 1
    side.heard(heir.send("lan", side.down(datagram(DPORT, side.lport, DATA))))
    side.seen(heir.send("wan", side.up(datagram(CPORT, VPORT, DATA))))


def test_a_later_fragment_that_cannot_pass(net: Net) -> None:
    """Its hop limit is over: nobody is told about a later fragment."""
    side = Side(rig := Rig(configured(net, "udp")), net)
    whole = packet(net.remote, net.vip, datagram(CPORT, VPORT, DATA), ttl=1)
    rig.send("wan", side.up(datagram(CPORT, VPORT, DATA))[:1])
    dropped(rig, "wan", framed(cut(whole)[1], WAN_MAC, ROUTER_MAC), "TTL_EXCEEDED")


# -- extension headers


OPTIONS = (60, b"\x00" + b"\x01\x04\x00\x00\x00\x00")


def atomic(transport: Transport, *before: tuple[int, bytes], behind: Any = ()) -> bytes:
    """A packet with a fragment header that is in one piece all the same (RFC 6946)."""
    header = (44, b"\0" + bytes(2) + IDENT.to_bytes(4, "big"))
    extensions = (*before, header, *behind)
    whole = packet(V6.remote, V6.vip, transport, extensions=extensions)
    return framed(whole, WAN_MAC, ROUTER_MAC)


@pytest.mark.parametrize("before", [(), (OPTIONS,)], ids=["alone", "behind options"])
@pytest.mark.parametrize("size", [8, 1300])
def test_a_fragment_that_is_the_whole(size: int, before: Any) -> None:
    """Its identification is kept, and it may be cut on its way, however long it is."""
    rig = Rig(configured(V6, "udp"))
    sent = one(rig.receive("wan", atomic(datagram(CPORT, VPORT, bytes(size)), *before)))
    check(
        sent.frame,
        ip(version=4, df=False, mf=False, fragment=0, ident=IDENT & 0xFFFF, total_len=28 + size),
    )
    assert rig.counters()["NAT64_PACKETS"] == 1


def test_an_association_in_one_fragment() -> None:
    """The whole is there, so its checksum can be kept."""
    rig = Rig(configured(V6, "sctp"))
    check(one(rig.receive("wan", atomic(association(CPORT, VPORT, init())))).frame, ip(proto=132))


def test_an_extension_header_behind_the_fragment_header() -> None:
    """RFC 7915 section 5.1.1: it is part of what was cut into fragments."""
    rig = Rig(configured(V6, "udp"))
    raw = atomic(datagram(CPORT, VPORT, b"x"), behind=(OPTIONS,))
    assert rig.receive("wan", raw) == (Verdict.DROP, [])
    assert rig.counters() == {"CONN_NEW": 1, "drop.NAT64_HEADER": 1}


def test_fragments_with_options_in_what_was_cut() -> None:
    side = Side(rig := Rig(configured(V6, "udp")), V6).opened()
    whole = packet(V6.remote, V6.vip, datagram(CPORT, VPORT, DATA), extensions=(OPTIONS,))
    parts = [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole)]
    assert rig.send("wan", parts) == []
    assert rig.counters()["drop.NAT64_HEADER"] == 3
    assert side.lport


def test_options_before_the_fragment_header_are_left_out() -> None:
    side = Side(rig := Rig(configured(V6, "udp")), V6)
    parts = []
    for part in cut(packet(V6.remote, V6.vip, datagram(CPORT, VPORT, DATA))):
        head = bytearray(part[:40])
        head[4:6] = (int.from_bytes(head[4:6], "big") + 8).to_bytes(2, "big")
        head[6] = OPTIONS[0]
        parts.append(bytes(head) + bytes([44]) + OPTIONS[1] + part[40:])
    side.seen(rig.send("wan", [framed(part, WAN_MAC, ROUTER_MAC) for part in parts]))


# -- a whole packet over IPv4 that may be cut, and is too long for IPv6


def narrow(net: Net, proto: str) -> str:
    """A link of 1400 bytes towards whoever speaks IPv6; a client is behind a router."""
    return configured(net, proto, **{"wan" if net.af == 6 else "lan": {"mtu": 1400}})


def long_one(side: Side, transport: Transport, **fields: Any) -> tuple[str, bytes]:
    """A packet over IPv4, from whichever side speaks that."""
    if side.net.af == 4:
        whole = packet(side.net.remote, side.net.vip, transport, **fields)
        return "wan", eth(WAN_MAC, ROUTER_MAC, payload=whole)
    whole = packet(side.inner.dest, side.inner.laddr, transport, **fields)
    return "lan", eth(LAN_MAC, DEST_MAC, payload=whole)


@pytest.mark.parametrize("how", ["full", "partial", "none"])
def test_a_datagram_without_df_is_cut(net: Net, how: str) -> None:
    side = Side(rig := Rig(narrow(net, "udp")), net).opened()
    ports = (CPORT, VPORT) if net.af == 4 else (DPORT, side.lport)
    fields = {"checksum": 0} if how == "none" else {}
    data = DATA[:1453]
    port, frame = long_one(side, datagram(*ports, data, **fields), df=False, ident=IDENT & 0xFFFF)
    verdict, sent = rig.receive(port, vnet(frame, needs_csum=how == "partial"))
    assert (verdict, len(sent)) == (Verdict.ACCEPT, 2)
    headers = side.seen(sent, data) if net.af == 4 else side.heard(sent, data)
    assert [(h.fragment, h.mf) for h in headers] == [(0, True), (PIECE, False)]
    assert {identification(each) for each in sent} == {IDENT & 0xFFFF}
    counted = rig.counters()
    assert (counted["NAT64_CUT"], counted["NAT64_PACKETS"]) == (1, 2)
    assert counted.get("NAT64_CHECKSUMS", 0) == (how == "none")


def reached(af: int, **line: Any) -> str:
    """A service for clients of one family; the side that speaks IPv6 is reached by this route."""
    net = NETS[af]
    v6 = "wan" if af == 6 else "lan"
    lines = [each for each in both() if each["kind"] != "route" or each["dst"] != "::/0"]
    far, mac = (V6.remote, ROUTER_MAC) if af == 6 else (V6.dest, DEST_MAC)
    if line.pop("gateway", False):
        line["via"] = V6.router if af == 6 else V6.dest2
    lines.append({"kind": "route", "dst": far + "/128", "port": v6, **line})
    lines.append(neigh(v6, line.get("via", far), mac))
    lines = list({str(each): each for each in lines}.values())  # each neighbour once
    inside = OTHER[af]
    return text(*lines, service(net, "udp", laddrs=[inside.laddr]), dest(net, daddr=inside.dest))


NETS = {4: V4, 6: V6}
WHOLE = 1280 - 40 - 8  #: bytes of a datagram that any IPv6 link takes in one piece


@pytest.mark.parametrize(
    ("line", "most"),
    [
        pytest.param({"gateway": True}, WHOLE, id="behind a router"),
        pytest.param({}, 1500 - 48, id="on the link"),
        pytest.param({"gateway": True, "mtu": 1400}, 1400 - 48, id="a route that says it"),
        pytest.param({"gateway": True, "mtu": 1500}, 1500 - 48, id="a route that says the most"),
        pytest.param({"mtu": 1280}, WHOLE, id="on the link, narrowed"),
    ],
)
def test_which_path_takes_a_whole_datagram(net: Net, line: Any, most: int) -> None:
    """RFC 7915 section 4: without DF all must fit the path, or 1280 bytes where that is unknown."""
    side = Side(rig := Rig(reached(net.af, **line)), net).opened()
    ports = (CPORT, VPORT) if net.af == 4 else (DPORT, side.lport)
    for size in (WHOLE - 1, most, most + 1, 1472):
        data = DATA[:size]
        port, frame = long_one(side, datagram(*ports, data), df=False)
        verdict, sent = rig.receive(port, vnet(frame))
        assert verdict == Verdict.ACCEPT
        if size > most:
            headers = side.seen(sent, data) if net.af == 4 else side.heard(sent, data)
            assert [header.total_len for header in headers] == [1280, 48 + 8 + size - PIECE]
        else:
            seen = check(one((verdict, sent)).frame, ip(version=6, total_len=48 + size))
            assert seen.payload == data
    cuts = (most < WHOLE - 1) + (most + 1 > most) + (most < 1472)
    assert rig.counters()["NAT64_CUT"] == cuts


@pytest.mark.parametrize("size", [960, 1100, 1223, 1224, 1225, WHOLE])
def test_a_route_narrower_than_ipv6_allows(net: Net, size: int) -> None:
    """Nothing of up to 1280 bytes is cut, or made longer than it is."""
    side = Side(rig := Rig(reached(net.af, gateway=True, mtu=1000)), net).opened()
    ports = (CPORT, VPORT) if net.af == 4 else (DPORT, side.lport)
    port, frame = long_one(side, datagram(*ports, DATA[:size]), df=False)
    seen = check(one(rig.receive(port, vnet(frame))).frame, ip(version=6, total_len=48 + size))
    assert seen.payload == DATA[:size]
    assert "NAT64_CUT" not in rig.counters()


def test_a_reload_tells_of_the_path() -> None:
    side = Side(rig := Rig(reached(6, gateway=True)), V6).opened()
    frame = vnet(long_one(side, datagram(DPORT, side.lport, DATA[:1300]), df=False)[1])
    assert len(rig.receive("lan", frame)[1]) == 2
    rig.reload(reached(6, gateway=True, mtu=1480))
    assert len(rig.receive("lan", frame)[1]) == 1
    rig.reload(reached(6, gateway=True))
    assert len(rig.receive("lan", frame)[1]) == 2


@pytest.mark.parametrize("how", ["df", "offloaded"])
def test_what_is_left_whole_behind_a_router(how: str) -> None:
    """With DF its sender hears of the path; an offloaded one is cut by whoever takes it."""
    side = Side(rig := Rig(configured(V6, "udp")), V6).opened()
    data = DATA[:1452] if how == "df" else DATA[:2800]
    port, frame = long_one(side, datagram(DPORT, side.lport, data), df=how == "df")
    raw = vnet(frame, needs_csum=True, gso_type=5, gso_size=1400) if how != "df" else vnet(frame)
    seen = check(one(rig.receive(port, raw)).frame, ip(version=6))
    assert seen.payload == data
    assert "NAT64_CUT" not in rig.counters()


class Watcher(Hook):
    """Whether a user's hook can tell that a packet is a fragment by now."""

    point = Point.POST_ROUTING

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def run(self, pkt: Packet, now: int) -> int:
        self.seen.append((pkt.fragment, pkt.end - pkt.l3))
        return Verdict.ACCEPT


def test_what_hooks_see_of_the_pieces() -> None:
    hook = Watcher()
    side = Side(rig := Rig(narrow(V6, "udp"), hooks=[hook]), V6).opened()
    port, frame = long_one(side, datagram(DPORT, side.lport, DATA[:1453]), df=False)
    rig.receive(port, vnet(frame))
    rest = 48 + 8 + 1453 - PIECE
    assert hook.seen[1:] == [(LATER_FRAGMENT, rest), (FIRST_FRAGMENT, 48 + PIECE)]


@pytest.mark.parametrize("how", ["full", "partial"])
def test_a_segment_without_df_is_cut(how: str) -> None:
    side = Side(rig := Rig(narrow(V4, "tcp")), V4)
    syn = packet(V4.remote, V4.vip, segment(CPORT, VPORT, flags="S"))
    rig.receive("wan", framed(syn, WAN_MAC, ROUTER_MAC))
    port, frame = long_one(side, segment(CPORT, VPORT, DATA[:1400], flags="PA"), df=False)
    verdict, sent = rig.receive(port, vnet(frame, needs_csum=how == "partial"))
    assert verdict == Verdict.ACCEPT
    side.seen(sent, DATA[:1400], Tcp)


def test_an_sctp_packet_without_df_is_cut() -> None:
    rig = Rig(narrow(V4, "sctp"))
    big = init(params=struct.pack("!HH", 0x8001, 1400) + bytes(1396))
    port, frame = long_one(Side(rig, V4), association(CPORT, VPORT, big), df=False)
    verdict, sent = rig.receive(port, vnet(frame))
    assert (verdict, len(sent)) == (Verdict.ACCEPT, 2)
    check(joined([each.frame for each in sent]), ip(proto=132))


def test_with_df_its_sender_is_told(net: Net) -> None:
    side = Side(rig := Rig(narrow(net, "udp")), net).opened()
    ports = (CPORT, VPORT) if net.af == 4 else (DPORT, side.lport)
    port, frame = long_one(side, datagram(*ports, DATA[:1453]))
    verdict, sent = rig.receive(port, vnet(frame))
    assert (verdict, len(sent)) == (Verdict.DROP, 1)
    check(sent[0].frame, icmp(type=3, code=4, info=1380))


def test_a_dest_of_its_own_family_cuts_nothing() -> None:
    """The other modes tell whoever sent it, as before."""
    line = {"kind": "service", "name": "web", "proto": "udp", "vaddr": V4.vip, "vport": VPORT}
    line |= {"fwdmode": "fnat", "laddrs": [V4.laddr]}
    real = {"kind": "dest", "service": "web", "daddr": V4.dest, "dport": DPORT}
    rig = Rig(text(*both(lan={"mtu": 1400}), line, real))
    whole = packet(V4.remote, V4.vip, datagram(CPORT, VPORT, DATA[:1453]), df=False)
    verdict, sent = rig.receive("wan", framed(whole, WAN_MAC, ROUTER_MAC))
    assert verdict == Verdict.DROP
    check(sent[0].frame, icmp(type=3, code=4, info=1400))
