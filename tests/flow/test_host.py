"""A port with a host beside it: what goes to the host, as it came, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.flow.kit import (
    CLIENT_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Conn,
    Line,
    Net,
    Rig,
    at,
    counted,
    default_route,
    dest,
    dropped,
    neigh,
    neighbours,
    one,
    port,
    service,
    states,
    text,
    the_dest,
)
from tunlb.counters import DropReason
from tunlb.hook import Hook, Point, Verdict
from tunlb.packet import Packet
from tunlb.testing.checkers import check, ether, ip, tcp
from tunlb.testing.flow import Memory, Sent
from tunlb.testing.frames import PLAIN, Flow, arp, echo, eth, icmp, nd_na, nd_ns, udp, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.workers import Workers
from tunlb.wire.vnet import GSO_TCPV4, GSO_TCPV6

HOST = "wan-h"
STRANGER = "02:00:00:00:00:99"


def extra(net: Net) -> str:
    """An address that only the host has."""
    return "10.0.0.77" if net.af == 4 else "fd00::77"


def floating(net: Net) -> str:
    """One that nobody has told us of."""
    return "10.0.0.88" if net.af == 4 else "fd00::88"


def local_dest(net: Net, **keys: Any) -> Line:
    return {"kind": "dest", "service": "web", "daddr": net.vip, "fwdmode": "local", **keys}


def lines(net: Net, **keys: Any) -> list[Line]:
    length = 32 if net.af == 4 else 128
    keys = {"host": HOST, "host_addresses": [f"{extra(net)}/{length}"], **keys}
    return [
        port("wan", f"{net.wan}/{net.length}", **keys),
        port("lan", f"{net.lan}/{net.length}"),
        default_route(net),
        *neighbours(net),
    ]


def config(net: Net, *more: Line, **keys: Any) -> str:
    return text(*lines(net, **keys), service(net), dest(net), *more)


def beside(net: Net, *more: Line, **keys: Any) -> Rig:
    return Rig(config(net, *more, **keys))


def to(net: Net, daddr: str, payload: Any, dst: str = WAN_MAC, **fields: Any) -> bytes:
    source = fields.pop("saddr", net.client)
    return PLAIN + eth(dst, CLIENT_MAC, payload=packet(source, daddr, payload, **fields))


def group(net: Net, payload: Any, **fields: Any) -> bytes:
    daddr, mac = ("224.0.0.18", "01:00:5e:00:00:12")
    if net.af == 6:
        daddr, mac = ("ff02::12", "33:33:00:00:00:12")
    return to(net, daddr, payload, mac, ttl=255, **fields)


def passed(rig: Rig, name: str, frame: bytes) -> None:
    """Feed a frame that must come out at the host as it came, and count as nothing else."""
    before = rig.counters()
    sent = one(rig.receive(name, frame))
    after = rig.counters()
    moved = {key: after[key] - before.get(key, 0) for key in after}
    moved = {key: n for key, n in moved.items() if n and key not in ("ARP_IN", "ND_IN")}
    assert moved == {"HOST_IN": 1}
    assert sent.port == HOST
    assert sent.frame[10:] == frame[10:]


ROWS: dict[str, Callable[[Net], bytes]] = {
    "TCP to the port": lambda n: to(n, n.wan, segment(40000, 22, flags="S")),
    "data of a conn that we do not know": lambda n: to(n, n.wan, segment(40000, 22, b"x")),
    "UDP to the port": lambda n: to(n, n.wan, udp(40000, 53, b"q")),
    "TCP to an address of the host's": lambda n: to(n, extra(n), segment(40000, 22, flags="S")),
    "another protocol": lambda n: to(n, n.wan, b"\0" * 24, proto=89),
    "a ping": lambda n: to(n, n.wan, echo(1, 1, v6=n.af == 6)),
    "a ping with a wrong checksum": lambda n: to(
        n, n.wan, icmp(128 if n.af == 6 else 8, 0, 0, b"x", checksum=1)
    ),
    "with the last hop": lambda n: to(n, n.wan, segment(40000, 22, flags="S"), ttl=1),
    "multicast": lambda n: group(n, b"\x21\x01\x64\x01" + bytes(8), proto=112),
    "broadcast": lambda n: to(n, n.wan, udp(67, 68, b"x"), "ff:ff:ff:ff:ff:ff"),
    "an address that floats": lambda n: to(n, floating(n), segment(40000, 22, flags="S")),
    "another EtherType": lambda n: PLAIN + eth("01:80:c2:00:00:0e", CLIENT_MAC, 0x88CC, b"lldp"),
    "a VLAN that we do not have": lambda n: (
        PLAIN + eth(WAN_MAC, CLIENT_MAC, payload=packet(n.client, n.wan, udp(1, 2)), vlan=9)
    ),
    "two tags": lambda n: (
        PLAIN + eth(WAN_MAC, CLIENT_MAC, payload=packet(n.client, n.wan, udp(1, 2)), vlan=(9, 8))
    ),
    "an ICMP error about the host's packet": lambda n: to(
        n,
        n.wan,
        icmp(
            *((1, 4) if n.af == 6 else (3, 3)),
            0,
            packet(n.wan, n.client, segment(179, 40000)),
        ),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_goes_to_the_host(net: Net, row: str) -> None:
    passed(beside(net), "wan", ROWS[row](net))


@pytest.mark.parametrize("row", ROWS)
def test_and_not_where_there_is_none(net: Net, row: str) -> None:
    """The same frames, without `host`: nothing of it is new."""
    rig = Rig(config(net, host=None, host_addresses=[]))
    sent = rig.receive("wan", ROWS[row](net))[1]
    assert all(each.port != HOST for each in sent)
    assert "HOST_IN" not in rig.counters()


def test_fragments_to_the_host() -> None:
    rig = beside(V4)
    for offset, more in ((0, True), (1480, False)):
        body = bytes(1480)
        for frame in (
            to(V4, V4.wan, body, proto=17, mf=more, fragment=offset, df=False),
            to(V4, extra(V4), body, proto=17, mf=more, fragment=offset, df=False),
            group(V4, body, proto=89, mf=more, fragment=offset, df=False),
        ):
            passed(rig, "wan", frame)
    # A VIP's may be of a service, and anybody else's are routed.
    before = rig.counters()
    assert rig.receive("wan", to(V4, V4.vip, bytes(8), proto=17, mf=True, df=False))[1] == []
    sent = rig.receive("wan", to(V4, V4.nowhere, bytes(8), proto=17, mf=True, df=False))[1]
    assert one((Verdict.ACCEPT, sent)).port == "wan"
    moved = {"drop.UDP_TO_TCP_VIP": 1, "FRAGMENT_FIRST": 1, "FORWARDED": 1}
    assert rig.counters() == before | moved


@pytest.mark.parametrize("gso", [False, True], ids=["partial", "gso"])
@pytest.mark.parametrize("vlan", [None, 9], ids=["untagged", "tagged"])
def test_offloads_stay_as_they_are(net: Net, vlan: int | None, gso: bool) -> None:
    """Also of a frame that nobody looks into."""
    rig = beside(net)
    client, server = at(net.client, 40000), at(net.wan, 22)
    flow = Flow(client, server, client_mac=CLIENT_MAC, server_mac=WAN_MAC, vlan=vlan)
    offload: dict[str, Any] = {}
    if gso:
        headers = 14 + (0 if vlan is None else 4) + (20 if net.af == 4 else 40) + 20
        kind = GSO_TCPV4 if net.af == 4 else GSO_TCPV6
        offload = {"gso_type": kind, "gso_size": 1000, "hdr_len": headers}
    raw = vnet(flow.segment("A", bytes(5000)), needs_csum=True, **offload)
    assert one(rig.receive("wan", raw)) == Sent(HOST, raw)


def test_vips_stay_ours(net: Net) -> None:
    """The host does not have them: pings are answered, the rest is refused."""
    rig = beside(net)
    sent = one(rig.receive("wan", to(net, net.vip, echo(1, 1, v6=net.af == 6))))
    assert sent.port == "wan"
    verdict, (error,) = rig.receive("wan", to(net, net.vip, segment(40000, 22, flags="S")))
    assert (verdict, error.port) == (Verdict.DROP, "wan")
    dropped(rig, "wan", to(net, net.vip, udp(40000, 53)), "UDP_TO_TCP_VIP")
    assert "HOST_IN" not in rig.counters()


def test_a_vip_that_the_host_has(net: Net) -> None:
    length = 32 if net.af == 4 else 128
    rig = beside(net, host_addresses=[f"{net.vip}/{length}"])
    for payload in (
        segment(40000, 22, flags="S"),
        udp(40000, 53, b"q"),
        echo(1, 1, v6=net.af == 6),
    ):
        passed(rig, "wan", to(net, net.vip, payload))
    Conn(rig, net).establish()
    dropped(rig, "wan", to(net, net.vip, segment(40009, 80, b"x")), "TCP_NOT_SYN")


def test_other_stations_and_our_own_frames_do_not(net: Net) -> None:
    rig = beside(net)
    syn = packet(net.client, net.wan, segment(40000, 22, flags="S"))
    dropped(rig, "wan", PLAIN + eth(STRANGER, CLIENT_MAC, payload=syn), "OTHERHOST")
    dropped(rig, "wan", PLAIN + eth(STRANGER, CLIENT_MAC, payload=syn, vlan=9), "VLAN_UNKNOWN")
    dropped(rig, "wan", PLAIN + eth(STRANGER, CLIENT_MAC, 0x88CC, b"lldp"), "OTHERHOST")
    dropped(rig, "wan", PLAIN + eth(WAN_MAC, WAN_MAC, payload=syn), "OWN_MAC")
    bad = packet(net.client, net.wan, segment(40000, 22, doff=1))
    dropped(rig, "wan", PLAIN + eth(WAN_MAC, CLIENT_MAC, payload=bad), "L4_HEADER")


def test_a_port_without_a_host_answers_itself(net: Net) -> None:
    """Also for an address of the port that has one: the other port's is not its host."""
    rig = beside(net)
    frame = PLAIN + eth(
        LAN_MAC, CLIENT_MAC, payload=packet(net.dest, net.wan, echo(1, 1, v6=net.af == 6))
    )
    assert one(rig.receive("lan", frame)).port == "lan"


