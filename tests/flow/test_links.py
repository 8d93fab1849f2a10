"""Other kinds of port: VLANs of a TAP, TUN devices, both at once, and packets that come back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    WAN_MAC,
    Conn,
    Line,
    Net,
    Rig,
    balanced,
    default_route,
    dest,
    dropped,
    neigh,
    neighbours,
    network,
    one,
    port,
    service,
    states,
    text,
)
from tunlb.hook import Verdict
from tunlb.testing import checkers
from tunlb.testing.checkers import check, ether, icmp, ip, tcp
from tunlb.testing.frames import arp, checksum, echo, eth, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment

# -- bonds


def bonded(net: Net, *vids: int) -> str:
    """Both ports have two devices."""
    return text(
        port("wan", f"{net.wan}/{net.length}"),
        port("lan", f"{net.lan}/{net.length}", vlans=[{"id": vid} for vid in vids]),
        port("wan2", backup_of="wan"),
        port("lan2", backup_of="lan"),
        default_route(net),
        *neighbours(net),
        service(net),
        dest(net),
    )


def test_frames_leave_by_the_active_device(net: Net) -> None:
    rig = Rig(bonded(net))
    conn = Conn(rig, net)
    syn = vnet(conn.frame(conn.outside, "S", b"", False))
    assert one(rig.receive("wan", syn)).port == "lan"
    rig.director.activate(3, rig.now)
    told = rig.advance(250)
    assert {sent.port for sent in told} == {"wan", "lan2"}
    assert one(rig.receive("wan", syn)).port == "lan2"
    rig.director.activate(2, rig.now)
    rig.advance(250)
    solicit = arp(1, ROUTER_MAC, net.router, tpa=net.vip) if net.af == 4 else None
    if solicit is not None:
        assert [sent.port for sent in rig.receive("wan2", vnet(solicit))[1]] == ["wan2"]
    rig.director.activate(0, rig.now)
    rig.director.activate(1, rig.now)
    assert {sent.port for sent in rig.advance(250)} == {"wan", "lan"}


def test_the_vlans_of_a_bond_move_with_it(net: Net) -> None:
    rig = Rig(bonded(net, 7))
    vlan = rig.netif("lan.7")
    rig.director.activate(3, rig.now)
    assert (vlan.queue, rig.netif("lan").queue) == (3, 3)
    assert rig.director.neighs.netifs[3, 7] is rig.director.neighs.netifs[1, 7] is vlan
    rig.reload(bonded(net, 7, 8))
    assert (rig.netif("lan").queue, rig.netif("lan.8").queue) == (3, 3)


# -- VLANs


def tagged(net: Net, proto: str = "tcp") -> Rig:
    """The dests live in VLAN 7 of the lan port."""
    address = f"{net.lan}/{net.length}"
    lines = [
        port("wan", f"{net.wan}/{net.length}"),
        port("lan", vlans=[{"id": 7, "addresses": [address]}]),
        default_route(net),
        neigh("wan", net.router, ROUTER_MAC),
        neigh("lan.7", net.dest, DEST_MAC),
    ]
    return Rig(text(*lines, service(net, proto), dest(net)))


@pytest.mark.parametrize("offload", [{}, {"needs_csum": True}], ids=["full", "partial"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_tag_on_the_way_out_and_none_on_the_way_back(net: Net, proto: str, offload) -> None:
    rig = tagged(net, proto)
    conn = Conn(rig, net, proto)
    sent = one(rig.receive("wan", vnet(conn.frame(conn.outside, "S", b"", False), **offload)))
    assert sent.port == "lan.7"
    ports: Any = (tcp if proto == "tcp" else checkers.udp)(dport=8080)
    header = 20 if net.af == 4 else 40
    start = checkers.vnet(csum_start=18 + header if offload else 0)
    seen = check(sent.frame, start, ether(dst=DEST_MAC, src=LAN_MAC, vlan=(7,)), ports)
    conn.lport = seen.headers[-1].sport  # type: ignore[union-attr]
    inside = conn.inside
    inside.vlan = 7 | 3 << 13  # a priority in the tag is not ours to answer
    sent = one(rig.receive("lan", vnet(conn.frame(inside, "SA", b"", True), **offload)))
    assert sent.port == "wan"
    start = checkers.vnet(csum_start=14 + header if offload else 0)
    check(sent.frame, start, ether(dst=ROUTER_MAC, src=WAN_MAC, vlan=()), ip(saddr=net.vip))


@pytest.mark.parametrize("vlan", [None, 0, 8])
def test_the_wrong_vlan_reaches_nobody(net: Net, vlan: int | None) -> None:
    """Untagged and priority-tagged frames belong to the port, where the laddr does not live."""
    rig = tagged(net)
    raw = eth(LAN_MAC, DEST_MAC, payload=packet(net.dest, net.laddr, echo(1, 1, v6=net.af == 6)))
    if vlan == 8:
        raw = eth(LAN_MAC, DEST_MAC, payload=raw[14:], vlan=8)
        dropped(rig, "lan", vnet(raw), "VLAN_UNKNOWN")
    elif net.af == 4:
        asked = vnet(arp(1, DEST_MAC, net.dest, tpa=net.laddr, vlan=vlan))
        assert rig.receive("lan", asked) == (Verdict.STOLEN, [])


def test_priority_tag_is_the_port_itself(net: Net) -> None:
    rig = Rig(balanced(net))
    body = packet(net.remote, net.vip, segment(40000, 80, flags="S"))
    raw = eth(WAN_MAC, ROUTER_MAC, payload=body, vlan=5 << 13)
    for offload in ({}, {"needs_csum": True}):
        check(one(rig.receive("wan", vnet(raw, **offload))).frame, ether(dst=DEST_MAC, vlan=()))


def test_arp_in_a_vlan() -> None:
    rig = tagged(V4)
    _, sent = rig.receive("lan", vnet(arp(1, DEST_MAC, V4.dest, tpa=V4.laddr, vlan=7)))
    check(sent[0].frame, ether(dst=DEST_MAC, vlan=(7,)), checkers.arp(op=2, spa=V4.laddr))


def test_checksum_start_inside_the_tag(net: Net) -> None:
    rig = tagged(net)
    body = packet(net.dest, net.laddr, segment(8080, 1025))
    raw = eth(LAN_MAC, DEST_MAC, payload=body, vlan=7)
    dropped(rig, "lan", vnet(raw, needs_csum=True, csum_start=14, csum_offset=2), "VNET_HEADER")


# -- TUN


def on_tun(net: Net, mode: str, proto: str = "tcp") -> Rig:
    """One TUN for both sides; the kernel routes."""
    address = f"{net.wan}/{net.length}"
    route: Line = {"kind": "route", "dst": "0.0.0.0/0" if net.af == 4 else "::/0", "port": "tun"}
    lines = [port("tun", address, type="tun"), route, service(net, proto, mode), dest(net, mode)]
    return Rig(text(*lines))


@pytest.mark.parametrize("offload", [{}, {"needs_csum": True}], ids=["full", "partial"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_tun(net: Net, mode: str, proto: str, offload) -> None:
    rig = on_tun(net, mode, proto)
    conn = Conn(rig, net, proto, mode)
    outside, inside = conn.outside, None
    outside.tun = True
    up = down = 0
    header: Any = tcp if proto == "tcp" else checkers.udp
    for flags in ("S", "A", "PA"):
        raw = conn.frame(outside, flags, b"up", False)
        sent = one(rig.receive("tun", vnet(raw, tun=True, **offload)))
        ends = ip(saddr=conn.laddr, daddr=net.dest, ttl=63)
        seen = check(sent.frame, ends, header(dport=8080), tun=True)
        conn.lport = seen.headers[-1].sport  # type: ignore[union-attr]
        up += len(raw)
        inside = conn.inside
        inside.tun = True
        raw = conn.frame(inside, "SA" if flags == "S" else "A", b"down", True)
        sent = one(rig.receive("tun", vnet(raw, tun=True, **offload)))
        ends = ip(saddr=net.vip, daddr=conn.caddr, ttl=63)
        check(sent.frame, ends, header(sport=80, dport=40000), tun=True)
        down += len(raw)
    assert states(rig) == ["ESTABLISHED" if proto == "tcp" else "NORMAL"]
    assert rig.counters() == {
        "CONN_NEW": 1,
        "IPVS_IN_PACKETS": 3,
        "IPVS_OUT_PACKETS": 3,
        "IPVS_IN_BYTES": up,
        "IPVS_OUT_BYTES": down,
    }


def test_tun_gso(net: Net) -> None:
    rig = on_tun(net, "fnat")
    conn = Conn(rig, net)
    conn.outside.tun = True
    kind = 1 if net.af == 4 else 4
    rig.receive("tun", vnet(conn.outside.syn(), tun=True))
    raw = conn.outside.data(bytes(50_000))
    sent = one(
        rig.receive("tun", vnet(raw, tun=True, needs_csum=True, gso_type=kind, gso_size=1400))
    )
    header = 20 if net.af == 4 else 40
    expected = checkers.vnet(gso_type=kind, gso_size=1400, csum_start=header, hdr_len=header + 20)
    check(sent.frame, expected, ip(daddr=net.dest), tun=True)


@pytest.mark.parametrize(
    "first", [b"", b"\x00", b"\x55" + bytes(40), b"\xf0" + bytes(60)], ids=repr
)
def test_tun_garbage(net: Net, first: bytes) -> None:
    rig = on_tun(net, "fnat")
    verdict, sent = rig.receive("tun", bytes(10) + first)
    assert (verdict, sent) == (Verdict.DROP, [])
    assert list(rig.counters().values()) == [1]


def test_ping_over_tun(net: Net) -> None:
    rig = on_tun(net, "fnat")
    raw = vnet(packet(net.remote, net.vip, echo(1, 2, v6=net.af == 6)), tun=True)
    kind = 0 if net.af == 4 else 129
    check(one(rig.receive("tun", raw)).frame, ip(saddr=net.vip), icmp(type=kind), tun=True)


def test_clients_on_tap_and_dests_on_tun(net: Net) -> None:
    lines = [
        port("wan", f"{net.wan}/{net.length}"),
        port("lan", f"{net.lan}/{net.length}", type="tun"),
        default_route(net),
        neigh("wan", net.router, ROUTER_MAC),
        service(net),
        dest(net),
    ]
    rig = Rig(text(*lines))
    conn = Conn(rig, net)
    sent = one(rig.receive("wan", vnet(conn.outside.syn(), needs_csum=True)))
    assert sent.port == "lan"
    start = checkers.vnet(csum_start=20 if net.af == 4 else 40)
    seen = check(sent.frame, start, ip(saddr=net.laddr, daddr=net.dest, ttl=63), tun=True)
    conn.lport = seen.headers[-1].sport  # type: ignore[union-attr]
    inside = conn.inside
    inside.tun = True
    sent = one(rig.receive("lan", vnet(inside.synack(), tun=True, needs_csum=True)))
    start = checkers.vnet(csum_start=34 if net.af == 4 else 54)
    check(sent.frame, start, ether(dst=ROUTER_MAC, src=WAN_MAC), ip(saddr=net.vip))


# -- packets that come back


def hop(body: bytes) -> bytes:
    """The packet after one more router."""
    if body[0] >> 4 == 6:
        return body[:7] + bytes([body[7] - 1]) + body[8:]
    head = body[:8] + bytes([body[8] - 1]) + body[9:10] + b"\0\0" + body[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body[20:]


@pytest.mark.parametrize("after", [0, 50, 51, 1000])
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_loop_through_a_tun(net: Net, mode: str, after: int) -> None:
    """The kernel routes what we wrote back to us (class A)."""
    rig = on_tun(net, mode)
    conn = Conn(rig, net, "tcp", mode)
    conn.outside.tun = True
    sent = one(rig.receive("tun", vnet(conn.outside.syn(), tun=True)))
    before = rig.counters()
    rig.now += after
    verdict, back = rig.receive("tun", bytes(10) + hop(sent.frame[10:]))
    if after <= 50:
        assert (verdict, back) == (Verdict.DROP, [])
        assert rig.counters() == before | {"drop.LOOP": 1, "LOOP_REROUTED": 1}
    else:
        assert "drop.LOOP" not in rig.counters()


def test_a_loop_ends_by_its_ttl(net: Net) -> None:
    """Slower than the window: each turn costs two hops, and the sender hears of it."""
    rig = on_tun(net, "nat")
    conn = Conn(rig, net, "tcp", "nat")
    conn.outside.tun = True
    sent = one(rig.receive("tun", vnet(conn.outside.syn(), tun=True)))
    turns = 0
    while True:
        rig.now += 100
        verdict, back = rig.receive("tun", bytes(10) + hop(sent.frame[10:]))
        if verdict == Verdict.DROP:
            break
        turns += 1
        sent = back[0]
    assert turns == 31
    assert rig.counters()["drop.TTL_EXCEEDED"] == 1


@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_loop_through_another_station(net: Net, mode: str) -> None:
    """A dest that routes instead of answering sends our packet back (class D)."""
    rig = Rig(balanced(net, "tcp", mode))
    conn = Conn(rig, net, "tcp", mode)
    written = conn.up("S").data[24:]
    raw = vnet(eth(LAN_MAC, DEST_MAC, payload=hop(written)))
    assert rig.receive("lan", raw) == (Verdict.DROP, [])
    assert rig.counters() == conn.counted(drop_LOOP=1, LOOP_RETURNED=1)


@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_a_retransmission_is_no_loop(net: Net, mode: str) -> None:
    """Nor is a second client's conn that only looks like it."""
    rig = Rig(balanced(net, "tcp", mode))
    conn = Conn(rig, net, "tcp", mode)
    for _ in range(3):
        conn.up("S", b"", seq=1000)
    other = Conn(rig, net, "tcp", mode, cport=40001)
    other.up("S", b"", seq=1000)
    assert "drop.LOOP" not in rig.counters()


def test_a_routed_packet_that_comes_back(net: Net) -> None:
    rig = Rig(text(*network(net)))
    body = packet(net.remote, net.dest, segment(1, 2))
    sent = one(rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))))
    raw = vnet(eth(LAN_MAC, DEST_MAC, payload=hop(sent.frame[24:])))
    assert rig.receive("lan", raw) == (Verdict.DROP, [])
    assert rig.counters() == {"FORWARDED": 1, "drop.LOOP": 1, "LOOP_RETURNED": 1}
