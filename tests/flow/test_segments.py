"""Offloaded frames of a tunnel: cut in order, each segment a packet of its own from there on."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from tests.flow import kit
from tests.flow.kit import DEST_MAC, LAN_MAC, ROUTER_MAC, V4, V6, WAN_MAC, Net, Rig, at
from tests.flow.tunnels import balanced, finished, unwrapped
from tunlb.hook import Hook, Point, Verdict
from tunlb.packet import Packet
from tunlb.testing import frames
from tunlb.testing.checkers import check, ip
from tunlb.testing.flow import Sent
from tunlb.testing.frames import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Flow, vnet
from tunlb.testing.parser import Frame, Ip, Tcp, Udp, parse
from tunlb.testing.workers import Workers

H = TypeVar("H", Ip, Tcp, Udp)
ECN = 0x80
STAMPS = b"\1\1\x08\x0a" + bytes(range(8))
WAYS = pytest.mark.parametrize(
    ("net", "outer"), [(V4, V4), (V6, V6), (V4, V6), (V6, V4)], ids=["4in4", "6in6", "4in6", "6in4"]
)
KINDS = [
    {"type": "ipip"},
    {"type": "gre"},
    {"type": "gre", "csum": True},
    {"type": "gue"},
    {"type": "gue", "csum": True},
]


def flow_of(net: Net, cport: int = 40000) -> Flow:
    return Flow(at(net.remote, cport), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC)


def gso(net: Net, proto: str = "tcp", size: int = 1000, more: int = 0) -> dict[str, Any]:
    kind = GSO_UDP_L4 if proto == "udp" else GSO_TCPV4 if net.af == 4 else GSO_TCPV6
    return {"needs_csum": True, "gso_type": kind | more, "gso_size": size}


def pattern(size: int) -> bytes:
    return struct.pack(">16384H", *range(16384))[:size].ljust(size, b"#")


def inners(sent: list[Sent]) -> list[Frame]:
    return [check(unwrapped(one.frame).inner, vnet=False, tun=True) for one in sent]


def header(frame: Frame, kind: type[H]) -> H:
    found = frame.find(kind)
    assert isinstance(found, kind)
    return found


@WAYS
@pytest.mark.parametrize("keys", KINDS, ids=lambda k: k["type"] + "-csum" * k.get("csum", False))
@pytest.mark.parametrize("size", [1, 1000, 1001, 2000, 60_000])
def test_tcp(net: Net, outer: Net, keys: dict[str, object], size: int) -> None:
    rig = Rig(balanced(net, outer, tunnel=keys))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    before = rig.counters()
    seq = flow.client_seq
    fields = {"ident": 0xFFF0} if net.af == 4 else {"flow": 0x12345}
    raw = flow.segment("FPAC", pattern(size), ip=fields, options=STAMPS)
    verdict, sent = rig.receive("wan", vnet(raw, **gso(net)))
    assert verdict == Verdict.STOLEN
    seen = inners(sent)
    count = -(-size // 1000)
    assert len(seen) == count
    assert b"".join(one.payload for one in seen) == pattern(size)
    assert {len(one.payload) for one in seen[:-1]} <= {1000}
    for number, one in enumerate(seen):
        segment, network = header(one, Tcp), header(one, Ip)
        last, first = number == count - 1, number == 0
        assert segment.seq == seq + 1000 * number
        assert segment.flags == "".join(("F" * last, "P" * last, "A", "C" * first))
        assert segment.options == STAMPS
        assert network.ttl == 63
        assert network.ident == ((0xFFF0 + number & 0xFFFF) if net.af == 4 else 0)
        assert network.flow == (0x12345 if net.af == 6 else 0)
    assert rig.counters() == before | {
        "IPVS_IN_PACKETS": before["IPVS_IN_PACKETS"] + 1,
        "IPVS_IN_BYTES": before["IPVS_IN_BYTES"] + len(raw) - 14,
        "SEGMENTS_CUT": count,
    }


@WAYS
@pytest.mark.parametrize("keys", KINDS[:1] + KINDS[-1:], ids=["ipip", "gue-csum"])
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 50_000])
def test_udp(net: Net, outer: Net, keys: dict[str, object], size: int) -> None:
    rig = Rig(balanced(net, outer, "udp", tunnel=keys))
    raw = flow_of(net).udp(pattern(size), ip={"ident": 7} if net.af == 4 else {})
    verdict, sent = rig.receive("wan", vnet(raw, **gso(net, "udp")))
    assert verdict == Verdict.STOLEN
    seen = inners(sent)
    assert b"".join(one.payload for one in seen) == pattern(size)
    assert len(seen) == max(1, -(-size // 1000))
    for number, one in enumerate(seen):
        assert header(one, Udp).length == 8 + len(one.payload)
        assert header(one, Ip).ident == (7 + number if net.af == 4 else 0)


@WAYS
def test_the_smallest_segments(net: Net, outer: Net) -> None:
    """Their headers are longer than their payload, over which the next ones' are written."""
    rig = Rig(balanced(net, outer, tunnel={"type": "gue", "csum": True}))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    _, sent = rig.receive("wan", vnet(flow.segment("A", pattern(1400)), **gso(net, size=1)))
    assert b"".join(one.payload for one in inners(sent)) == pattern(1400)
    before = rig.counters()
    verdict, sent = rig.receive("wan", vnet(flow.segment("A", pattern(1401)), **gso(net, size=1)))
    assert (verdict, sent) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.SEGMENTS": 1}


