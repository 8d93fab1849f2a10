"""Lines against each other. A row: the lines, and every problem that they have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunlb.conf import ConfigError, loads

Line = dict[str, Any]


def port(name: str = "lb0", *addresses: str, **keys: Any) -> Line:
    return {"kind": "port", "name": name, "addresses": list(addresses), **keys}


def service(name: str = "web", vaddr: str = "10.0.0.100", vport: object = 80, **keys: Any) -> Line:
    modes: Line = {} if "fwdmode" in keys or "laddrs" in keys else {"laddrs": ["10.0.0.200"]}
    base = {"kind": "service", "name": name, "proto": "tcp", "vaddr": vaddr, "vport": vport}
    return {**base, **modes, **keys}


def dest(daddr: str = "10.0.0.11", name: str = "web", **keys: Any) -> Line:
    return {"kind": "dest", "service": name, "daddr": daddr, **keys}


def route(**keys: Any) -> Line:
    return {"kind": "route", "port": "lb0", **keys}


def neigh(addr: str, name: str = "lb0") -> Line:
    return {"kind": "neigh", "port": name, "addr": addr, "mac": "02:00:00:00:00:01"}


def hook(**keys: Any) -> Line:
    return {"kind": "hook", "point": "forward", "call": "m:C", **keys}


LB0 = port("lb0", "10.0.0.254/24", "fd00::fe/64")
TUN = port("lb0", "10.0.0.254/24", type="tun")
V6: Line = {"vaddr": "fd00::100", "laddrs": ["fd00::200"]}

GOOD: dict[str, list[Line]] = {
    "exact and any port": [LB0, service(), service("rest", vport=0), dest()],
    "ranges that touch": [
        LB0,
        service(vport="1-79"),
        service("b", vport=80),
        service("c", vport="81-90"),
    ],
    "one port, two protos": [LB0, service(), service("dns", proto="udp")],
    "laddrs shared by services": [LB0, service(), service("b", vport=81)],
    "a vaddr that is a port's address": [LB0, service(vaddr="10.0.0.254")],
    "v6": [LB0, service(**V6), dest("fd00::11")],
    "any port maps to one dport": [LB0, service(vport=0), dest(dport=80)],
    "dr with the vport written out": [LB0, service(fwdmode="dr"), dest(dport=80)],
    "dr for one dest": [LB0, service(), dest(fwdmode="dr"), dest("10.0.0.12")],
    "behind a gateway": [LB0, route(via="10.0.0.1"), service(), dest("192.0.2.1")],
    "an on-link route": [LB0, route(dst="192.0.2.0/24"), service(fwdmode="dr"), dest("192.0.2.1")],
    "a gateway on an on-link route": [
        LB0,
        route(via="192.0.2.1"),
        route(dst="192.0.2.0/24"),
        neigh("192.0.2.1"),
    ],
    "a link-local gateway": [LB0, route(dst="::/0", via="fe80::1"), neigh("fe80::1")],
    "link-local on two ports": [port("a", "fe80::1/64"), port("b", "fe80::2/64")],
    "nested subnets": [LB0, port("b", "10.0.0.129/25")],
    "a tun takes what no subnet holds": [
        port("lb0", type="tun"),
        route(),
        service(vaddr="192.0.2.1", laddrs=["192.0.2.8-192.0.2.15"]),
        dest(),
    ],
    "a laddr range over two subnets": [
        port("a", "10.0.0.1/31"),
        port("b", "10.0.0.3/31"),
        service(vaddr="10.0.0.0", laddrs=["10.0.0.2"]),
    ],
    "a VLAN's route and owner": [
        port("lb0", vlans=[{"id": 20, "addresses": ["10.0.0.254/24"]}]),
        route(port="lb0.20", via="10.0.0.1"),
        neigh("10.0.0.1", "lb0.20"),
        service(),
        dest("192.0.2.1"),
    ],
    "a dest on the kernel side": [
        port("lb0", "10.0.0.254/24", host_addresses=["10.0.0.1/24"]),
        service(),
        dest("10.0.0.1"),
    ],
    "one call at two points": [LB0, hook(), hook(point="local_in")],
}


@pytest.mark.parametrize("lines", GOOD.values(), ids=GOOD)
def test_good(lines: list[Line]) -> None:
    assert loads("\n".join(map(json.dumps, lines)))


# the lines -> for each problem: its line, its path, and words of its text
BAD: dict[str, tuple[list[Line], list[tuple[int, str, str]]]] = {
    "two tunlb lines": (
        [{"kind": "tunlb"}, LB0, {"kind": "tunlb"}],
        [(3, "$.kind", 'a "tunlb" line is already on line 1')],
    ),
    "two timeouts lines, one broken": (
        [{"kind": "timeouts", "profile": "x"}, LB0, {"kind": "timeouts"}],
        [(1, "$.profile", "is not known"), (3, "$.kind", 'a "timeouts" line is already on line 1')],
    ),
    "two ports": ([LB0, port("lb0")], [(2, "$.name", 'port "lb0" is already on line 1')]),
    "two services": (
        [LB0, service(), service(vport=81)],
        [(3, "$.name", 'service "web" is already on line 2')],
    ),
    "two hooks": ([LB0, hook(), hook(priority=7)], [(3, "$.call", "already on line 2")]),
    "one vport twice": (
        [LB0, service(), service("b")],
        [(3, "$.vport", 'tcp 10.0.0.100 port 80 is already service "web" (line 2)')],
    ),
    "any port twice": (
        [LB0, service(vport=0), service("b", vport=0)],
        [(3, "$.vport", "port 0 is already")],
    ),
    "overlap, told on the later line": (
        [LB0, service(vport="90-99"), service("b", vport="1-95")],
        [(3, "$.vport", 'port 1-95 overlaps service "web" (line 2), port 90-99')],
    ),
    "a port inside a long range": (
        [LB0, service(vport="1-99"), service("b", vport="200-299"), service("c", vport=50)],
        [(4, "$.vport", 'overlaps service "web"')],
    ),
    "one dest twice": (
        [LB0, service(), dest(), dest(dport=80, weight=9)],
        [(4, "$.daddr", 'this dest of service "web" is already on line 3')],
    ),
    "one route twice": (
        [LB0, route(via="10.0.0.1"), route(via="10.0.0.2")],
        [(3, "$.dst", "a route to 0.0.0.0/0 is already on line 2")],
    ),
    "one neigh twice": (
        [LB0, neigh("10.0.0.1"), neigh("10.0.0.1")],
        [(3, "$.addr", "already on line 2")],
    ),
    "dangling service": (
        [LB0, service(), dest(name="wep")],
        [(3, "$.service", 'no service is named "wep" (hint: did you mean "web"?)')],
    ),
    "dangling ports": (
        [LB0, route(port="lb1"), neigh("10.0.0.1", "eth7"), route(dst="::/0", port="lb0.5")],
        [
            (2, "$.port", 'no port is named "lb1" (hint: did you mean "lb0"?)'),
            (3, "$.port", "the ports are lb0"),
            (4, "$.port", 'no port is named "lb0.5"'),
        ],
    ),
    "fnat without laddrs": (
        [
            LB0,
            service(laddrs=[]),
            service("b", vport=81, fwdmode="nat"),
            dest(name="b", fwdmode="fnat"),
        ],
        [(2, "$.laddrs", "missing"), (4, "$.fwdmode", 'service "b" has no laddrs')],
    ),
    "families": (
        [LB0, service(laddrs=["fd00::200"]), dest("fd00::11")],
        [(2, "$.laddrs[0]", "NAT64"), (3, "$.daddr", "NAT64 is not supported yet")],
    ),
    "a laddr that is something else": (
        [
            port("lb0", "10.0.0.254/24", host_addresses=["10.0.0.1/24"]),
            service(laddrs=["10.0.0.99-10.0.0.101", "10.0.0.254", "10.0.0.1"]),
        ],
        [
            (2, "$.laddrs[0]", "10.0.0.100 is the vaddr of service"),
            (2, "$.laddrs[1]", '10.0.0.254 is the address of port "lb0" (line 1)'),
            (2, "$.laddrs[2]", '10.0.0.1 is the host address of port "lb0" (line 1)'),
        ],
    ),
    "a laddr twice": (
        [LB0, service(laddrs=["10.0.0.200-10.0.0.209", "10.0.0.205"])],
        [(2, "$.laddrs[1]", 'is already in this list, in "10.0.0.200-10.0.0.209"')],
    ),
    "too many laddrs": (
        [port("lb0", "10.0.0.254/16"), service(laddrs=["10.0.1.0-10.0.4.255", "10.0.5.0"])],
        [(2, "$.laddrs", "1025 local addresses, more than 1024")],
    ),
    "a vaddr on the kernel side": (
        [port("lb0", "10.0.0.254/24", host_addresses=["10.0.0.100/24"]), service()],
        [(2, "$.vaddr", "is the host address of port")],
    ),
    "a daddr that is something else": (
        [LB0, service(), dest("10.0.0.100"), dest("10.0.0.254"), dest("10.0.0.200")],
        [
            (3, "$.daddr", "10.0.0.100 is the vaddr of service"),
            (4, "$.daddr", "10.0.0.254 is the address of port"),
            (5, "$.daddr", "10.0.0.200 is a local address of service"),
        ],
    ),
    "nobody owns it": (
        [
            port("lb0", "10.0.0.1/24"),
            service(vaddr="192.0.2.1", laddrs=["10.0.0.200", "10.0.0.250-10.0.1.3", "192.0.2.2"]),
        ],
        [
            (2, "$.vaddr", "no port's subnet holds 192.0.2.1"),
            (2, "$.laddrs[1]", "10.0.0.255 is the broadcast address of 10.0.0.0/24"),
            (2, "$.laddrs[2]", "no port's subnet holds 192.0.2.2"),
        ],
    ),
    "not a host's address": (
        [LB0, service(vaddr="10.0.0.255", laddrs=["10.0.0.0-10.0.0.3"])],
        [
            (2, "$.vaddr", "10.0.0.255 is the broadcast address of 10.0.0.0/24"),
            (2, "$.laddrs[0]", "10.0.0.0 is the network address"),
        ],
    ),
    "nobody reaches it": (
        [LB0, service(), dest("192.0.2.1"), service("six", **V6), dest("fd01::1", "six")],
        [
            (
                3,
                "$.daddr",
                'add a route, e.g. {"kind": "route", "dst": "0.0.0.0/0", "port": "lb0"}',
            ),
            (5, "$.daddr", '"dst": "::/0"'),
        ],
    ),
    "dr maps no ports": (
        [LB0, service(fwdmode="dr", vport=0), dest(dport=81)],
        [(3, "$.dport", "81 is not the vport (0), and dr cannot map ports")],
    ),
    "dr on a tun": (
        [TUN, service(fwdmode="nat"), dest(fwdmode="dr")],
        [(3, "$.daddr", "dr on a tun loops by definition")],
    ),
    "dr behind a gateway": (
        [LB0, route(via="10.0.0.1"), service(fwdmode="dr"), dest("192.0.2.1")],
        [(4, "$.daddr", "dr cannot reach 192.0.2.1 by a gateway")],
    ),
    "Ethernet on a tun": (
        [
            port("lb0", type="tun", mac="02:00:00:00:00:01", bridge="b", vlans=[{"id": 1}]),
            route(via="10.0.0.1"),
            neigh("10.0.0.1"),
        ],
        [
            (1, "$.mac", "is a tun: it has no Ethernet"),
            (1, "$.bridge", "is a tun"),
            (1, "$.vlans", "is a tun"),
            (2, "$.via", "is a tun: it has no gateways"),
            (3, "$.port", "is a tun: it has no neighbours"),
        ],
    ),
    "gateways": (
        [
            LB0,
            route(via="192.0.2.1"),
            route(dst="::/0", via="10.0.0.1"),
            route(dst="192.0.2.0/24", via="10.0.0.254"),
            neigh("192.0.9.1"),
            neigh("10.0.0.254"),
        ],
        [
            (2, "$.via", '192.0.2.1 is not on link of port "lb0"'),
            (3, "$.via", "the families differ"),
            (4, "$.via", "10.0.0.254 is the address of port"),
            (5, "$.addr", "192.0.9.1 is not on link"),
            (6, "$.addr", "10.0.0.254 is the address of port"),
        ],
    ),
    "addresses twice": (
        [LB0, port("b", "10.0.0.254/8", host_addresses=["10.0.0.254/24"])],
        [
            (2, "$.addresses[0]", 'is already the address of port "lb0" (line 1)'),
            (2, "$.host_addresses[0]", "is already the address of port"),
        ],
    ),
    "a subnet on two ports": (
        [LB0, port("b", vlans=[{"id": 3, "addresses": ["10.0.0.1/24"]}])],
        [(2, "$.vlans[0].addresses[0]", '10.0.0.0/24 is already the subnet of port "lb0"')],
    ),
    "VLANs of one name": (
        [port("a.5"), port("a", vlans=[{"id": 5}, {"id": 6}, {"id": 6}]), port("a.6")],
        [
            (2, "$.vlans[0].id", 'its name "a.5" is already a port\'s'),
            (2, "$.vlans[2].id", "VLAN 6 is already in this list"),
            (3, "$.name", '"a.6" is already the name of a VLAN of port "a"'),
        ],
    ),
    "an MTU too small for IPv6": (
        [port("lb0", "fd00::1/64", mtu=1279)],
        [(1, "$.mtu", "1279 is too small for the IPv6 address fd00::1")],
    ),
    "one mistake is one problem: a broken service": (
        [LB0, service(scheduler="x"), dest()],
        [(2, "$.scheduler", "is not known")],
    ),
    "one mistake is one problem: a broken port": (
        [port("lb0", "10.0.0.254"), route(via="10.0.0.1"), service(), dest("192.0.2.1")],
        [(1, "$.addresses[0]", "has no prefix length")],
    ),
    "one mistake is one problem: a broken route": (
        [LB0, route(dst="10.0.0.1/8"), service(), dest("10.9.9.9")],
        [(2, "$.dst", "has host bits set")],
    ),
    "one mistake is one problem: a line of no kind": (
        [{"kind": "prot", "name": "lb0"}, route(), service(), dest(), dest(name="b")],
        [(1, "$.kind", "is not a kind")],
    ),
}


@pytest.mark.parametrize(("lines", "expected"), BAD.values(), ids=BAD)
def test_bad(lines: list[Line], expected: list[tuple[int, str, str]]) -> None:
    with pytest.raises(ConfigError) as caught:
        loads("\n".join(map(json.dumps, lines)), "f")
    found = [(problem.line, problem.path, str(problem)) for problem in caught.value.problems]
    assert [item[:2] for item in found] == [item[:2] for item in expected], caught.value
    for (_, _, text), (_, _, words) in zip(found, expected, strict=True):
        assert words in text


def test_the_most_dests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted over all services; the problem is at the first line too many."""
    lines = [LB0, service(), dest(), dest("10.0.0.12"), service("b", vport=81), dest(name="b")]
    monkeypatch.setattr("tunlb.conf.balance.DEST_MAX", 3)
    text = "\n".join(map(json.dumps, lines))
    assert len(loads(text).services) == 2
    monkeypatch.setattr("tunlb.conf.balance.DEST_MAX", 2)
    with pytest.raises(ConfigError) as caught:
        loads(text, "f")
    (problem,) = caught.value.problems
    assert str(problem).startswith("f:6: 3 dests in all services together, more than 2 (hint: ")
