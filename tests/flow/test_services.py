"""Which service a packet belongs to, who may open a conn, and what happens without room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import (
    DEST2_MAC,
    ROUTER_MAC,
    V4,
    WAN_MAC,
    Conn,
    Net,
    Rig,
    balanced,
    counted,
    dest,
    dropped,
    network,
    one,
    service,
    states,
    text,
    the_dest,
)
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, ether, icmp, ip, tcp
from tunlb.testing.frames import eth, udp, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment


def syn(net: Net, vport: int = 80, cport: int = 40000, flags: str = "S", vip: str = "") -> bytes:
    body = packet(net.remote, vip or net.vip, segment(cport, vport, flags=flags))
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))


def datagram(net: Net, vport: int = 80, cport: int = 40000) -> bytes:
    return vnet(
        eth(WAN_MAC, ROUTER_MAC, payload=packet(net.remote, net.vip, udp(cport, vport, b"x")))
    )


def ports_of(net: Net) -> Rig:
    """One port, two ranges and what is left over; each leads to its own dest port."""
    lines = [*network(net)]
    rows = (("exact", 80, 1), ("range", "81-90", 2), ("high", "95-99", 3), ("any", 0, 4))
    for name, vport, dport in rows:
        lines.append(service(net, "tcp", "nat", name=name, vport=vport))
        lines.append(dest(net, service=name, dport=dport))
    return Rig(text(*lines))


@pytest.mark.parametrize(
    ("vport", "dport"),
    [
        (80, 1),
        (81, 2),
        (90, 2),
        (95, 3),
        (99, 3),
        (79, 4),
        (91, 4),
        (94, 4),
        (100, 4),
        (1, 4),
        (65535, 4),
    ],
)
def test_exact_then_range_then_any(net: Net, vport: int, dport: int) -> None:
    rig = ports_of(net)
    check(one(rig.receive("wan", syn(net, vport))).frame, tcp(dport=dport))


@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
@pytest.mark.parametrize("vport", ["8000-8099", 0])
def test_a_dest_without_dport_keeps_the_port(net: Net, vport: Any, mode: str) -> None:
    line = dest(net, mode)
    line.pop("dport", None)
    rig = Rig(text(*network(net), service(net, "tcp", mode, vport=vport), line))
    conn = Conn(rig, net, "tcp", mode, vport=8042, dport=8042).establish()
    assert rig.counters() == conn.counted()


def test_tcp_and_udp_on_the_same_vip_and_port(net: Net) -> None:
    lines = [service(net, name="t"), dest(net, service="t")]
    lines += [service(net, "udp", name="u"), dest(net, service="u", daddr=net.dest2, dport=53)]
    rig = Rig(text(*network(net), *lines))
    stream = Conn(rig, net).establish()
    query = Conn(rig, net, "udp", daddr=net.dest2, dport=53).establish()
    assert states(rig) == ["ESTABLISHED", "NORMAL"]
    assert rig.counters() == counted(stream, query)


def test_udp_to_a_vip_that_has_only_tcp(net: Net) -> None:
    dropped(Rig(balanced(net)), "wan", datagram(net), "UDP_TO_TCP_VIP")
    dropped(Rig(balanced(net)), "wan", datagram(net, 9999), "UDP_TO_TCP_VIP")


@pytest.mark.parametrize("flags", ["A", "SA", "FA", "R", "RA", "SF", "SR", "", "P", "FPU"])
def test_only_a_syn_opens(net: Net, flags: str) -> None:
    rig = Rig(balanced(net))
    dropped(rig, "wan", syn(net, flags=flags), "TCP_NOT_SYN")
    assert states(rig) == []


@pytest.mark.parametrize("flags", ["S", "SEC", "SPU"])
def test_a_syn_opens(net: Net, flags: str) -> None:
    rig = Rig(balanced(net))
    one(rig.receive("wan", syn(net, flags=flags)))
    assert states(rig) == ["SYN_RECV"]


@pytest.mark.parametrize("why", ["no-dest", "weight-0", "max-conn"])
def test_no_dest(net: Net, why: str) -> None:
    """The client hears port unreachable, as IPVS says it."""
    limits: dict[str, Any] = {"weight": 0} if why == "weight-0" else {"max_conn": 1}
    lines = [*network(net), service(net)]
    if why != "no-dest":
        lines.append(dest(net, **limits))
    rig = Rig(text(*lines))
    opened = Conn(rig, net, cport=50000) if why == "max-conn" else None
    if opened is not None:
        opened.establish()
    before = opened.counted() if opened else {}
    verdict, sent = rig.receive("wan", syn(net))
    assert verdict == Verdict.DROP
    kind = icmp(type=3, code=3) if net.af == 4 else icmp(type=1, code=4)
    check(sent[0].frame, ip(saddr=net.vip, daddr=net.remote), kind)
    assert rig.counters() == before | {"drop.NO_DEST": 1, "ICMP_ERRORS_SENT": 1}


def test_max_conn_counts_live_conns(net: Net) -> None:
    rig = Rig(text(*network(net), service(net), dest(net, max_conn=2)))
    first, second = Conn(rig, net, cport=1), Conn(rig, net, cport=2)
    first.establish()
    second.up("S")
    assert rig.receive("wan", syn(net))[0] == Verdict.DROP
    first.up("R")
    rig.advance(11_000)
    one(rig.receive("wan", syn(net)))


def test_round_robin_over_two(net: Net) -> None:
    rig = Rig(text(*network(net), service(net), dest(net), dest(net, daddr=net.dest2)))
    for i in range(6):
        conn = Conn(rig, net, cport=100 + i, daddr=(net.dest, net.dest2)[i % 2])
        conn.establish()
    assert [the_dest(rig, a).actconns for a in (net.dest, net.dest2)] == [3, 3]


def test_a_scheduler_in_plain_python(net: Net) -> None:
    from tunlb.ipvs.scheduler import Scheduler

    class Last(Scheduler):
        def schedule(self, pkt, now):
            return self.dests[-1]

    rig = Rig(text(*network(net), service(net), dest(net), dest(net, daddr=net.dest2)))
    known = next(iter(rig.director.services()))
    mine = Last()
    mine.update(known.dests)
    known.scheduler = mine
    sent = one(rig.receive("wan", syn(net)))
    check(sent.frame, ether(dst=DEST2_MAC), ip(daddr=net.dest2))


# -- port reuse


@pytest.mark.parametrize("state", ["TIME_WAIT", "CLOSE"])
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_port_reuse_is_at_once(net: Net, mode: str, state: str) -> None:
    lines = [service(net, "tcp", mode), dest(net), dest(net, daddr=net.dest2)]
    rig = Rig(text(*network(net), *lines))
    old = Conn(rig, net, "tcp", mode).establish()
    if state == "TIME_WAIT":
        old.up("FA")
        old.down("FA")
    else:
        old.up("R")
    assert states(rig) == [state]
    new = Conn(rig, net, "tcp", mode, daddr=net.dest2)
    new.up("S")
    assert states(rig) == ["SYN_RECV"]
    assert [the_dest(rig, a).inactconns for a in (net.dest, net.dest2)] == [0, 1]
    assert rig.counters() == counted(old, new, CONN_REUSED=1)


@pytest.mark.parametrize("last", ["ESTABLISHED", "SYN_RECV", "CLOSE_WAIT", "FIN_WAIT"])
def test_no_reuse_of_a_live_conn(net: Net, last: str) -> None:
    """A SYN there is a duplicate or an attack: it stays with its dest."""
    rig = Rig(text(*network(net), service(net), dest(net), dest(net, daddr=net.dest2)))
    conn = Conn(rig, net)
    conn.up("S")
    if last != "SYN_RECV":
        conn.up("A")
    if last == "CLOSE_WAIT":
        conn.up("FA")
    if last == "FIN_WAIT":
        conn.down("FA")
    assert states(rig) == [last]
    conn.up("S")
    assert len(states(rig)) == 1
    assert rig.counters() == conn.counted()


@pytest.mark.parametrize("how", ["weight-0", "removed"])
def test_reuse_never_goes_to_a_drained_dest(net: Net, how: str) -> None:
    base = [*network(net), service(net)]
    rig = Rig(text(*base, dest(net), dest(net, daddr=net.dest2)))
    old = Conn(rig, net).establish()
    old.up("R")
    kept = [dest(net, daddr=net.dest2)] + ([dest(net, weight=0)] if how == "weight-0" else [])
    rig.reload(text(*base, *kept))
    new = Conn(rig, net, daddr=net.dest2)
    new.up("S")
    assert rig.counters() == counted(old, new, CONN_REUSED=1)


# -- local addresses and ports


def test_laddrs_take_turns(net: Net) -> None:
    rig = Rig(balanced(net, laddrs=[net.laddr, net.laddr2]))
    seen = []
    for i in range(4):
        conn = Conn(rig, net, cport=100 + i, laddr=(net.laddr, net.laddr2)[i % 2])
        conn.establish()
        seen.append((conn.laddr, conn.lport))
    assert seen == [(net.laddr, 1025), (net.laddr2, 1025), (net.laddr, 1026), (net.laddr2, 1026)]


def few_ports(net: Net, *lines: dict[str, Any], **keys: Any) -> Rig:
    """Four lports a pool instead of 64511."""
    rig = Rig(text(*network(net), service(net, **keys), *(lines or (dest(net),))))
    rig.director.ipvs.life.pools.step = 16384
    return rig


def opened(rig: Rig, net: Net, n: int, first: int = 100, **keys: Any) -> list[Conn]:
    conns = [Conn(rig, net, cport=first + i, **keys) for i in range(n)]
    for conn in conns:
        conn.establish()
    return conns


def capacity(rig: Rig, net: Net) -> int:
    hi, lo = next(iter(rig.director.services())).laddrs[0]
    known = the_dest(rig, net.dest)
    size: int = rig.director.ipvs.life.pools.pool(
        hi, lo, known.daddr_hi, known.daddr, 8080 << 8 | 6
    ).size
    return size


def test_exhaustion_is_per_dest(net: Net) -> None:
    """Every port towards one dest is taken; another dest has all of its own."""
    rig = few_ports(net, dest(net), dest(net, daddr=net.dest2, weight=0))
    n = capacity(rig, net)
    assert 3 <= n <= 4
    conns = opened(rig, net, n)
    assert len({conn.lport for conn in conns}) == n
    before = rig.counters()
    assert rig.receive("wan", syn(net, cport=999)) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.LPORT_EXHAUSTED": 1}
    assert len(states(rig)) == n
    rig.reload(text(*network(net), service(net), dest(net, weight=0), dest(net, daddr=net.dest2)))
    opened(rig, net, n, first=500, daddr=net.dest2)
    assert len(states(rig)) == 2 * n


def test_a_second_laddr_doubles_the_ports(net: Net) -> None:
    rig = few_ports(net, laddrs=[net.laddr, net.laddr2])
    n = capacity(rig, net)
    for i in range(2 * n):
        one(rig.receive("wan", syn(net, cport=100 + i)))
    assert rig.receive("wan", syn(net, cport=99))[0] == Verdict.DROP
    assert rig.counters()["drop.LPORT_EXHAUSTED"] == 1


def test_a_closing_conn_gives_up_its_port(net: Net) -> None:
    rig = few_ports(net)
    conns = opened(rig, net, capacity(rig, net))
    conns[1].up("FA")
    conns[1].down("FA")
    new = Conn(rig, net, cport=999)
    new.up("S")
    assert new.lport == conns[1].lport
    assert rig.counters() == counted(*conns, new, LPORT_RECYCLED=1)
    assert sorted(states(rig)) == ["ESTABLISHED"] * (len(conns) - 1) + ["SYN_RECV"]


def test_an_expired_conn_gives_its_port_back(net: Net) -> None:
    rig = few_ports(net)
    conns = opened(rig, net, capacity(rig, net))
    conns[2].up("R")
    rig.advance(11_000)
    new = Conn(rig, net, cport=999)
    new.up("S")
    assert new.lport == conns[2].lport
    assert rig.counters() == counted(*conns, new, CONN_EXPIRED=1)


def test_a_refused_packet_gives_its_port_back(net: Net) -> None:
    """No route to the dest: neither a row nor a port stays behind."""
    rig = few_ports(net)
    for _ in range(20):
        body = packet(net.remote, net.vip, segment(40000, 80, flags="S"), ttl=1)
        rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=body)))
        big = packet(net.remote, net.vip, segment(40000, 80, bytes(2000), flags="S"))
        rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=big)))
    opened(rig, net, capacity(rig, net))
    known = the_dest(rig)
    assert (known.actconns, known.inactconns) == (capacity(rig, net), 0)


def test_conn_exists(net: Net) -> None:
    """Two VIPs, one dest, nat, the same client port: to the dest the conns are the same."""
    lines = [service(net, "tcp", "nat", name="a"), dest(net, service="a")]
    lines += [service(net, "tcp", "nat", name="b", vaddr=net.vip2), dest(net, service="b")]
    rig = Rig(text(*network(net), *lines))
    conn = Conn(rig, net, "tcp", "nat").establish()
    dropped(rig, "wan", syn(net, vip=net.vip2), "CONN_EXISTS")
    assert states(rig) == ["ESTABLISHED"]
    conn.down("PA", b"unharmed")


# -- a full table


ROWS = 8


def full(net: Net, *kinds: str) -> tuple[Rig, list[Conn]]:
    """A table of eight rows, filled a second apart with conns in these states."""
    lines = [
        service(net),
        dest(net),
        service(net, "udp", name="u"),
        dest(net, service="u", dport=53),
    ]
    rig = Rig(text(*network(net), *lines), conn_max=ROWS)
    conns = []
    for i, kind in enumerate(kinds):
        if kind == "udp":
            conn = Conn(rig, net, "udp", cport=100 + i, dport=53)
            conn.up()
        else:
            conn = Conn(rig, net, cport=100 + i)
            conn.up("S")
            if kind != "half":
                conn.up("A")
            if kind == "closing":
                conn.up("FA")
        conns.append(conn)
        rig.advance(1000)
    assert len(states(rig)) == ROWS
    return rig, conns


FULL = {
    "half-open-before-all": (["est", "udp", "closing", "half", "udp", "closing", "half", "est"], 3),
    "closing-before-udp": (["est", "udp", "closing", "udp", "udp", "closing", "est", "est"], 2),
    "oldest-udp": (["est", "est", "udp", "udp", "udp", "est", "est", "est"], 2),
    "oldest-half-open": (["half"] * 8, 0),
}


@pytest.mark.parametrize(("kinds", "victim"), FULL.values(), ids=FULL)
def test_who_is_evicted(net: Net, kinds: list[str], victim: int) -> None:
    rig, conns = full(net, *kinds)
    new = Conn(rig, net, cport=999)
    new.up("S")
    assert rig.counters() == counted(*conns, new, CONN_EVICTED=1)
    for i, conn in enumerate(conns):
        if conn.proto == "tcp" and i != victim:
            conn.up("A")  # still there, with its dest and lport
    if conns[victim].proto == "tcp":
        raw = vnet(conns[victim].frame(conns[victim].outside, "A", b"", False))
        assert rig.receive("wan", raw) == (Verdict.DROP, [])
        assert rig.counters()["drop.TCP_NOT_SYN"] == 1


def test_established_conns_are_never_evicted(net: Net) -> None:
    rig, conns = full(net, *["est"] * ROWS)
    for _ in range(3):
        assert rig.receive("wan", syn(net)) == (Verdict.DROP, [])
    for conn in conns:
        conn.up("PA", b"still here")
    assert rig.counters() == counted(*conns, drop_CONN_TABLE_FULL=3)


def test_room_again_after_the_end_of_one(net: Net) -> None:
    rig, conns = full(net, *["est"] * ROWS)
    conns[4].up("R")
    new = Conn(rig, net, cport=999)
    new.up("S")
    assert rig.counters() == counted(*conns, new, CONN_EVICTED=1)


def test_ttl_and_full_table_leave_no_row_behind() -> None:
    rig = Rig(balanced(V4), conn_max=ROWS)
    for i in range(100):
        body = packet(V4.remote, V4.vip, segment(1000 + i, 80, flags="S"), ttl=1)
        rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=body)))
    assert rig.director.ipvs.conns.count == 0
