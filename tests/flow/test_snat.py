"""SNAT: inside hosts go out by shared addresses, and everything about them finds its way back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.fragmenting import cut
from tests.flow.kit import (
    DEST2_MAC,
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    WAN_MAC,
    Line,
    Net,
    Rig,
    dropped,
    network,
    one,
    port,
    text,
)
from tunlb.hook import Verdict
from tunlb.ipvs.life import RECYCLE_IDLE_MS
from tunlb.ipvs.xmit.snat import LADDRS_TRIED, PROBES, PROBES_MIN
from tunlb.testing.checkers import Matcher, check, ether, icmp, ip, quoted, tcp, udp
from tunlb.testing.flow import Memory
from tunlb.testing.frames import Transport, echo, eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.frames import udp as datagram
from tunlb.testing.parser import Frame, Icmp, Ip, Tcp, Udp

EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def outer(net: Net, number: int = 200) -> str:
    """A laddr in the subnet of the router."""
    return f"10.0.0.{number}" if net.af == 4 else f"fd00::{number}"


def inside(net: Net) -> str:
    return "10.1.0.0/24" if net.af == 4 else "fd01::/64"


def snat(net: Net, proto: str = "tcp", **keys: Any) -> Line:
    line: Line = {"kind": "service", "name": f"out-{proto}", "proto": proto, "fwdmode": "snat"}
    line |= {"match": {"src": [inside(net)]}, "laddrs": [outer(net)]}
    return line | keys


def config(net: Net, *lines: Line, **keys: Any) -> str:
    services = lines or tuple(snat(net, proto, **keys) for proto in ("tcp", "udp", "icmp"))
    return text(*network(net), *services)


def up(rig: Rig, net: Net, body: Transport, *, saddr: str = "", daddr: str = "", ttl: int = 64):
    """From an inside host to somebody outside."""
    host = saddr or net.dest
    mac = DEST2_MAC if host == net.dest2 else DEST_MAC
    raw = packet(host, daddr or net.remote, body, ttl=ttl)
    return rig.receive("lan", vnet(eth(LAN_MAC, mac, payload=raw)))


def down(rig: Rig, net: Net, body: Transport, *, saddr: str = "", laddr: str = ""):
    raw = packet(saddr or net.remote, laddr or outer(net), body)
    return rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))


def left(net: Net, result: Any, *matchers: Matcher, laddr: str = "") -> Frame:
    """What went out, from our shared address."""
    sent = one(result)
    assert sent.port == "wan"
    return check(
        sent.frame,
        ether(src=WAN_MAC, dst=ROUTER_MAC),
        ip(saddr=laddr or outer(net), ttl=63),
        *matchers,
    )


def came(net: Net, result: Any, *matchers: Matcher, daddr: str = "", saddr: str = "") -> Frame:
    """What went in, to the host that it is for."""
    sent = one(result)
    assert sent.port == "lan"
    return check(
        sent.frame,
        ether(src=LAN_MAC, dst=DEST2_MAC if daddr == net.dest2 else DEST_MAC),
        ip(saddr=saddr or net.remote, daddr=daddr or net.dest, ttl=63),
        *matchers,
    )


def ident(frame: Frame) -> int:
    found = frame.find(Icmp)
    assert isinstance(found, Icmp)
    return found.info >> 16


def sport(frame: Frame) -> int:
    found = frame.find(Tcp) or frame.find(Udp)
    assert isinstance(found, Tcp | Udp)
    return found.sport


def pong(net: Net, number: int, sequence: int = 1) -> Transport:
    return message(0 if net.af == 4 else 129, 0, number << 16 | sequence, b"ping")


def ping(net: Net, number: int, sequence: int = 1, **fields: Any) -> Transport:
    return message(8 if net.af == 4 else 128, 0, number << 16 | sequence, b"ping", **fields)


def test_tcp_out_and_back(net: Net) -> None:
    rig = Rig(config(net))
    seen = left(
        net,
        up(rig, net, segment(40000, 443, flags="S")),
        ip(daddr=net.remote),
        tcp(sport=40000, dport=443, flags="S"),
    )
    back = down(rig, net, segment(443, 40000, flags="SA"))
    came(net, back, tcp(sport=443, dport=40000, flags="SA"))
    left(net, up(rig, net, segment(40000, 443, b"hello", flags="PA")), tcp(sport=40000))
    header = 40 if net.af == 4 else 60
    assert len(seen.data) == 10 + 14 + header
    assert rig.counters() == {
        "CONN_NEW": 1,
        "IPVS_IN_PACKETS": 2,
        "IPVS_IN_BYTES": 2 * header + 5,
        "IPVS_OUT_PACKETS": 1,
        "IPVS_OUT_BYTES": header,
    }


def test_udp_out_and_back(net: Net) -> None:
    rig = Rig(config(net))
    left(net, up(rig, net, datagram(5353, 53, b"q")), udp(sport=5353, dport=53))
    came(net, down(rig, net, datagram(53, 5353, b"a")), udp(sport=53, dport=5353))


def test_ping_out_and_back(net: Net) -> None:
    rig = Rig(config(net))
    left(net, up(rig, net, ping(net, 7777)), icmp(info=7777 << 16 | 1))
    came(net, down(rig, net, pong(net, 7777)), icmp(info=7777 << 16 | 1))
    size = 32 if net.af == 4 else 52
    assert rig.counters() == {
        "CONN_NEW": 1,
        "IPVS_IN_PACKETS": 1,
        "IPVS_IN_BYTES": size,
        "IPVS_OUT_PACKETS": 1,
        "IPVS_OUT_BYTES": size,
    }


@pytest.mark.parametrize("number", [0, 1, 1024, 1025, 4242, 65535])
def test_two_hosts_ping_one_address_with_one_identifier(net: Net, number: int) -> None:
    """The collision that DPVS has: here each answer finds the one who asked."""
    rig = Rig(config(net))
    hosts = (net.dest, net.dest2)
    outside = [ident(left(net, up(rig, net, ping(net, number), saddr=host))) for host in hosts]
    assert outside[0] != outside[1]
    for host, shown in zip(hosts, outside, strict=True):
        came(net, down(rig, net, pong(net, shown)), icmp(info=number << 16 | 1), daddr=host)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_two_hosts_have_one_port(net: Net, proto: str) -> None:
    rig = Rig(config(net))
    opening = segment(5000, 80, flags="S") if proto == "tcp" else datagram(5000, 80)
    hosts = (net.dest, net.dest2)
    ports = [sport(left(net, up(rig, net, opening, saddr=host))) for host in hosts]
    assert ports[0] == 5000 != ports[1] >= 1025
    header: Any = tcp if proto == "tcp" else udp
    for host, shown in zip(hosts, ports, strict=True):
        answer = segment(80, shown, flags="SA") if proto == "tcp" else datagram(80, shown)
        came(net, down(rig, net, answer), header(sport=80, dport=5000), daddr=host)


def test_one_lport_serves_many_remotes(net: Net) -> None:
    """Unique towards each remote endpoint only: no pool runs out."""
    rig = Rig(config(net))
    remotes = [f"198.51.100.{n}" if net.af == 4 else f"2001:db8::{n:x}" for n in range(1, 100)]
    for remote in remotes:
        left(net, up(rig, net, datagram(5000, 53), daddr=remote), udp(sport=5000))
    for remote in remotes:
        came(net, down(rig, net, datagram(53, 5000), saddr=remote), udp(dport=5000), saddr=remote)
    assert len(rig.director.ipvs.life.pools) == 0


def test_a_host_keeps_its_laddr(net: Net) -> None:
    rig = Rig(config(net, laddrs=[outer(net, n) for n in range(200, 208)]), conn_max=2048)
    used: dict[str, set[str]] = {}
    for host in range(20, 60):
        saddr = f"10.1.0.{host}" if net.af == 4 else f"fd01::{host:x}"
        for dport in range(80, 84):
            sent = one(up(rig, net, datagram(5000, dport), saddr=saddr))
            found = check(sent.frame).find(Ip)
            assert isinstance(found, Ip)
            used.setdefault(saddr, set()).add(found.saddr)
    assert {len(laddrs) for laddrs in used.values()} == {1}
    assert len({laddr for laddrs in used.values() for laddr in laddrs}) >= 5


def test_low_ports_are_not_kept(net: Net) -> None:
    """What is below 1025 means something outside."""
    rig = Rig(config(net))
    left(net, up(rig, net, segment(22, 443, flags="S")), tcp(sport=lambda port: port >= 1025))


def test_what_the_local_side_owns_is_not_translated(net: Net) -> None:
    """A VIP, our own address, a laddr, the host's side, and inside neighbours by another rule."""
    host = "10.1.0.99" if net.af == 4 else "fd01::99"
    lines = [
        port("wan", f"{net.wan}/{net.length}"),
        port("lan", f"{net.lan}/{net.length}", host_addresses=[f"{host}/{net.length}"]),
        *network(net)[2:],
        {"kind": "neigh", "port": "lan", "addr": host, "mac": DEST2_MAC},
        snat(net, "udp"),
        {"kind": "service", "name": "dns", "proto": "udp", "vaddr": net.vip, "vport": 53}
        | {"fwdmode": "nat", "scheduler": "rr"},
        {"kind": "dest", "service": "dns", "daddr": net.dest2},
    ]
    rig = Rig(text(*lines))
    sent = one(up(rig, net, datagram(5000, 53), daddr=net.vip))
    check(sent.frame, ip(saddr=net.dest, daddr=net.dest2))  # the VIP's service has it
    sent = one(up(rig, net, datagram(5000, 53), daddr=host))
    check(sent.frame, ip(saddr=net.dest, daddr=host))  # routed
    assert rig.counters()["FORWARDED"] == 1
    for daddr in (net.wan, net.lan, outer(net)):
        raw = packet(net.dest, daddr, datagram(5000, 99))
        verdict, _ = rig.receive("lan", vnet(eth(LAN_MAC, DEST_MAC, payload=raw)))
        assert verdict == Verdict.DROP
    assert rig.counters()["drop.PORT_UNREACHABLE"] == 3
    assert rig.counters()["CONN_NEW"] == 1