def test_routing_goes_on(net: Net) -> None:
    """What is for another link is forwarded, not passed."""
    rig = beside(net)
    assert one(rig.receive("wan", to(net, net.dest, udp(1, 2, b"x")))).port == "lan"
    assert rig.counters() == {"FORWARDED": 1}


def test_a_hook_at_local_in_sees_it_first(net: Net) -> None:
    class Deny(Hook):
        point = Point.LOCAL_IN

        def run(self, pkt: Packet, now: int) -> int:
            return pkt.drop(DropReason.NOT_FORWARDED)

    rig = Rig(config(net), hooks=[Deny()])
    dropped(rig, "wan", to(net, net.wan, segment(1, 2, flags="S")), "NOT_FORWARDED")


# -- ARP and ND


def test_arp(net: Net) -> None:
    if net.af == 6:
        pytest.skip("ARP is IPv4's")
    rig = beside(net)
    for ours in (net.wan, net.vip, extra(net)):
        verdict, sent = rig.receive("wan", PLAIN + arp(1, CLIENT_MAC, net.client, tpa=ours))
        assert (verdict, [each.port for each in sent]) == (Verdict.STOLEN, ["wan"])
    assert "HOST_IN" not in rig.counters()
    for frame in (
        arp(1, CLIENT_MAC, net.client, tpa=floating(net)),
        arp(1, CLIENT_MAC, net.client, tpa=net.client),
        arp(2, CLIENT_MAC, net.client, WAN_MAC, net.wan),
    ):
        passed(rig, "wan", PLAIN + frame)
    dropped(rig, "wan", PLAIN + arp(1, CLIENT_MAC, net.wan, tpa=floating(net)), "ARP_INVALID")