def test_headers_that_are_too_long() -> None:
    rig = Rig(balanced(V6, V6))
    extension = b"\x1f" + bytes(254)  # destination options of 256 bytes
    flow = flow_of(V6)
    rig.receive("wan", vnet(flow.syn()))
    raw = flow.segment("A", pattern(3000), ip={"extensions": ((60, extension),)})
    start = 14 + 40 + 256
    offload = gso(V6) | {"csum_start": start, "csum_offset": 16}
    before = rig.counters()
    assert rig.receive("wan", vnet(raw, **offload)) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.SEGMENTS": 1}


def test_extension_headers_and_options() -> None:
    rig = Rig(balanced(V6, V4))
    flow = flow_of(V6)
    rig.receive("wan", vnet(flow.syn()))
    raw = flow.segment("A", pattern(3000), ip={"extensions": ((60, bytes(7)),)})
    whole = frames.pseudo_header(raw[22:38], raw[38:54], 6, 3020)
    field = frames.ones_sum(whole)
    at_field = 14 + 48 + 16
    raw = raw[:at_field] + struct.pack("!H", field) + raw[at_field + 2 :]
    offload = gso(V6) | {"csum_start": 14 + 48, "csum_offset": 16}
    _, sent = rig.receive("wan", vnet(raw, **offload))
    seen = inners(sent)
    assert b"".join(one.payload for one in seen) == pattern(3000)
    assert all(header(one, Ip).options == bytes([6]) + bytes(7) for one in seen)


def test_a_wrong_partial_checksum_stays_wrong(net: Net) -> None:
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    raw = vnet(flow.segment("A", pattern(3000)), **gso(net), field_value=0x1234)
    _, sent = rig.receive("wan", raw)
    for one in sent:
        found = parse(unwrapped(one.frame).inner, vnet=False, tun=True)
        assert [problem.split()[0] for problem in found.problems] == ["wrong"]


def test_a_large_frame_whose_segments_do_not_fit(net: Net) -> None:
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    before = rig.counters()
    verdict, sent = rig.receive(
        "wan", vnet(flow.segment("A", pattern(9000)), **gso(net, size=1448))
    )
    assert verdict == Verdict.DROP
    assert len(sent) == 1
    assert rig.counters() == before | {"drop.MTU_EXCEEDED": 1, "ICMP_ERRORS_SENT": 1}


# -- what happens to segments on their way out


def test_segments_wait_for_a_neighbour_in_order(net: Net) -> None:
    lines = [
        x for x in map(json.loads, balanced(net, net).splitlines()) if x.get("addr") != net.dest
    ]
    rig = Rig(kit.text(*lines))
    flow = flow_of(net)
    assert rig.receive("wan", vnet(flow.syn()))[0] == Verdict.STOLEN
    verdict, more = rig.receive("wan", vnet(flow.segment("A", pattern(5000)), **gso(net)))
    assert (verdict, more) == (Verdict.STOLEN, [])
    verdict, more = rig.receive("wan", vnet(flow.segment("A", b"small")))
    assert (verdict, more) == (Verdict.STOLEN, [])
    counters = rig.counters()
    assert counters["NEIGH_QUEUED"] == 7
    answer = (
        frames.arp(2, DEST_MAC, net.dest, LAN_MAC, net.lan, dst=LAN_MAC)
        if net.af == 4
        else frames.eth(
            LAN_MAC,
            DEST_MAC,
            payload=frames.ip(net.dest, net.lan, frames.nd_na(net.dest, DEST_MAC), ttl=255),
        )
    )
    released = rig.send("lan", [vnet(answer)])
    bodies = [one.payload for one in inners(released)]
    assert b"".join(bodies) == pattern(5000) + b"small"
    assert {one.frame[10:16] for one in released} == {frames.mac_bytes(DEST_MAC)}