def test_groups_and_links_stay(net: Net) -> None:
    rig = Rig(config(net, match={"dst": [EVERYWHERE[net.af]]}))
    for daddr in ("10.0.0.255", "169.254.1.1") if net.af == 4 else ("fe80::9",):
        raw = packet(net.dest, daddr, datagram(5000, 53))
        dropped(rig, "lan", vnet(eth(LAN_MAC, DEST_MAC, payload=raw)), "NOT_FORWARDED")


MATCHES: dict[str, tuple[dict[str, Any], bool]] = {
    "src": ({"src": ["inside"]}, True),
    "another src": ({"src": ["elsewhere"]}, False),
    "one of two": ({"src": ["elsewhere", "inside"]}, True),
    "dst": ({"dst": ["remote"]}, True),
    "another dst": ({"dst": ["inside"]}, False),
    "dport": ({"dport": 53, "src": ["inside"]}, True),
    "dports": ({"dport": "50-60", "src": ["inside"]}, True),
    "another dport": ({"dport": "54-60", "src": ["inside"]}, False),
    "sport": ({"sport": "5000-5001", "src": ["inside"]}, True),
    "another sport": ({"sport": 4999, "src": ["inside"]}, False),
    "iport": ({"iport": "lan"}, True),
    "another iport": ({"iport": "wan"}, False),
    "oport": ({"oport": "wan"}, True),
    "another oport": ({"oport": "lan"}, False),
    "all": ({"iport": "lan", "oport": "wan", "src": ["inside"], "dst": ["remote"]}, True),
    "all but one": ({"iport": "lan", "oport": "wan", "src": ["inside"], "dst": ["inside"]}, False),
}