def test_nd() -> None:
    net = V6
    rig = beside(net)

    def message(what: Any, daddr: str, mac: str) -> bytes:
        return to(net, daddr, what, mac, ttl=255)

    many = "33:33:ff:00:00:01"
    for ours in (net.wan, net.vip, extra(net)):
        verdict, sent = rig.receive("wan", message(nd_ns(ours, CLIENT_MAC), "ff02::1:ff00:1", many))
        assert (verdict, [each.port for each in sent]) == (Verdict.STOLEN, ["wan"])
    assert "HOST_IN" not in rig.counters()
    passed(rig, "wan", message(nd_ns(floating(net), CLIENT_MAC), "ff02::1:ff00:88", many))
    passed(rig, "wan", message(nd_na(net.client, CLIENT_MAC), net.wan, WAN_MAC))
    # To the host's link-local address, and about it.
    passed(rig, "wan", message(nd_ns("fe80::1", CLIENT_MAC), "fe80::1", WAN_MAC))
    passed(rig, "wan", to(net, "fe80::1", segment(1, 179, flags="S"), saddr="fe80::2"))
    dropped(rig, "wan", message(nd_na(net.wan, CLIENT_MAC), "ff02::1", many), "ND_INVALID")


def test_an_answer_that_we_asked_for_teaches_us_and_the_host() -> None:
    net = V4
    rig = Rig(
        text(
            *(line for line in lines(net) if line.get("addr") != net.client),
            service(net, mode="nat"),
            dest(net, mode="nat"),
        )
    )
    (asked,) = rig.send("lan", [PLAIN + eth(LAN_MAC, CLIENT_MAC, payload=packet(
        net.dest, net.client, udp(1, 2, b"x")))])  # fmt: skip
    assert asked.port == "wan"
    answer = PLAIN + arp(2, CLIENT_MAC, net.client, WAN_MAC, net.wan)
    sent = rig.receive("wan", answer)[1]
    assert [each.port for each in sent] == [HOST, "wan"]
    check(sent[1].frame, ether(dst=CLIENT_MAC), ip(daddr=net.client))


