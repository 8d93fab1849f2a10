"""TUNNEL: what leaves, of either family in either, and what must not."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.flow import kit
from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Net,
    Rig,
    at,
    dropped,
    one,
    states,
)
from tests.flow.tunnels import GUE_PORT, balanced, inner, network, unwrapped
from tunlb.hook import Verdict
from tunlb.netif import VIP
from tunlb.testing import frames
from tunlb.testing.checkers import check, ether, icmp, ip, quoted
from tunlb.testing.flow import Memory
from tunlb.testing.frames import Flow, vnet
from tunlb.testing.workers import Workers
from tunlb.wiring import pair

OVERHEAD = {
    ("ipip", False): 0,
    ("gre", False): 4,
    ("gre", True): 8,
    ("gue", False): 12,
    ("gue", True): 12,
}
PROTO = {"gre": 47, "gue": 17}
WAYS = [
    pytest.param(V4, V4, id="4in4"),
    pytest.param(V6, V6, id="6in6"),
    pytest.param(V4, V6, id="4in6"),
    pytest.param(V6, V4, id="6in4"),
]
ways = pytest.mark.parametrize(("net", "outer"), WAYS)


def flow_of(net: Net, cport: int = 40000) -> Flow:
    return Flow(at(net.remote, cport), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC)


def counted(lengths: list[int], **more: int) -> dict[str, int]:
    moved = {"CONN_NEW": 1, "IPVS_IN_PACKETS": len(lengths), "IPVS_IN_BYTES": sum(lengths)}
    return moved | {key.replace("drop_", "drop."): n for key, n in more.items()}


@ways
@pytest.mark.parametrize(("kind", "csum"), OVERHEAD)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
def test_what_leaves(
    net: Net, outer: Net, kind: str, csum: bool, proto: str, partial: bool
) -> None:
    rig = Rig(balanced(net, outer, proto, tunnel={"type": kind, "csum": csum}))
    flow = flow_of(net)
    lengths = []
    sports = set()
    for size in (0, 1, 900):
        body = bytes(range(256)) * 4
        raw = (
            flow.segment("S" if size == 0 else "PA", body[:size])
            if proto == "tcp"
            else flow.udp(body[:size])
        )
        sent = one(rig.receive("wan", vnet(raw, needs_csum=partial)))
        lengths.append(len(raw) - 14)
        assert sent.port == "lan"
        assert sent.frame[10:22] == frames.mac_bytes(DEST_MAC) + frames.mac_bytes(LAN_MAC)
        seen = unwrapped(sent.frame)
        assert (seen.version, seen.saddr, seen.daddr) == (outer.af, outer.lan, outer.dest)
        assert seen.ttl == 63
        assert seen.proto == PROTO.get(kind, 4 if net.af == 4 else 41)
        assert seen.overhead == (20 if outer.af == 4 else 40) + OVERHEAD[kind, csum]
        assert bool(seen.checksum) is csum
        if kind == "gue":
            assert seen.dport == GUE_PORT
            assert seen.sport >= 49152
        sports.add((seen.sport, seen.flow))
        inside = check(
            seen.inner, ip(saddr=net.remote, daddr=net.vip, ttl=63), vnet=False, tun=True
        )
        assert inside.payload == body[:size]
        # Nothing but the TTL and IPv4's checksum changed.
        assert len(seen.inner) == len(raw) - 14
    assert len(sports) == 1  # the same way for all packets of a flow
    assert rig.counters() == counted(lengths)
    if proto == "tcp":
        assert states(rig) == ["ESTABLISHED"] or states(rig) == ["SYN_RECV"]


@ways
def test_flows_take_different_ways(net: Net, outer: Net) -> None:
    rig = Rig(balanced(net, outer, "udp", tunnel={"type": "gue", "port": 7000}))
    seen = [
        unwrapped(one(rig.receive("wan", vnet(flow_of(net, 40000 + n).udp()))).frame)
        for n in range(32)
    ]
    assert len({one.sport for one in seen}) > 24
    assert {one.dport for one in seen} == {7000}
    if outer.af == 6:
        assert len({one.flow for one in seen}) > 24
    assert all(one.checksum == 0 for one in seen)


@ways
@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0xB8, 0xBB])
def test_tos_and_ecn_are_copied(net: Net, outer: Net, tos: int) -> None:
    rig = Rig(balanced(net, outer))
    sent = one(rig.receive("wan", vnet(flow_of(net).segment("S", ip={"tos": tos}))))
    seen = unwrapped(sent.frame)
    assert seen.tos == tos
    assert inner(sent, ip(tos=tos))


@pytest.mark.parametrize("df", [True, False])
def test_df_is_copied_and_else_ids_differ(df: bool) -> None:
    rig = Rig(balanced(V4, V4))
    flow = flow_of(V4)
    seen = [
        unwrapped(one(rig.receive("wan", vnet(flow.segment(f, ip={"df": df})))).frame)
        for f in ("S", "A", "A")
    ]
    assert {one.df for one in seen} == {df}
    assert [one.ident for one in seen] == ([0, 0, 0] if df else [0, 1, 2])


def test_workers_do_not_use_an_id_twice() -> None:
    """They share the outer addresses, by which fragments are put together."""
    workers = Workers(balanced(V4, V4, "udp"), 3)
    idents = []
    for n in range(60):
        raw = vnet(flow_of(V4, 40000 + n).udp(ip={"df": False}))
        idents += [unwrapped(one.frame).ident for one in workers.receive(0, "wan", raw)]
    assert {rig.director.ipvs.conns.count > 0 for rig in workers.rigs} == {True}
    assert len(set(idents)) == 60


def test_ipv6_in_ipv4_is_not_fragmented() -> None:
    rig = Rig(balanced(V6, V4))
    assert unwrapped(one(rig.receive("wan", vnet(flow_of(V6).syn()))).frame).df


def test_a_source_of_its_own(net: Net) -> None:
    rig = Rig(balanced(net, net, tunnel={"src": net.wan}))
    assert unwrapped(one(rig.receive("wan", vnet(flow_of(net).syn()))).frame).saddr == net.wan


@ways
def test_a_dest_may_differ_from_its_service(net: Net, outer: Net) -> None:
    lines = [
        *network(),
        kit.service(net, "tcp", "tunnel", tunnel={"type": "gre", "csum": True}),
        kit.dest(outer, "dr", tunnel={"type": "gue", "port": 9}),
        kit.dest(outer, "dr", daddr=outer.dest2),
        kit.dest(net, "dr", daddr=net.nowhere, fwdmode="fnat", weight=0)
        | {"dport": 8080, "fwdmode": "nat"},
    ]
    rig = Rig(kit.text(*lines))
    seen = [
        unwrapped(one(rig.receive("wan", vnet(flow_of(net, 40000 + n).syn()))).frame)
        for n in range(2)
    ]
    assert sorted((one.proto, one.dport, one.daddr) for one in seen) == [
        (17, 9, outer.dest),
        (47, 0, outer.dest2),
    ]


# -- what is too large


@ways
@pytest.mark.parametrize(("kind", "csum"), OVERHEAD)
def test_the_mtu_leaves_room_for_the_outer_header(
    net: Net, outer: Net, kind: str, csum: bool
) -> None:
    rig = Rig(balanced(net, outer, tunnel={"type": kind, "csum": csum}))
    flow = flow_of(net)
    one(rig.receive("wan", vnet(flow.syn())))
    room = 1500 - (20 if outer.af == 4 else 40) - OVERHEAD[kind, csum]
    header = 40 if net.af == 4 else 60
    sent = one(rig.receive("wan", vnet(flow.segment("A", bytes(room - header)))))
    assert len(sent.frame) == 10 + 14 + 1500
    before = rig.counters()
    verdict, told = rig.receive("wan", vnet(flow.segment("A", bytes(room - header + 1))))
    assert verdict == Verdict.DROP
    number, code = (3, 4) if net.af == 4 else (2, 0)
    check(
        told[0].frame,
        ether(dst=ROUTER_MAC),
        ip(saddr=net.vip, daddr=net.remote),
        icmp(type=number, code=code, info=room),
        quoted(ip(saddr=net.remote, daddr=net.vip)),
    )
    assert rig.counters() == before | {"drop.MTU_EXCEEDED": 1, "ICMP_ERRORS_SENT": 1}


# -- what would loop, or has no source


def test_a_far_end_that_becomes_ours(net: Net) -> None:
    """The configuration refuses it; what else adds an address is no reason to loop."""
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    one(rig.receive("wan", vnet(flow.syn())))
    before = rig.counters()
    lines = [line for line in network() if line.get("addr") != net.dest]
    text = kit.text(*lines, kit.service(net, "tcp", "tunnel", drain_s=100), kit.dest(net, "dr"))
    rig.reload(text)
    far_end = pair(ip_address(net.dest))
    rig.director.ip.addresses.add(rig.netif("lan"), net.af, *far_end, VIP)
    verdict, sent = rig.receive("wan", vnet(flow.ack()))
    assert (verdict, sent) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.TUNNEL_LOOP": 1}


def test_a_vip_is_no_source(net: Net) -> None:
    """The dest holds the VIP: it would take the outer packet for its own."""
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    one(rig.receive("wan", vnet(flow.syn())))
    far = rig.director.ipvs.dests[0].far
    assert far is not None
    far.wanted = pair(ip_address(net.vip))
    far.known = None
    dropped(rig, "wan", vnet(flow.ack()), "TUNNEL_SOURCE")


@ways
def test_ttl_that_ends_here(net: Net, outer: Net) -> None:
    rig = Rig(balanced(net, outer))
    verdict, told = rig.receive("wan", vnet(flow_of(net).segment("S", ip={"ttl": 1})))
    assert verdict == Verdict.DROP
    check(told[0].frame, icmp(type=11 if net.af == 4 else 3, code=0))
    assert rig.counters() == {"drop.TTL_EXCEEDED": 1, "ICMP_ERRORS_SENT": 1}


def test_a_wrong_inner_checksum_stays_wrong(net: Net) -> None:
    rig = Rig(balanced(net, net, tunnel={"type": "gre", "csum": True}))
    raw = flow_of(net).segment("S", checksum=0x1234)
    seen = unwrapped(one(rig.receive("wan", vnet(raw))).frame)
    assert seen.inner[-4:-2] == b"\x12\x34"


# -- related, reload, successor


@ways
def test_an_icmp_error_about_an_answer_goes_to_the_dest(net: Net, outer: Net) -> None:
    """The dest answers directly, so a router on that way complains to the VIP: to us."""
    rig = Rig(balanced(net, outer, tunnel={"type": "gue", "csum": True}))
    flow = flow_of(net)
    one(rig.receive("wan", vnet(flow.syn())))
    before = rig.counters()
    answer = flow.segment("A", bytes(1400), reply=True)[14:]
    about = frames.icmp(*((3, 4, 1280) if net.af == 4 else (2, 0, 1280)), answer[:600])
    router = "192.0.2.77" if net.af == 4 else "2001:db8:77::1"
    raw = frames.eth(WAN_MAC, ROUTER_MAC, payload=frames.ip(router, net.vip, about))
    sent = one(rig.receive("wan", vnet(raw)))
    seen = unwrapped(sent.frame)
    assert seen.daddr == outer.dest
    check(
        seen.inner,
        ip(saddr=router, daddr=net.vip, ttl=63),
        icmp(info=1280),
        quoted(ip(saddr=net.vip, daddr=net.remote)),
        vnet=False,
        tun=True,
    )
    assert rig.counters() == before | {"ICMP_RELATED": 1}


def test_a_reload_changes_the_wrapping_of_old_conns(net: Net) -> None:
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    one(rig.receive("wan", vnet(flow.syn())))
    rig.reload(balanced(net, net, tunnel={"type": "gue", "csum": True}))
    seen = unwrapped(one(rig.receive("wan", vnet(flow.ack()))).frame)
    assert (seen.proto, seen.dport) == (17, GUE_PORT)


def test_a_reload_to_another_mode_keeps_old_conns_in_the_tunnel(net: Net) -> None:
    rig = Rig(balanced(net, net))
    flow = flow_of(net)
    one(rig.receive("wan", vnet(flow.syn())))
    rig.reload(balanced(net, net).replace('"fwdmode": "tunnel"', '"fwdmode": "nat"'))
    assert unwrapped(one(rig.receive("wan", vnet(flow.ack()))).frame).daddr == net.dest
    sent = one(rig.receive("wan", vnet(flow_of(net, 50000).syn())))
    check(sent.frame, ip(saddr=net.remote, daddr=net.dest))


@ways
def test_a_successor_goes_on(net: Net, outer: Net) -> None:
    memory = Memory()
    text = balanced(net, outer, tunnel={"type": "gre"})
    flow = flow_of(net)
    first = Rig(text, memory=memory)
    one(first.receive("wan", vnet(flow.syn())))
    one(first.receive("wan", vnet(flow.ack())))
    second = Rig(text, memory=memory.copy())
    adopted = second.director.adopt(second.now)
    assert (adopted.kept, adopted.dropped) == (1, 0)
    assert unwrapped(one(second.receive("wan", vnet(flow.data()))).frame).daddr == outer.dest
    # One whose dest is not reached by a tunnel any more cannot.
    if net is outer:
        text = kit.text(*network(), kit.service(net, "tcp", "dr"), kit.dest(net, "dr"))
        third = Rig(text, memory=memory.copy())
        adopted = third.director.adopt(third.now)
        assert (adopted.kept, adopted.dropped) == (0, 1)


def test_a_packet_to_the_port_of_no_service(net: Net) -> None:
    rig = Rig(balanced(net, net))
    flow = Flow(at(net.remote, 1), at(net.vip, 81), client_mac=ROUTER_MAC, server_mac=WAN_MAC)
    verdict, _ = rig.receive("wan", vnet(flow.syn()))
    assert verdict == Verdict.DROP
    assert rig.counters() == {"drop.PORT_UNREACHABLE": 1, "ICMP_ERRORS_SENT": 1}


def test_an_unknown_ack(net: Net) -> None:
    rig = Rig(balanced(net, net))
    dropped(rig, "wan", vnet(flow_of(net).ack()), "TCP_NOT_SYN")