@pytest.mark.parametrize(("match", "taken"), MATCHES.values(), ids=MATCHES)
def test_matches(net: Net, match: dict[str, Any], taken: bool) -> None:
    prefixes = {
        "inside": inside(net),
        "elsewhere": "10.9.0.0/16" if net.af == 4 else "fd09::/16",
        "remote": "198.51.100.0/24" if net.af == 4 else "2001:db8::/32",
    }
    written = {
        key: [prefixes[name] for name in value] if isinstance(value, list) else value
        for key, value in match.items()
    }
    rig = Rig(config(net, snat(net, "udp", match=written)))
    seen = check(one(up(rig, net, datagram(5000, 53))).frame, ip(daddr=net.remote))
    found = seen.find(Ip)
    assert isinstance(found, Ip)
    assert found.saddr == (outer(net) if taken else net.dest)
    assert rig.counters().get("FORWARDED", 0) == (not taken)


def test_the_first_match_has_it(net: Net) -> None:
    narrow = snat(net, "udp", name="dns", match={"dport": 53, "src": [inside(net)]})
    wide = snat(net, "udp", name="rest", laddrs=[outer(net, 201)])
    rig = Rig(config(net, narrow, wide))
    left(net, up(rig, net, datagram(5000, 53)))
    left(net, up(rig, net, datagram(5000, 54)), laddr=outer(net, 201))
    rig = Rig(config(net, wide, narrow))
    left(net, up(rig, net, datagram(5000, 53)), laddr=outer(net, 201))