# -- LOCAL


def local_rig(net: Net, proto: str = "tcp", **keys: Any) -> Rig:
    return Rig(text(*lines(net), service(net, proto, "local"), local_dest(net, **keys)))


def to_host(rig: Rig, net: Net, payload: Any, ttl: int = 64, **offload: Any) -> bytes:
    """A packet of a conn of the host's: unchanged but for the TTL and the Ethernet header."""
    raw = eth(WAN_MAC, ROUTER_MAC, payload=packet(net.remote, net.vip, payload, ttl=ttl))
    raw = vnet(raw, **offload)
    sent = one(rig.receive("wan", raw))
    assert sent.port == HOST
    addresses = ip(saddr=net.remote, daddr=net.vip, ttl=ttl - 1)
    check(sent.frame, ether(dst=WAN_MAC, src=WAN_MAC), addresses)
    was, now = raw[24:], sent.frame[24:]
    skip = {8, 10, 11} if net.af == 4 else {7}
    assert [a for i, a in enumerate(was) if i not in skip] == [
        b for i, b in enumerate(now) if i not in skip
    ]
    return sent.frame


def test_a_local_conn(net: Net) -> None:
    rig = local_rig(net)
    to_host(rig, net, segment(40000, 80, flags="S", mss=1460))
    to_host(rig, net, segment(40000, 80, b"GET /", flags="PA"))
    assert states(rig) == ["ESTABLISHED"]
    assert the_dest(rig).actconns == 1
    kind = GSO_TCPV4 if net.af == 4 else GSO_TCPV6
    data = segment(40000, 80, bytes(30000))
    to_host(rig, net, data, needs_csum=True, gso_type=kind, gso_size=1400)
    found = rig.counters()
    assert {name: found.pop(name) for name in ("CONN_NEW", "IPVS_IN_PACKETS")} == {
        "CONN_NEW": 1,
        "IPVS_IN_PACKETS": 3,
    }
    assert list(found) == ["IPVS_IN_BYTES"]


def test_local_udp(net: Net) -> None:
    rig = local_rig(net, "udp")
    to_host(rig, net, udp(40000, 80, b"q"))
    assert rig.counters()["CONN_NEW"] == 1


