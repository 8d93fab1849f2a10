"""Tunnels and fragments: those of clients go through, and what is too large is cut where IPv4
allows it.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.flow import kit
from tests.flow.fragmenting import cut, framed, joined
from tests.flow.kit import ROUTER_MAC, V4, V6, WAN_MAC, Net, Rig, at, dropped, one
from tests.flow.tunnels import balanced, finished, unwrapped
from tunlb.hook import Hook, Point, Verdict
from tunlb.packet import Packet
from tunlb.testing import frames
from tunlb.testing.audit import audit
from tunlb.testing.checkers import check, icmp, ip
from tunlb.testing.flow import Sent
from tunlb.testing.frames import GSO_TCPV4, GSO_UDP_L4, Flow, vnet
from tunlb.testing.parser import Frame, parse
from tunlb.testing.workers import Workers
from tunlb.wire.pieces import PIECES_MAX

WAYS = pytest.mark.parametrize(
    ("net", "outer"), [(V4, V4), (V6, V6), (V4, V6), (V6, V4)], ids=["4in4", "6in6", "4in6", "6in4"]
)
KINDS = pytest.mark.parametrize(
    "keys",
    [
        {"type": "ipip"},
        {"type": "gre", "csum": True},
        {"type": "gue"},
        {"type": "gue", "csum": True},
    ],
    ids=lambda keys: keys["type"] + "-csum" * keys.get("csum", False),
)
DATA = bytes(range(256)) * 16  # 4096 bytes
OVER = {"ipip": 0, "gre": 8, "gue": 12}


def room(outer: Net, keys: dict[str, Any], mtu: int = 1500) -> int:
    return mtu - (20 if outer.af == 4 else 40) - OVER[keys["type"]]


def fragments(net: Net, size: int, data: bytes = DATA, **fields: Any) -> list[bytes]:
    """Frames of a datagram from the client to the VIP, as its kernel sends them."""
    ident = fields.pop("ident", 0x1234)
    whole = frames.ip(net.remote, net.vip, frames.udp(40000, 80, data), **fields)
    return [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole, size, ident)]


def flow_of(net: Net, cport: int = 40000) -> Flow:
    return Flow(at(net.remote, cport), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC)


def put_together(sent: list[Sent]) -> Frame:
    """What the dest makes of the fragments in these frames, which arrive in any order."""
    eth = frames.eth(WAN_MAC, ROUTER_MAC)[:12]
    found = []
    for each in sent:
        inside = unwrapped(each.frame).inner
        kind = b"\x08\x00" if inside[0] >> 4 == 4 else b"\x86\xdd"
        assert parse(inside, vnet=False, tun=True).problems == []
        found.append(bytes(10) + eth + kind + inside)
    return check(joined(found))


# -- fragments of clients


@WAYS
@KINDS
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_in_any_order(net: Net, outer: Net, keys: dict[str, Any], order: tuple[int, ...]) -> None:
    rig = Rig(balanced(net, outer, "udp", tunnel=keys))
    up = fragments(net, 1200)
    sent = rig.send("wan", [up[number] for number in order])
    assert len(sent) == 4
    assert {unwrapped(each.frame).daddr for each in sent} == {outer.dest}
    assert {unwrapped(each.frame).df for each in sent} == {outer.af == 4 and net.af == 6}
    assert put_together(sent).payload == DATA
    held = order.index(0)
    expected = {
        "CONN_NEW": 1,
        "IPVS_IN_PACKETS": 4,
        "IPVS_IN_BYTES": sum(len(frame) - 24 for frame in up),
        "FRAGMENT_FIRST": 1,
        "FRAGMENT_LATER": 3,
    }
    assert rig.counters() == expected | ({"FRAGMENT_HELD": held} if held else {})


@pytest.mark.parametrize("outer", [V4, V6], ids=["4in4", "4in6"])
@KINDS
@pytest.mark.parametrize("backwards", [False, True])
def test_as_large_as_the_clients_mtu(outer: Net, keys: dict[str, Any], backwards: bool) -> None:
    """They do not fit with the outer header, and are cut again."""
    rig = Rig(balanced(V4, outer, "udp", tunnel=keys))
    up = fragments(V4, 1480)
    sent = rig.send("wan", reversed(up) if backwards else up)
    assert all(len(unwrapped(each.frame).inner) <= room(outer, keys) for each in sent)
    assert {len(unwrapped(each.frame).inner) % 8 for each in sent[:-1]} >= {4}
    assert put_together(sent).payload == DATA
    assert len(sent) == 5
    found = rig.counters()
    assert found["FRAGMENTS_CUT"] == 4
    assert (found["FRAGMENT_FIRST"], found["FRAGMENT_LATER"]) == (1, 2)
    assert found["IPVS_IN_PACKETS"] == 3
    assert not [name for name in found if name.startswith("drop")]


@pytest.mark.parametrize("outer", [V6, V4], ids=["6in6", "6in4"])
def test_of_ipv6_their_sender_is_told(outer: Net) -> None:
    rig = Rig(balanced(V6, outer, "udp"))
    first, second, third = fragments(V6, 1448)
    verdict, told = rig.receive("wan", first)
    assert verdict == Verdict.DROP
    check(told[0].frame, icmp(type=2, code=0, info=room(outer, {"type": "ipip"})))
    dropped(rig, "wan", second, "FRAGMENT_ORPHAN")
    dropped(rig, "wan", third, "FRAGMENT_ORPHAN")
    again = rig.send("wan", fragments(V6, 1400, ident=2))
    assert put_together(again).payload == DATA


@pytest.mark.parametrize("backwards", [False, True])
@WAYS
def test_whichever_worker_reads_them(net: Net, outer: Net, backwards: bool) -> None:
    workers = Workers(balanced(net, outer, "udp", tunnel={"type": "gue"}), 3)
    for rig in workers.rigs:
        rig.advance(3000)
    for cport in range(40000, 40009):
        whole = frames.ip(net.remote, net.vip, frames.udp(cport, 80, DATA))
        parts = [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole, 1400, cport)]
        sent = []
        for part in reversed(parts) if backwards else parts:
            sent += workers.receive(0, "wan", part)
        assert put_together(sent).payload == DATA
    assert {rig.director.ipvs.conns.count > 0 for rig in workers.rigs} == {True}


def test_a_hook_at_the_end_sees_outer_packets(net: Net) -> None:
    seen: list[int] = []

    class Watch(Hook):
        point = Point.POST_ROUTING

        def run(self, pkt: Packet, now: int) -> int:
            seen.append(pkt.fragment)
            return Verdict.ACCEPT

    rig = Rig(balanced(net, net, "udp"), hooks=[Watch()])
    rig.send("wan", fragments(net, 1200))
    assert seen == [0, 0, 0, 0]


# -- what is too large and may be cut


@pytest.mark.parametrize("outer", [V4, V6], ids=["4in4", "4in6"])
@KINDS
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
def test_without_df(outer: Net, keys: dict[str, Any], proto: str, partial: bool) -> None:
    rig = Rig(balanced(V4, outer, proto, tunnel=keys))
    flow = flow_of(V4)
    if proto == "tcp":
        one(rig.receive("wan", vnet(flow.syn())))
    before = rig.counters()
    data = DATA[:1455] + b"#"
    network = {"df": False, "ident": 0x77, "tos": 0xBB}
    if proto == "tcp":
        raw = flow.segment("PA", data, ip=network)
    else:
        raw = flow.udp(data, ip=network)
    verdict, sent = rig.receive("wan", vnet(raw, needs_csum=partial))
    assert verdict == Verdict.STOLEN
    assert len(sent) == 2
    whole = put_together(sent)
    assert whole.payload == data
    outers = [unwrapped(each.frame) for each in sent]
    assert [len(each.inner) <= room(outer, keys) for each in outers] == [True, True]
    assert len(outers[0].inner) > room(outer, keys) - 8
    assert {each.tos for each in outers} == {0xBB}
    assert not any(each.df for each in outers)
    if outer.af == 4:
        assert outers[0].ident != outers[1].ident
    assert len({(each.sport, each.flow) for each in outers}) == 1
    for each in outers:
        check(each.inner, ip(ttl=63, ident=0x77, tos=0xBB), vnet=False, tun=True)
    moved = {
        "IPVS_IN_PACKETS": before.get("IPVS_IN_PACKETS", 0) + 1,
        "IPVS_IN_BYTES": before.get("IPVS_IN_BYTES", 0) + len(raw) - 14,
        "FRAGMENTS_CUT": 2,
        "CONN_NEW": 1,
    }
    assert rig.counters() == before | moved


@pytest.mark.parametrize("size", [1453, 1460, 1461, 9000, 65000])
def test_sizes_and_a_path_that_is_narrow(size: int) -> None:
    """The port takes jumbo frames, the path 1,500 bytes; each fragment is as large as may be."""
    lines = [json.loads(line) for line in balanced(V4, V4, "udp").splitlines()]
    for line in lines:
        if line["kind"] == "port":
            line["mtu"] = 65521 if line["name"] == "wan" else 1500
    rig = Rig(kit.text(*lines))
    data = (DATA * 16)[:size]
    raw = vnet(flow_of(V4).udp(data, ip={"df": False}))
    _, sent = rig.receive("wan", raw)
    assert put_together(sent).payload == data
    assert len(sent) == -(-(size + 8) // 1456)


def test_more_fragments_than_one_packet_may_make() -> None:
    """A path MTU of 88 leaves 48 bytes of payload for each."""
    lines = [json.loads(line) for line in balanced(V4, V4, "udp").splitlines()]
    for line in lines:
        if line["kind"] == "port":
            line["mtu"] = 65521
    rig = Rig(kit.text(*lines))
    flow = flow_of(V4)
    about = finished(one(rig.receive("wan", vnet(flow.udp(DATA[:1300])))).frame)[14:]
    error = frames.ip("192.0.2.77", V4.lan, frames.icmp(3, 4, 88, about[:300]))
    rig.receive("lan", vnet(frames.eth(kit.LAN_MAC, kit.DEST_MAC, payload=error)))
    most = PIECES_MAX * 48 - 8
    _, sent = rig.receive("wan", vnet(flow.udp((DATA * 4)[:most], ip={"df": False})))
    assert len(sent) == PIECES_MAX
    assert put_together(sent).payload == (DATA * 4)[:most]
    dropped(rig, "wan", vnet(flow.udp(bytes(most + 1), ip={"df": False})), "SEGMENTS")


def test_a_path_mtu_that_was_learnt() -> None:
    rig = Rig(balanced(V4, V4, "udp"))
    flow = flow_of(V4)
    about = finished(one(rig.receive("wan", vnet(flow.udp(DATA[:1300])))).frame)[14:]
    error = frames.ip("192.0.2.77", V4.lan, frames.icmp(3, 4, 1000, about[:300]))
    rig.receive("lan", vnet(frames.eth(kit.LAN_MAC, kit.DEST_MAC, payload=error)))
    assert rig.counters()["TUNNEL_PMTU"] == 1
    verdict, sent = rig.receive("wan", vnet(flow.udp(DATA[:1300], ip={"df": False})))
    assert verdict == Verdict.STOLEN
    assert [len(unwrapped(each.frame).inner) for each in sent] == [980, 368]
    assert put_together(sent).payload == DATA[:1300]


def test_options_go_into_later_fragments_as_their_types_say() -> None:
    """RFC 791: a security option is in all, a record route in the first only."""
    rig = Rig(balanced(V4, V4, "udp"))
    security, record = bytes((130, 4, 1, 2)), bytes((7, 7, 4, 0, 0, 0, 0))
    options = record + b"\1" + security
    raw = flow_of(V4).udp(DATA[:1460], ip={"df": False, "options": options})
    _, sent = rig.receive("wan", vnet(raw))
    heads = [unwrapped(each.frame).inner[20:32] for each in sent]
    assert heads == [options, b"\1" * 8 + security]
    assert [unwrapped(each.frame).inner[0] for each in sent] == [0x48, 0x48]


def test_offloaded_segments_that_are_too_large() -> None:
    """A client that does not look for the path's MTU, behind a network card that joins frames."""
    rig = Rig(balanced(V4, V4))
    flow = flow_of(V4)
    one(rig.receive("wan", vnet(flow.syn())))
    raw = flow.segment("PA", DATA * 4, ip={"df": False, "ident": 100})
    gso: dict[str, Any] = {"needs_csum": True, "gso_type": GSO_TCPV4, "gso_size": 1460}
    verdict, sent = rig.receive("wan", vnet(raw, **gso))
    assert verdict == Verdict.STOLEN
    found = rig.counters()
    count = -(-len(DATA) * 4 // 1460)
    assert found["SEGMENTS_CUT"] == count
    assert found["FRAGMENTS_CUT"] == 2 * (count - 1)
    assert len(sent) == 2 * (count - 1) + 1
    segments = [put_together(sent[n : n + 2]) for n in range(0, len(sent) - 1, 2)]
    last = check(unwrapped(sent[-1].frame).inner, vnet=False, tun=True)
    assert b"".join(one.payload for one in [*segments, last]) == DATA * 4


def test_with_df_or_about_an_error_nothing_is_cut() -> None:
    rig = Rig(balanced(V4, V4))
    flow = flow_of(V4)
    one(rig.receive("wan", vnet(flow.syn())))
    verdict, told = rig.receive("wan", vnet(flow.segment("A", DATA[:1460])))
    assert verdict == Verdict.DROP
    check(told[0].frame, icmp(type=3, code=4, info=1480))
    answer = flow.segment("A", DATA[:1420], reply=True)[14:]
    error = frames.ip("192.0.2.77", V4.vip, frames.icmp(3, 4, 1280, answer), df=False)
    raw = vnet(frames.eth(WAN_MAC, ROUTER_MAC, payload=error))
    dropped(rig, "wan", raw, "MTU_EXCEEDED")


@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_other_modes_do_not_cut(mode: str) -> None:
    lines = [json.loads(line) for line in kit.balanced(V4, "udp", mode).splitlines()]
    lines[1]["mtu"] = 1400
    rig = Rig(kit.text(*lines))
    verdict, told = rig.receive("wan", vnet(flow_of(V4).udp(DATA[:1440], ip={"df": False})))
    assert verdict == Verdict.DROP
    check(told[0].frame, icmp(type=3, code=4, info=1400))


def test_a_wrong_checksum_stays_wrong() -> None:
    rig = Rig(balanced(V4, V4, "udp"))
    raw = flow_of(V4).udp(DATA[:1460], ip={"df": False})
    _, sent = rig.receive("wan", vnet(raw, needs_csum=True, field_value=0x1234))
    with pytest.raises(AssertionError, match="wrong checksum"):
        put_together(sent)


def test_none_stays_none() -> None:
    rig = Rig(balanced(V4, V4, "udp"))
    raw = flow_of(V4).udp(DATA[:1460], ip={"df": False}, checksum=0)
    _, sent = rig.receive("wan", vnet(raw))
    assert unwrapped(sent[0].frame).inner[26:28] == b"\0\0"


def test_segments_and_fragments_that_nobody_asked_for_are_forgotten() -> None:
    rig = Rig(balanced(V4, V4, "udp"))
    pkt = rig.director.packet
    for size in (1473, 60_000):
        pkt.load(vnet(flow_of(V4).udp(DATA[:1460], ip={"df": False})), rig.netif("wan"))
        assert rig.director.receive(pkt, rig.now) == Verdict.STOLEN
        assert rig.director.segment(pkt, rig.now) == Verdict.ACCEPT
        data = (DATA * 15)[:size]
        gso: dict[str, Any] = {"needs_csum": True, "gso_type": GSO_UDP_L4, "gso_size": 1000}
        _, sent = rig.receive("wan", vnet(flow_of(V4).udp(data), **gso))
        inside = [check(unwrapped(x.frame).inner, vnet=False, tun=True) for x in sent]
        assert b"".join(x.payload for x in inside) == data


# -- one-packet scheduling


def by_turns(net: Net) -> str:
    """Two dests that take a datagram each."""
    both = [kit.dest(net, "dr"), kit.dest(net, "dr", daddr=net.dest2)]
    return kit.text(*kit.network(net), kit.service(net, "udp", "tunnel", ops=True), *both)


def to(net: Net, sent: list[Sent]) -> set[str]:
    macs = {frames.mac_bytes(kit.DEST_MAC): net.dest, frames.mac_bytes(kit.DEST2_MAC): net.dest2}
    return {macs[each.frame[10:16]] for each in sent}


def test_what_is_too_large_is_cut_for_the_dest_of_the_datagram() -> None:
    rig = Rig(by_turns(V4))
    for number in range(3):
        sent = rig.send("wan", fragments(V4, 1480, ident=number))
        assert put_together(sent).payload == DATA
        assert len(to(V4, sent)) == 1
    assert rig.counters()["FRAGMENTS_CUT"] == 12
    data = (DATA * 4)[:9000]
    gso: dict[str, Any] = {"needs_csum": True, "gso_type": GSO_UDP_L4, "gso_size": 1000}
    _, sent = rig.receive("wan", vnet(flow_of(V4).udp(data), **gso))
    inside = [check(unwrapped(x.frame).inner, vnet=False, tun=True) for x in sent]
    assert b"".join(x.payload for x in inside) == data
    audit(rig.director)


@WAYS
def test_an_outer_error_about_a_datagram_without_a_conn(net: Net, outer: Net) -> None:
    rig = Rig(balanced(net, outer, "udp", ops=True))
    about = finished(one(rig.receive("wan", vnet(flow_of(net).udp(DATA[:1300])))).frame)[14:]
    kind = (3, 4) if outer.af == 4 else (2, 0)
    router = "192.0.2.77" if outer.af == 4 else "2001:db8:77::1"
    error = frames.ip(router, outer.lan, frames.icmp(*kind, 1300, about[:300]))
    _, told = rig.receive("lan", vnet(frames.eth(kit.LAN_MAC, kit.DEST_MAC, payload=error)))
    narrow = 1300 - (20 if outer.af == 4 else 40)
    check(told[0].frame, ip(saddr=net.vip, daddr=net.remote), icmp(info=narrow))
    assert rig.counters()["TUNNEL_PMTU"] == 1
    verdict, _ = rig.receive("wan", vnet(flow_of(net).udp(DATA[:1300])))
    assert verdict == Verdict.DROP