def test_only_a_syn_opens(net: Net) -> None:
    rig = Rig(config(net))
    raw = packet(net.dest, net.remote, segment(5000, 80, flags="A"))
    dropped(rig, "lan", vnet(eth(LAN_MAC, DEST_MAC, payload=raw)), "TCP_NOT_SYN")
    raw = packet(net.dest, net.remote, pong(net, 9))
    dropped(rig, "lan", vnet(eth(LAN_MAC, DEST_MAC, payload=raw)), "ECHO_UNKNOWN")


def test_nobody_comes_in_unasked(net: Net) -> None:
    rig = Rig(config(net))
    left(net, up(rig, net, datagram(5000, 53)))
    other = "203.0.113.1" if net.af == 4 else "2001:db8:1::1"
    verdict, _ = down(rig, net, datagram(53, 5000), saddr=other)
    assert verdict == Verdict.DROP
    verdict, _ = down(rig, net, datagram(54, 5000))
    assert verdict == Verdict.DROP
    assert rig.counters()["drop.PORT_UNREACHABLE"] == 2


def test_ttl_and_mtu_are_told_to_the_inside_host(net: Net) -> None:
    rig = Rig(config(net))
    verdict, sent = up(rig, net, datagram(5000, 53), ttl=1)
    assert verdict == Verdict.DROP
    check(
        sent[0].frame,
        ip(saddr=net.lan, daddr=net.dest),
        quoted(ip(saddr=net.dest, daddr=net.remote), udp(sport=5000)),
    )
    assert rig.counters()["drop.TTL_EXCEEDED"] == 1
    assert rig.director.ipvs.conns.count == 0


