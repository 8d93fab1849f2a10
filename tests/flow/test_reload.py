"""A new configuration between two packets: conns survive, dests drain, addresses linger."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import (
    DEST_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Conn,
    Line,
    Net,
    Rig,
    counted,
    default_route,
    dest,
    neigh,
    neighbours,
    network,
    one,
    ports,
    service,
    states,
    text,
    the_dest,
)
from tunlb.hook import Verdict
from tunlb.ipvs.dest import CONNS, IN_BYTES, IN_PACKETS
from tunlb.testing.audit import audit
from tunlb.testing.checkers import check, ether, icmp, ip
from tunlb.testing.flow import Memory
from tunlb.testing.frames import echo, eth, tcp, vnet
from tunlb.testing.frames import ip as packet

DRAIN_S = 30


def config(net: Net, *lines: Line, **keys: Any) -> str:
    return text(*network(net), service(net, drain_s=DRAIN_S, **keys), *lines)


def syn(net: Net, cport: int = 50000, vip: str = "") -> bytes:
    body = packet(net.remote, vip or net.vip, tcp(cport, 80, flags="S"))
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))


def pings(rig: Rig, net: Net, address: str) -> bool:
    raw = vnet(
        eth(WAN_MAC, ROUTER_MAC, payload=packet(net.remote, address, echo(1, 1, v6=net.af == 6)))
    )
    return rig.receive("wan", raw)[0] == Verdict.ACCEPT and "FORWARDED" not in rig.counters()


def test_the_same_again_changes_nothing(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    for _ in range(5):
        rig.reload(config(net, dest(net)))
        conn.up("PA", b"up")
        conn.down("PA", b"down")
    rig.advance(60_000)
    assert states(rig) == ["ESTABLISHED"]
    assert rig.counters() == conn.counted()
    known = the_dest(rig)
    assert known.actconns == 1
    assert (known.stats[IN_PACKETS], known.stats[IN_BYTES]) == (conn.packets[0], conn.bytes[0])


def test_a_service_is_added(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    assert not pings(rig, net, net.vip2)
    second = [service(net, name="two", vaddr=net.vip2), dest(net, service="two", dport=9090)]
    rig.reload(config(net, dest(net), *second))
    conn.up("PA", b"still here")
    other = Conn(rig, net, vaddr=net.vip2, dport=9090).establish()
    other.down("PA", b"hello")
    assert states(rig) == ["ESTABLISHED"] * 2


def test_a_dest_is_added(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    old = Conn(rig, net).establish()
    rig.reload(config(net, dest(net), dest(net, daddr=net.dest2)))
    new = Conn(rig, net, cport=2, daddr=net.dest2).establish()
    old.up("PA", b"still here")
    assert rig.counters() == counted(old, new)


@pytest.mark.parametrize("how", ["removed", "weight-0", "service-removed"])
def test_draining(net: Net, how: str) -> None:
    """No new conns; the old ones go on until their end or until drain_s has passed."""
    left = dest(net, daddr=net.dest2)
    rig = Rig(config(net, dest(net), left))
    conn = Conn(rig, net).establish()
    rig.reload(
        {
            "removed": config(net, left),
            "weight-0": config(net, dest(net, weight=0), left),
            "service-removed": text(*network(net)),
        }[how]
    )
    rig.advance(DRAIN_S * 1000 - 1000)
    conn.up("PA", b"up")
    conn.down("PA", b"down")
    others = []
    if how != "service-removed":
        others = [Conn(rig, net, cport=2 + i, daddr=net.dest2).establish() for i in range(2)]
    rig.advance(2000)
    before = rig.counters()
    assert rig.receive("wan", vnet(conn.outside.data(b"late"))) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.DEST_GONE": 1}
    assert states(rig) == ["ESTABLISHED"] * len(others)
    for other in others:
        other.up("PA", b"unharmed")


def test_weight_0_and_back(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    rig.reload(config(net, dest(net, weight=0)))
    rig.advance(10_000)
    rig.reload(config(net, dest(net, weight=3)))
    rig.advance(DRAIN_S * 1000)
    conn.up("PA", b"still here")
    Conn(rig, net, cport=2).establish()


def test_reloads_do_not_prolong_the_drain(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    for _ in range(4):
        rig.reload(config(net, dest(net, weight=0)))
        rig.advance(10_000)
    assert rig.receive("wan", vnet(conn.outside.data()))[0] == Verdict.DROP
    assert rig.counters() == conn.counted(drop_DEST_GONE=1)


def test_a_removed_dest_comes_back(net: Net) -> None:
    """The same dest: its conns, counts and counters go on."""
    left = dest(net, daddr=net.dest2)
    rig = Rig(config(net, dest(net), left))
    conn = Conn(rig, net).establish()
    known = the_dest(rig, net.dest)
    rig.reload(config(net, left))
    rig.advance(20_000)
    rig.reload(config(net, dest(net), left))
    assert the_dest(rig, net.dest) is known
    rig.advance(DRAIN_S * 1000)
    conn.up("PA", b"still here")
    assert (known.actconns, known.stats[IN_PACKETS]) == (1, conn.packets[0])


def test_a_drained_dest_is_forgotten(net: Net) -> None:
    left = dest(net, daddr=net.dest2)
    rig = Rig(config(net, dest(net), left))
    Conn(rig, net).up("S")
    rig.reload(config(net, left))
    rig.advance(80_000, step=1000)
    the_dest(rig, net.dest2)
    with pytest.raises(LookupError):
        the_dest(rig, net.dest)
    assert rig.counters()["CONN_EXPIRED"] == 1


def test_weights_of_a_wrr(net: Net) -> None:
    other = dest(net, daddr=net.dest2)
    rig = Rig(config(net, dest(net), other, scheduler="wrr"))
    for cport in range(10):
        one(rig.receive("wan", syn(net, 100 + cport)))
    assert [the_dest(rig, a).stats[CONNS] for a in (net.dest, net.dest2)] == [5, 5]
    rig.reload(config(net, dest(net, weight=4), other, scheduler="wrr"))
    for cport in range(10):
        one(rig.receive("wan", syn(net, 200 + cport)))
    assert [the_dest(rig, a).stats[CONNS] for a in (net.dest, net.dest2)] == [13, 7]


def test_the_rotation_goes_on(net: Net) -> None:
    """A reload is no reason to begin with the first dest again."""
    both = dest(net), dest(net, daddr=net.dest2)
    rig = Rig(config(net, *both))
    for i in range(6):
        Conn(rig, net, cport=100 + i, daddr=(net.dest, net.dest2)[i % 2]).up("S")
        rig.reload(config(net, *both))


def gone_after(rig: Rig, net: Net, address: str) -> None:
    """Answered for as long as conns drain, and no longer (the sweep comes every 10 s)."""
    assert pings(rig, net, address)
    rig.advance(DRAIN_S * 1000 - 1000, step=1000)
    assert pings(rig, net, address)
    rig.advance(12_000, step=1000)
    assert not pings(rig, net, address)


def test_a_removed_vip_is_answered_while_it_drains(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    rig.reload(text(*network(net)))
    gone_after(rig, net, net.vip)


def test_a_changed_vip_is_answered_while_it_drains(net: Net) -> None:
    """The same service on another address: the clients of the old one still speak to it."""
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    rig.reload(config(net, dest(net), vaddr=net.vip2))
    conn.up("PA", b"still here")
    conn.down("PA", b"me too")
    assert pings(rig, net, net.vip2)
    gone_after(rig, net, net.vip)


def test_a_changed_laddr_is_answered_while_it_drains(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    rig.reload(config(net, dest(net), laddrs=[net.laddr2]))
    conn.down("PA", b"to the old laddr")
    Conn(rig, net, cport=2, laddr=net.laddr2).establish()
    gone_after(rig, net, net.laddr)


@pytest.mark.parametrize("drained", [False, True])
def test_a_successor_after_a_changed_laddr(net: Net, drained: bool) -> None:
    """While it drains, what a killed worker left goes on; afterwards its answers come to nobody."""
    memory = Memory()
    before, after = config(net, dest(net)), config(net, dest(net), laddrs=[net.laddr2])
    rig = Rig(before, memory=memory)
    conn = Conn(rig, net).establish()
    rig.reload(after)
    conn.rig = Rig(after if drained else before, memory=memory.copy(), now=rig.now - 3000)
    if not drained:
        conn.rig.reload(after)
    kept = 0 if drained else 1
    assert conn.rig.director.adopt(conn.rig.now) == (kept, 1 - kept)
    if not drained:
        conn.down("PA", b"to the old laddr")
        conn.up("PA", b"from it")
        conn.rig.advance(60_000)
        assert conn.rig.counters()["CONN_ENDED"] == 1
    conn.laddr, conn.lport = net.laddr2, 0
    conn.establish()
    audit(conn.rig.director)


def test_a_service_comes_back_while_it_drains(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    rig.reload(text(*network(net)))
    rig.advance(10_000)
    rig.reload(config(net, dest(net)))
    rig.advance(60_000)
    assert pings(rig, net, net.vip)
    conn.up("PA", b"still here")


def test_a_removed_service_takes_no_conns(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    rig.reload(text(*network(net)))
    verdict, sent = rig.receive("wan", syn(net))
    assert verdict == Verdict.DROP
    kind = icmp(type=3, code=3) if net.af == 4 else icmp(type=1, code=4)
    check(sent[0].frame, ip(saddr=net.vip), kind)
    assert rig.counters() == {"drop.PORT_UNREACHABLE": 1, "ICMP_ERRORS_SENT": 1}


def test_the_route_to_a_dest_moves(net: Net) -> None:
    """Conns follow at their next packet."""
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    length = 32 if net.af == 4 else 128
    detour = {"kind": "route", "dst": f"{net.dest}/{length}", "via": net.dest2, "port": "lan"}
    rig.reload(config(net, dest(net), detour))
    conn.dest_mac = "02:00:00:00:00:12"
    conn.up("PA", b"by another way")


def test_the_route_to_a_dest_ends(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    lines = [line for line in network(net) if line["kind"] != "route"]
    back = default_route(net) | {"dst": f"{net.remote}/{32 if net.af == 4 else 128}"}
    length = 32 if net.af == 4 else 128
    away = {"kind": "route", "dst": f"{net.dest}/{length}", "via": net.router, "port": "wan"}
    rig.reload(text(*lines, back, away, service(net, drain_s=DRAIN_S), dest(net)))
    sent = one(rig.receive("wan", vnet(conn.outside.data())))
    assert sent.port == "wan"


def test_timeouts_of_a_service(net: Net) -> None:
    """A shorter one applies at the conn's next change of state."""
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    rig.reload(config(net, dest(net), timeouts={"tcp_close_s": 2}))
    conn.up("R")
    rig.advance(3000)
    assert states(rig) == []


def test_a_waiting_packet_leaves_when_its_neighbour_becomes_static(net: Net) -> None:
    lines = [*ports(net), default_route(net), neigh("wan", net.router, ROUTER_MAC)]
    lines += [service(net), dest(net)]
    rig = Rig(text(*lines))
    assert rig.receive("wan", syn(net))[0] == Verdict.STOLEN
    rig.reload(text(*lines, neigh("lan", net.dest, DEST_MAC)))
    sent = rig.outbox()
    assert [s.port for s in sent] == ["lan"]
    check(sent[0].frame, ether(dst=DEST_MAC), ip(daddr=net.dest))


def test_a_static_neighbour_is_forgotten(net: Net) -> None:
    rig = Rig(config(net, dest(net)))
    conn = Conn(rig, net).establish()
    keep = [line for line in neighbours(net) if line["addr"] != net.dest]
    rig.reload(text(*ports(net), default_route(net), *keep, service(net), dest(net)))
    verdict, sent = rig.receive("wan", vnet(conn.outside.data()))
    assert (verdict, len(sent)) == (Verdict.STOLEN, 1)
    assert rig.counters()["NEIGH_REQUESTS"] == 1