def test_an_icmp_error_about_the_hosts_answer(net: Net) -> None:
    """Packet too big, for path MTU discovery: it quotes a packet that the host sent."""
    rig = local_rig(net)
    to_host(rig, net, segment(40000, 80, flags="S"))
    to_host(rig, net, segment(40000, 80))
    quoted = packet(net.vip, net.remote, segment(80, 40000, bytes(1400)))[:200]
    kind, code = (2, 0) if net.af == 6 else (3, 4)
    error = icmp(kind, code, 1300, quoted)
    raw = eth(WAN_MAC, ROUTER_MAC, payload=packet(net.router, net.vip, error))
    sent = one(rig.receive("wan", PLAIN + raw))
    assert sent.port == HOST
    check(sent.frame, ip(saddr=net.router, daddr=net.vip, ttl=63))
    assert rig.counters()["ICMP_RELATED"] == 1


def test_local_beside_fnat(net: Net) -> None:
    rig = beside(net, local_dest(net))
    conn = Conn(rig, net)
    conn.establish()
    syn = packet(net.remote, net.vip, segment(40001, 80, flags="S"))
    sent = one(rig.receive("wan", PLAIN + eth(WAN_MAC, ROUTER_MAC, payload=syn)))
    assert sent.port == HOST
    check(sent.frame, tcp(sport=40001, dport=80), ip(saddr=net.remote, daddr=net.vip))
    conn.up("A", b"more")
    assert rig.counters() == counted(conn, CONN_NEW=1, IPVS_IN_PACKETS=1, IPVS_IN_BYTES=len(syn))
    # What no service takes on the VIP is now the host's.
    passed(rig, "wan", to(net, net.vip, segment(40000, 22, flags="S")))


def test_a_local_dest_by_the_ports_address(net: Net) -> None:
    rig = local_rig(net, daddr=net.wan)
    to_host(rig, net, segment(40000, 80, flags="S"))


def test_a_reload_and_a_successor(net: Net) -> None:
    memory = Memory()
    here = text(*lines(net), service(net, "tcp", "local"), local_dest(net))
    rig = Rig(here, memory=memory)
    to_host(rig, net, segment(40000, 80, flags="S"))
    to_host(rig, net, segment(40000, 80))
    # Without the dest its conns drain to the host; the VIP's other ports are no more the host's.
    rig.reload(text(*lines(net), service(net, "tcp"), dest(net)))
    to_host(rig, net, segment(40000, 80, b"draining"))
    assert one(rig.receive("wan", to(net, net.vip, echo(1, 1, v6=net.af == 6)))).port == "wan"
    rig.reload(here)
    to_host(rig, net, segment(40000, 80, b"again"))
    other = Rig(here, memory=memory.copy())
    assert other.director.adopt(other.now).kept == 1
    to_host(other, net, segment(40000, 80, b"adopted"))
    assert states(other) == ["ESTABLISHED"]


def test_static_neighbours_that_change_leave_the_host(net: Net) -> None:
    rig = local_rig(net)
    to_host(rig, net, segment(40000, 80, flags="S"))
    more = neigh("wan", floating(net), STRANGER)
    rig.reload(text(*lines(net), more, service(net, "tcp", "local"), local_dest(net)))
    to_host(rig, net, segment(40000, 80))


# -- workers


@pytest.mark.parametrize("row", ROWS)
def test_with_two_workers_it_is_passed_once(net: Net, row: str) -> None:
    for reader in (0, 1):
        workers = Workers(config(net), 2)
        sent = workers.receive(reader, "wan", ROWS[row](net))
        assert [each.port for each in sent] == [HOST]
        assert sent[0].frame[10:] == ROWS[row](net)[10:]
        assert workers.counters()["HOST_IN"] == 1


def test_an_arp_answer_that_another_worker_read() -> None:
    workers = Workers(config(V4), 2)
    answer = PLAIN + arp(2, CLIENT_MAC, V4.client, WAN_MAC, V4.wan)
    sent = workers.receive(1, "wan", answer)
    assert [(each.port, each.frame) for each in sent] == [(HOST, answer)]