ERRORS: dict[str, dict[int, tuple[int, int, int]]] = {
    "too-big": {4: (3, 4, 1280), 6: (2, 0, 1280)},
    "time-exceeded": {4: (11, 0, 0), 6: (3, 0, 0)},
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_an_error_from_a_router_on_the_way(net: Net, proto: str, kind: str) -> None:
    """Path MTU and traceroute: the host hears of the packet it sent, from the router itself."""
    rig = Rig(config(net))
    bodies = {"tcp": segment(900, 80, flags="S"), "udp": datagram(900, 53), "icmp": ping(net, 900)}
    about = left(net, up(rig, net, bodies[proto])).data[24:]
    before = rig.counters()
    number, code, info = ERRORS[kind][net.af]
    hop = "203.0.113.77" if net.af == 4 else "2001:db8:77::1"
    result = down(rig, net, message(number, code, info, about), saddr=hop)
    inner: dict[str, Matcher] = {
        "tcp": tcp(sport=900, dport=80),
        "udp": udp(sport=900, dport=53),
        "icmp": icmp(info=900 << 16 | 1),
    }
    seen = quoted(ip(saddr=net.dest, daddr=net.remote), inner[proto])
    came(net, result, icmp(type=number, code=code, info=info), seen, saddr=hop)
    assert rig.counters() == before | {"ICMP_RELATED": 1}


@pytest.mark.parametrize("proto", ["udp", "icmp"])
def test_an_error_of_the_inside_host(net: Net, proto: str) -> None:
    """Nobody listens any more: the remote hears it from the laddr, about what it sent there."""
    rig = Rig(config(net))
    if proto == "udp":
        shown = left(net, up(rig, net, datagram(900, 53))).find(Udp)
        assert isinstance(shown, Udp)
        answer, inner = datagram(53, shown.sport, b"12345678"), udp(sport=53, dport=shown.sport)
    else:
        outside = ident(left(net, up(rig, net, ping(net, 900))))
        answer, inner = pong(net, outside), icmp(info=outside << 16 | 1)
    about = came(net, down(rig, net, answer)).data[24:]
    number, code = (3, 3) if net.af == 4 else (1, 4)
    result = up(rig, net, message(number, code, 0, about))
    left(
        net,
        result,
        icmp(type=number, code=code),
        quoted(ip(saddr=net.remote, daddr=outer(net)), inner),
    )


def test_wrong_checksums_stay_wrong(net: Net) -> None:
    rig = Rig(config(net))
    sent = one(up(rig, net, ping(net, 7, checksum=0x1234)))
    with pytest.raises(AssertionError, match="checksum"):
        check(sent.frame)


def test_a_successor_goes_on(net: Net) -> None:
    memory = Memory()
    rig = Rig(config(net), memory=memory)
    left(net, up(rig, net, segment(4000, 443, flags="S")))
    came(net, down(rig, net, segment(443, 4000, flags="SA")))
    left(net, up(rig, net, segment(4000, 443)))
    outside = ident(left(net, up(rig, net, ping(net, 5))))
    heir = Rig(config(net), memory=memory.copy(), now=rig.now)
    assert heir.director.adopt(heir.now) == (2, 0)
    came(net, down(heir, net, segment(443, 4000, flags="PA")), tcp(dport=4000))
    came(net, down(heir, net, pong(net, outside)), icmp(info=5 << 16 | 1))
    # What is taken is known to be: another host with the same port gets another one.
    seen = left(net, up(heir, net, segment(4000, 443, flags="S"), saddr=net.dest2)).find(Tcp)
    assert isinstance(seen, Tcp)
    assert seen.sport != 4000


def test_a_row_that_snat_cannot_have_made_is_not_adopted(net: Net) -> None:
    memory = Memory()
    rig = Rig(config(net), memory=memory)
    left(net, up(rig, net, datagram(4000, 53)))
    (row,) = rig.director.ipvs.conns.rows()
    words = memoryview(memory.conns)[4096:].cast("Q")
    words[row * 16 + 5] ^= 1  # it answers from elsewhere than it was sent to
    heir = Rig(config(net), memory=memory.copy(), now=rig.now)
    assert heir.director.adopt(heir.now) == (0, 1)


def test_a_row_of_a_laddr_that_is_not_ours_is_not_adopted(net: Net) -> None:
    """Of a snapshot of another machine, say: nobody would bring us the answers."""
    memory = Memory()
    rig = Rig(config(net), memory=memory)
    left(net, up(rig, net, datagram(4000, 53)))
    heir = Rig(config(net, laddrs=[outer(net, 201)]), memory=memory.copy(), now=rig.now)
    assert heir.director.adopt(heir.now) == (0, 1)


def test_every_lport_taken(net: Net) -> None:
    """Towards one endpoint: a closing conn gives way, and without one the new conn is refused, and
    its host told so.
    """
    rig = Rig(config(net), conn_max=128)
    mode: Any = rig.director.ipvs.life.modes[6]
    mode.first, mode.size = 2000, 4
    for host in range(20, 24):
        saddr = f"10.1.0.{host}" if net.af == 4 else f"fd01::{host:x}"
        left(net, up(rig, net, segment(80, 443, flags="S"), saddr=saddr))
        left(net, up(rig, net, segment(80, 443, flags="A"), saddr=saddr))
    verdict, sent = up(rig, net, segment(80, 443, flags="S"))
    assert verdict == Verdict.DROP
    kind, code = (3, 1) if net.af == 4 else (1, 3)
    told = quoted(ip(saddr=net.dest, daddr=net.remote), tcp(sport=80, dport=443))
    check(sent[0].frame, ip(saddr=net.lan, daddr=net.dest), icmp(type=kind, code=code), told)
    assert rig.counters()["drop.LPORT_EXHAUSTED"] == 1
    left(net, up(rig, net, segment(80, 444, flags="S")))  # another endpoint
    saddr = "10.1.0.20" if net.af == 4 else "fd01::14"
    left(net, up(rig, net, segment(80, 443, flags="R"), saddr=saddr))
    left(net, up(rig, net, segment(80, 443, flags="S")))
    assert rig.counters()["LPORT_RECYCLED"] == 1


@pytest.mark.parametrize("proto", ["udp", "icmp"])
def test_an_idle_flow_gives_its_lport(net: Net, proto: str) -> None:
    """What has no end of its own: unseen for half a minute is enough when ports are short."""
    rig = Rig(config(net), conn_max=128)
    mode: Any = rig.director.ipvs.life.modes[6]
    mode.first, mode.size = 2000, 4
    body: Transport = datagram(80, 53) if proto == "udp" else ping(net, 80)
    hosts = [f"10.1.0.{n}" if net.af == 4 else f"fd01::{n:x}" for n in range(20, 24)]
    for saddr in hosts:
        left(net, up(rig, net, body, saddr=saddr))
    rig.advance(RECYCLE_IDLE_MS - 1000)
    for saddr in hosts[1:]:
        left(net, up(rig, net, body, saddr=saddr))
    assert up(rig, net, body)[0] == Verdict.DROP
    rig.advance(2000)
    left(net, up(rig, net, body))
    assert rig.counters()["LPORT_RECYCLED"] == 1
    assert rig.counters()["drop.LPORT_EXHAUSTED"] == 1
    for saddr in hosts[1:]:
        left(net, up(rig, net, body, saddr=saddr))
    assert rig.counters()["CONN_NEW"] == 5


@pytest.mark.parametrize("number", [900, 4000])
def test_an_endpoint_looks_the_same_from_everywhere(net: Net, number: int) -> None:
    """RFC 4787 REQ-1, as far as nobody else was first: kept or not, the port is the same."""
    rig = Rig(config(net))
    remotes = [f"198.51.100.{n}" if net.af == 4 else f"2001:db8::{n:x}" for n in range(1, 20)]
    seen = {sport(left(net, up(rig, net, datagram(number, 53), daddr=to))) for to in remotes}
    assert len(seen) == 1
    assert (seen == {number}) == (number >= 1025)
    other = {
        sport(left(net, up(rig, net, datagram(number, 53), daddr=to, saddr=net.dest2)))
        for to in remotes
    }
    assert len(other) == 1
    assert not other & seen


def test_many_laddrs_that_are_full_cost_a_bounded_search(net: Net) -> None:
    """However many laddrs there are, a conn that gets none has asked for a few hundred ports."""
    rig = Rig(config(net, laddrs=[outer(net, n) for n in range(100, 200)]))
    mode: Any = rig.director.ipvs.life.modes[6]
    assert LADDRS_TRIED * PROBES_MIN + 2 * PROBES < 400
    mode.first, mode.size = 2000, 1
    hosts = [f"10.1.0.{n}" if net.af == 4 else f"fd01::{n:x}" for n in range(20, 150)]
    refused = sum(up(rig, net, datagram(80, 53), saddr=saddr)[0] == Verdict.DROP for saddr in hosts)
    kept = rig.director.ipvs.conns.count
    assert kept + refused == len(hosts)
    assert 16 < kept <= 100


def test_by_the_ports_own_address(net: Net) -> None:
    """The gateway with one address: it answers pings, and everything else of it is SNAT's."""
    rig = Rig(config(net, laddrs=[net.wan]))
    left(net, up(rig, net, segment(4000, 443, flags="S")), laddr=net.wan)
    back = down(rig, net, segment(443, 4000, flags="SA"), laddr=net.wan)
    came(net, back, tcp(sport=443, dport=4000))
    left(net, up(rig, net, ping(net, 5000)), icmp(info=5000 << 16 | 1), laddr=net.wan)
    came(net, down(rig, net, pong(net, 5000), laddr=net.wan), icmp(info=5000 << 16 | 1))
    answer = check(one(down(rig, net, ping(net, 5000), laddr=net.wan)).frame, ip(saddr=net.wan))
    assert ident(answer) == 5000
    verdict, _ = down(rig, net, segment(443, 4001, flags="S"), laddr=net.wan)
    assert verdict == Verdict.DROP
    assert rig.counters()["drop.PORT_UNREACHABLE"] == 1
    assert rig.counters()["ICMP_ECHO_REPLIES"] == 1


def test_a_reload_takes_a_laddr_away(net: Net) -> None:
    """Its conns go on for as long as it is answered for, and then end: no answer would come."""
    first, second = outer(net, 200), outer(net, 201)
    rig = Rig(config(net, laddrs=[first], drain_s=60))
    left(net, up(rig, net, datagram(4000, 53)))
    rig.reload(config(net, laddrs=[second], drain_s=60))
    left(net, up(rig, net, datagram(4001, 53)), laddr=second)
    rig.advance(50_000)
    came(net, down(rig, net, datagram(53, 4000), laddr=first))
    left(net, up(rig, net, datagram(4000, 53)))
    assert rig.director.ipvs.conns.count == 2
    rig.advance(25_000)
    assert rig.director.ipvs.conns.count == 1
    assert rig.counters()["CONN_ENDED"] == 1
    left(net, up(rig, net, datagram(4000, 53)), laddr=second)
    left(net, up(rig, net, datagram(4001, 53)), laddr=second)


def test_a_laddr_that_moves_to_another_service_takes_its_conns_along(net: Net) -> None:
    rig = Rig(config(net, snat(net, "udp", drain_s=1), snat(net, "tcp", laddrs=[outer(net, 201)])))
    left(net, up(rig, net, datagram(4000, 53)))
    rig.reload(config(net, snat(net, "udp", drain_s=1, laddrs=[outer(net, 201)]), snat(net, "tcp")))
    rig.advance(20_000)
    came(net, down(rig, net, datagram(53, 4000)))


def test_no_fragment_leaves_untranslated(net: Net) -> None:
    """One whose first opened no conn must not show the inside host's address outside."""
    rig = Rig(config(net), conn_max=128)
    mode: Any = rig.director.ipvs.life.modes[6]
    mode.first, mode.size = 2000, 1
    for saddr in (net.dest2, net.dest):
        pieces = cut(packet(saddr, net.remote, datagram(80, 53, bytes(2000))), size=1200)
        mac = DEST2_MAC if saddr == net.dest2 else DEST_MAC
        for piece in pieces:
            _, sent = rig.receive("lan", vnet(eth(LAN_MAC, mac, payload=piece)))
            for each in sent:
                if each.port == "wan":
                    check(each.frame, ip(saddr=outer(net)))
    assert rig.counters()["drop.LPORT_EXHAUSTED"] == 1
    assert rig.counters()["drop.FRAGMENT_ORPHAN"] == 1
    assert rig.counters().get("FORWARDED", 0) == 0


def test_a_reload_keeps_conns_and_takes_away_services(net: Net) -> None:
    rig = Rig(config(net))
    left(net, up(rig, net, datagram(4000, 53)))
    rig.reload(config(net, snat(net, "tcp")))
    came(net, down(rig, net, datagram(53, 4000)))
    left(net, up(rig, net, datagram(4000, 53)))
    # A new one is only routed now.
    check(one(up(rig, net, datagram(4001, 53))).frame, ip(saddr=net.dest, daddr=net.remote))


def test_offloaded_frames_pass_whole() -> None:
    rig = Rig(config(V4))
    left(V4, up(rig, V4, segment(4000, 443, flags="S")))
    raw = eth(
        LAN_MAC, DEST_MAC, payload=packet(V4.dest, V4.remote, segment(4000, 443, bytes(9000)))
    )
    frame = vnet(raw, needs_csum=True, gso_type=1, gso_size=1400)
    left(V4, rig.receive("lan", frame), tcp(sport=4000))


def test_an_echo_of_the_kit_is_what_the_wire_has() -> None:
    assert echo(5, 1).build(bytes(4), bytes(4)) == ping(V4, 5).build(bytes(4), bytes(4))


def test_conns_of_a_source_are_counted_wherever_they_go(net: Net) -> None:
    """A scan is as many conns as it has destinations; another service has its own count."""
    lines = [snat(net, proto, conn_rate=1, conn_burst=3) for proto in ("tcp", "udp")]
    rig = Rig(config(net, *lines))
    syn, ask = segment(40000, 80, flags="S"), datagram(40000, 53, b"?")
    for number in range(3):
        far = f"198.51.100.{50 + number}" if net.af == 4 else f"2001:db8::{50 + number}"
        left(net, up(rig, net, syn, daddr=far))
    assert up(rig, net, syn) == (Verdict.DROP, [])
    left(net, up(rig, net, ask))
    if net.af == 4:  # of IPv6, both hosts are one source
        left(net, up(rig, net, syn, saddr=net.dest2))
    assert rig.counters()["drop.CONN_RATE"] == 1