def test_more_segments_than_may_wait_for_a_neighbour(net: Net) -> None:
    lines = [
        x for x in map(json.loads, balanced(net, net).splitlines()) if x.get("addr") != net.dest
    ]
    rig = Rig(kit.text(*lines))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    rig.receive("wan", vnet(flow.segment("A", pattern(1400)), **gso(net, size=10)))
    counters = rig.counters()
    assert counters["NEIGH_QUEUED"] == 128
    assert counters["drop.NEIGH_QUEUE_FULL"] == 1 + 140 - 128
    assert counters["SEGMENTS_CUT"] == 140


@dataclass
class Watch(Hook):
    """Remembers the length of every packet that it sees, and may drop some."""

    point: Point
    priority: int = 200
    drop_at: int = -1

    def __post_init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def run(self, pkt: Packet, now: int) -> int:
        self.seen.append((pkt.proto, pkt.end - pkt.l3, pkt.gso_type))
        if len(self.seen) - 1 == self.drop_at:
            return int(pkt.drop(14))
        return int(Verdict.ACCEPT)


@pytest.mark.parametrize("point", [Point.PRE_ROUTING, Point.POST_ROUTING])
def test_hooks_behind_see_each_segment(net: Net, point: Point) -> None:
    watch = Watch(point, drop_at=2)
    rig = Rig(balanced(net, net), hooks=[watch])
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    _, sent = rig.receive("wan", vnet(flow.segment("A", pattern(2500)), **gso(net)))
    outer = 40 if net.af == 4 else 80
    proto = 4 if net.af == 4 else 41
    sizes = [4, 1000, 1000, 500]
    assert watch.seen == [(proto, outer + 20 + size, 0) for size in sizes]
    assert [len(one.payload) for one in inners(sent)] == [1000, 500]
    assert rig.counters()["drop.MARTIAN"] == 1


def test_the_loop_guard_knows_each_segment(net: Net) -> None:
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    _, sent = rig.receive("wan", vnet(flow.segment("A", pattern(2500)), **gso(net)))
    before = rig.counters()
    for one in sent:
        data = bytearray(finished(one.frame))
        data[0:12] = frames.mac_bytes(LAN_MAC) + frames.mac_bytes(DEST_MAC)
        if net.af == 4:
            data[14 + 8] -= 1
            data[24:26] = b"\0\0"
            data[24:26] = struct.pack("!H", frames.checksum(bytes(data[14:34])))
        else:
            data[14 + 7] -= 1
        rig.receive("lan", vnet(bytes(data)))
    assert rig.counters() == before | {"drop.LOOP": 3, "LOOP_RETURNED": 3}


def test_handed_over_frames_are_cut_by_the_owner(net: Net) -> None:
    workers = Workers(balanced(net, net), 2)
    for cport in range(40000, 40008):
        flow = flow_of(net, cport)
        workers.receive(0, "wan", vnet(flow.syn()))
        sent = workers.receive(0, "wan", vnet(flow.segment("A", pattern(2500)), **gso(net)))
        assert [len(one.payload) for one in inners(sent)] == [1000, 1000, 500]


def test_an_ecn_frame(net: Net) -> None:
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    raw = flow.segment("ACE", pattern(2500), ip={"tos": 2})
    _, sent = rig.receive("wan", vnet(raw, **gso(net, more=ECN)))
    assert [header(one, Tcp).flags for one in inners(sent)] == ["AEC", "AE", "AE"]
    assert {unwrapped(one.frame).tos for one in sent} == {2}


def test_other_modes_leave_frames_whole(net: Net) -> None:
    rig = Rig(kit.balanced(net, mode="dr"))
    flow = flow_of(net)
    rig.receive("wan", vnet(flow.syn()))
    verdict, sent = rig.receive("wan", vnet(flow.segment("A", pattern(2500)), **gso(net)))
    assert verdict == Verdict.ACCEPT
    assert len(sent) == 1
    check(sent[0].frame, ip(saddr=net.remote))
