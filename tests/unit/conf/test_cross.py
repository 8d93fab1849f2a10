"""Lines against each other. A row: the lines, and every problem that they have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunlb.conf import ACL_MAX, TC_MAX, ConfigError, loads

Line = dict[str, Any]


def port(name: str = "lb0", *addresses: str, **keys: Any) -> Line:
    return {"kind": "port", "name": name, "addresses": list(addresses), **keys}


def service(name: str = "web", vaddr: str = "10.0.0.100", vport: object = 80, **keys: Any) -> Line:
    modes: Line = {} if "fwdmode" in keys or "laddrs" in keys else {"laddrs": ["10.0.0.200"]}
    base = {"kind": "service", "name": name, "proto": "tcp", "vaddr": vaddr, "vport": vport}
    return {**base, **modes, **keys}


def ping(**keys: Any) -> Line:
    keys = {"fwdmode": "nat"} | keys
    return {"kind": "service", "name": "ping", "proto": "icmp", "vaddr": "10.0.0.100", **keys}


def passing(match: Line, **keys: Any) -> Line:
    return {"kind": "service", "name": "x", "proto": "tcp", "match": match, **keys}


def snat(match: Line, proto: str = "tcp", **keys: Any) -> Line:
    return passing(match, **{"proto": proto, "fwdmode": "snat", "laddrs": ["10.0.0.200"], **keys})


def dest(daddr: str = "10.0.0.11", name: str = "web", **keys: Any) -> Line:
    return {"kind": "dest", "service": name, "daddr": daddr, **keys}


def route(**keys: Any) -> Line:
    return {"kind": "route", "port": "lb0", **keys}


def neigh(addr: str, name: str = "lb0") -> Line:
    return {"kind": "neigh", "port": name, "addr": addr, "mac": "02:00:00:00:00:01"}


def hook(**keys: Any) -> Line:
    return {"kind": "hook", "point": "forward", "call": "m:C", **keys}


def acl(**keys: Any) -> Line:
    return {"kind": "acl", "action": "deny", "src": "192.0.2.0/24", **keys}


def tc(**keys: Any) -> Line:
    return {"kind": "tc", "port": "lb0", "rate": "10mbit", **keys}


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
    "v6 clients, v4 dests": [LB0, service(vaddr="fd00::100"), dest()],
    "v4 clients, v6 dests": [LB0, service(laddrs=["fd00::200"]), dest("fd00::11")],
    "dests of both families": [
        LB0,
        service(vaddr="fd00::100", laddrs=["fd00::200", "10.0.0.200-10.0.0.209"]),
        dest(),
        dest("fd00::11"),
    ],
    "laddrs for dests to come": [LB0, service(laddrs=["10.0.0.200", "fd00::200"]), dest()],
    "sctp beside tcp": [LB0, service(), service("s", proto="sctp"), dest(name="s")],
    "any port maps to one dport": [LB0, service(vport=0), dest(dport=80)],
    "dr with the vport written out": [LB0, service(fwdmode="dr"), dest(dport=80)],
    "a client's address by TOA and by PROXY": [
        LB0,
        service(client_ip="toa"),
        service("b", vport=81, fwdmode="nat", client_ip="proxy-v1"),
        service("c", proto="udp", client_ip="proxy-v2", client_ip_udp="every"),
        service("d", vport=82, client_ip="toa", client_ip_trust=["10.0.0.9", "192.0.2.0/24"]),
        service("e", vport=83, client_ip="proxy-v1", client_ip_trust=["0.0.0.0/0"], synproxy=True),
        dest(fwdmode="nat"),
    ],
    "dr for one dest": [LB0, service(), dest(fwdmode="dr"), dest("10.0.0.12")],
    "behind a gateway": [LB0, route(via="10.0.0.1"), service(), dest("192.0.2.1")],
    "an on-link route": [LB0, route(dst="192.0.2.0/24"), service(fwdmode="dr"), dest("192.0.2.1")],
    "a smaller MTU on link": [LB0, route(dst="10.0.0.0/24", mtu=1400)],
    "a router for a part of a subnet": [LB0, route(dst="10.0.0.128/25", via="10.0.0.1")],
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
    "a tunnel by a gateway": [
        LB0,
        route(via="10.0.0.1"),
        service(fwdmode="tunnel", tunnel={"type": "gue", "src": "10.0.0.254"}),
        dest("192.0.2.1", dport=80),
    ],
    "a tunnel on a tun": [TUN, route(), service(fwdmode="tunnel"), dest("192.0.2.1")],
    "a tunnel between families": [
        LB0,
        service(vaddr="fd00::100", fwdmode="tunnel"),
        dest(tunnel={"type": "gre", "csum": True}),
        dest("fd00::11"),
    ],
    "a tunnel for one dest, from a laddr": [
        LB0,
        service(tunnel={"src": "10.0.0.200"}),
        dest(),
        dest("10.0.0.12", fwdmode="tunnel"),
    ],
    "IPv6 that just fits a tunnel": [
        port("lb0", "fd00::fe/64", mtu=1320),
        service(vaddr="fd00::100", fwdmode="tunnel"),
        dest("fd00::11"),
    ],
    "pings of a VIP that has TCP as well": [LB0, service(), ping(), dest(), dest(name="ping")],
    "pings by dr": [LB0, ping(fwdmode="dr"), dest(name="ping")],
    "snat by source": [LB0, snat({"src": ["10.9.0.0/16"]})],
    "snat by ports of ours": [
        port("lb0", "10.0.0.254/24", vlans=[{"id": 5, "addresses": ["10.5.0.1/24"]}]),
        snat({"iport": "lb0.5", "oport": "lb0", "dport": "1-1023", "sport": 7}),
    ],
    "snat of one pool for three protocols": [
        LB0,
        *(snat({"dst": ["0.0.0.0/0"]}, proto, name=proto) for proto in ("tcp", "udp", "icmp")),
    ],
    "a cache, and past it": [
        LB0,
        passing({"dport": 80, "dst": ["0.0.0.0/0"]}, fwdmode="dr", bypass=True),
        dest(name="x"),
        dest("10.0.0.12", "x", fwdmode="nat", dport=3128),
    ],
    "snat by the port's own address": [LB0, snat({"dst": ["0.0.0.0/0"]}, laddrs=["10.0.0.254"])],
    "past everything": [LB0, passing({"src": ["fd09::/16"]}, fwdmode="bypass")],
    "one call at two points": [LB0, hook(), hook(point="local_in")],
    "one source on both lists, of one service and of all": [
        LB0,
        service(),
        acl(),
        acl(action="allow"),
        acl(service="web"),
        acl(src="192.0.2.0"),
    ],
    "a list of the other family, for all": [LB0, service(), acl(src="::/0")],
    "classes": [
        port("lb0", "10.0.0.254/24", vlans=[{"id": 7}]),
        service(),
        tc(),
        tc(service="web"),
        tc(service="web", port="lb0.7"),
        {"kind": "tc", "port": "lb0.7", "rate": 1000},
    ],
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
    "a list twice": (
        [LB0, service(), acl(service="web"), acl(service="web")],
        [(4, "$.src", "deny 192.0.2.0/24 is already on line 3")],
    ),
    "a list of no service": (
        [LB0, service(), acl(service="wbe")],
        [(3, "$.service", 'no service is named "wbe" (hint: did you mean "web"?)')],
    ),
    "a list of a service of the other family": (
        [LB0, service(), acl(service="web", src="::/0")],
        [(3, "$.src", "::/0 is IPv6, the vaddr of service")],
    ),
    "a list of a service with a match": (
        [
            LB0,
            passing({"src": ["192.0.2.0/24"]}, fwdmode="snat", laddrs=["10.0.0.200"]),
            acl(service="x"),
        ],
        [(3, "$.service", 'service "x" has a match, of which no list is asked')],
    ),
    "a source with host bits": (
        [LB0, acl(src="192.0.2.1/24")],
        [(2, "$.src", 'has host bits set (expected a prefix like "10.0.0.0/24"')],
    ),
    "a burst of no rate": (
        [LB0, service(conn_burst=5)],
        [(2, "$.conn_burst", 'a burst of no rate (hint: add "conn_rate")')],
    ),
    "two classes of one port": (
        [LB0, tc(), tc(priority=0)],
        [(3, "$.port", 'the port\'s own class on port "lb0" is already on line 2')],
    ),
    "two classes of one service": (
        [LB0, service(), tc(service="web"), tc(service="web")],
        [(4, "$.port", 'class "web" on port "lb0" is already on line 3')],
    ),
    "a class of no port": (
        [LB0, tc(port="lb")],
        [(2, "$.port", 'no port is named "lb" (hint: did you mean "lb0"?)')],
    ),
    "a class of no service": (
        [LB0, tc(service="x")],
        [(2, "$.service", 'no service is named "x"')],
    ),
    "a port's class without a rate": (
        [LB0, {"kind": "tc", "port": "lb0"}],
        [(2, "$.rate", "missing (hint: a line without a service is the rate of its whole port)")],
    ),
    "a rate of a unit that nobody knows": (
        [LB0, tc(rate="10mb")],
        [(2, "$.rate", '"10mb" is not a rate (expected bits a second 1000-1000000000000, or like')],
    ),
    "a rate of nothing": (
        [LB0, tc(rate=0)],
        [(2, "$.rate", "0 bits a second are out of range")],
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
    "families that only fnat joins": (
        [LB0, service(fwdmode="nat"), dest("fd00::11"), dest(), dest("fd00::12", fwdmode="dr")],
        [
            (3, "$.daddr", "only fnat translates between the families"),
            (5, "$.daddr", "only fnat translates between the families"),
        ],
    ),
    "no laddr of the dest's family": (
        [LB0, service(), dest("fd00::11"), dest()],
        [(3, "$.daddr", 'fd00::11 is IPv6, and service "web" has no such laddrs')],
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
    "a client's address where only one direction passes": (
        [LB0, service(fwdmode="dr", client_ip="toa"), dest()],
        [(2, "$.client_ip", 'client_ip "toa" does not go with fwdmode "dr"')],
    ),
    "a PROXY header that another director would not know of": (
        [LB0, service(fwdmode="nat", client_ip="proxy-v2", fallback=True, scheduler="mh")],
        [(2, "$.fallback", 'not with client_ip "proxy-v2"')],
    ),
    "a client's address for one dest that cannot have it": (
        [LB0, service(client_ip="proxy-v2"), dest(fwdmode="dr")],
        [(3, "$.fwdmode", 'client_ip "proxy-v2" does not go with fwdmode "dr"')],
    ),
    "a client's address in a TCP option of UDP": (
        [LB0, service(proto="udp", client_ip="toa")],
        [(2, "$.client_ip", '"toa" is not for udp (hint: use "proxy-v2")')],
    ),
    "a trusted client of the other family": (
        [LB0, service(client_ip="proxy-v2", client_ip_trust=["10.0.0.0/8", "::/0"])],
        [(2, "$.client_ip_trust[1]", "::/0 is IPv6, the service's clients are IPv4")],
    ),
    "trust in too many": (
        [LB0, service(client_ip="toa", client_ip_trust=["10.0.0.0/8"] * 65)],
        [(2, "$.client_ip_trust", "65 prefixes, more than 64")],
    ),
    "trust in what is passed anyway": (
        [LB0, service(client_ip_trust=["10.0.0.0/8"])],
        [(2, "$.client_ip_trust", "there is no client_ip that it could do instead")],
    ),
    "trust in an option that the SYN proxy has not got": (
        [LB0, service(client_ip="toa", synproxy=True, client_ip_trust=["10.0.0.0/8"])],
        [(2, "$.client_ip_trust", "not with toa and the SYN proxy")],
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
    "a tunnel maps no ports": (
        [LB0, service(fwdmode="tunnel"), dest(dport=81)],
        [(3, "$.dport", "81 is not the vport (80), and a tunnel cannot map ports")],
    ),
    "a tunnel without a source": (
        [port("lb0", "fd00::fe/64"), route(), service(fwdmode="tunnel", **V6), dest()],
        [(4, "$.daddr", "no port has an IPv4 address to send the outer packet from")],
    ),
    "a tunnel's source that is nobody's": (
        [
            LB0,
            service(fwdmode="tunnel", tunnel={"src": "10.0.0.9"}),
            dest(tunnel={"src": "10.0.0.8"}),
        ],
        [
            (2, "$.tunnel.src", "10.0.0.9 is not an address of a port of tunlb's"),
            (3, "$.tunnel.src", "10.0.0.8 is not an address of a port of tunlb's"),
        ],
    ),
    "a tunnel's source of the other family": (
        [
            LB0,
            service(fwdmode="tunnel", tunnel={"src": "10.0.0.254"}),
            dest("fd00::11"),
            dest("fd00::12", tunnel={"src": "10.0.0.254"}),
        ],
        [
            (3, "$.daddr", "its source 10.0.0.254 is IPv4, the dest is IPv6"),
            (4, "$.tunnel.src", "its source 10.0.0.254 is IPv4, the dest is IPv6"),
        ],
    ),
    "a tunnel that nobody goes through": (
        [LB0, service(tunnel={"type": "gre"}), dest(tunnel={"type": "gue"})],
        [
            (2, "$.tunnel", "no dest of this service is reached by a tunnel"),
            (3, "$.tunnel", "this dest is not reached by a tunnel"),
        ],
    ),
    "a tunnel too narrow for IPv6": (
        [
            port("lb0", "fd00::fe/64"),
            route(dst="fd07::/64", mtu=1319),
            service(vaddr="fd00::100", fwdmode="tunnel"),
            dest("fd07::11"),
        ],
        [(4, "$.daddr", "the MTU of 1319 towards it leaves less than 1280 in the tunnel")],
    ),
    "a tunnel by IPv4 too narrow for IPv6": (
        [
            port("lb0", "10.0.0.254/24", "fd00::fe/64"),
            route(dst="10.7.0.0/16", mtu=1299),
            service(vaddr="fd00::100", fwdmode="tunnel"),
            dest("10.7.0.11"),
        ],
        [(4, "$.daddr", "the MTU of 1299 towards it leaves less than 1280 in the tunnel")],
    ),
    "an MSS of UDP": (
        [LB0, service(proto="udp", mss_clamp=1200)],
        [(2, "$.mss_clamp", "udp has no MSS")],
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
    "backups": (
        [
            port("lb0", "10.0.0.254/24", backup_of="lb9"),
            port("lb1", "10.1.0.254/24", mtu=1400),
            port("lb2", "10.2.0.254/24", backup_of="lb1", vlans=[{"id": 1}]),
            port("lb3", backup_of="lb2", offload=False),
            port("lb4", backup_of="lb4"),
            port("tun0", type="tun"),
            port("lb5", backup_of="tun0"),
            route(port="lb3"),
        ],
        [
            (1, "$.backup_of", 'no port is named "lb9"'),
            (3, "$.addresses", 'a backup has those of "lb1"'),
            (3, "$.vlans", 'a backup has those of "lb1"'),
            (3, "$.mtu", 'differs from "lb1"'),
            (4, "$.backup_of", '"lb2" is a backup itself'),
            (4, "$.offload", 'differs from "lb2"'),
            (5, "$.backup_of", '"lb4" is a backup itself'),
            (7, "$.backup_of", '"tun0" is a tun'),
            (8, "$.port", '"lb3" is the backup of another port'),
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
    "a router instead of a subnet": (
        [
            LB0,
            route(dst="10.0.0.0/24", via="10.0.0.1"),
            service(fwdmode="dr"),
            dest("10.0.0.11"),
        ],
        [(2, "$.dst", '10.0.0.0/24 is the subnet of port "lb0"')],
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
    "neither a vaddr nor a match": (
        [LB0, {"kind": "service", "name": "web", "proto": "tcp"}, dest()],
        [
            (2, "$.vaddr", "missing (expected an address"),
            (2, "$.vport", "missing (expected a port"),
        ],
    ),
    "a vaddr beside a match": (
        [LB0, service(match={"dport": 80})],
        [
            (2, "$.vaddr", "beside a match"),
            (2, "$.vport", "beside a match"),
        ],
    ),
    "a fallback beside a match": (
        [LB0, passing({"src": ["10.9.0.0/16"]}, fwdmode="nat", scheduler="mh", fallback=True)],
        [(2, "$.fallback", "beside a match")],
    ),
    "a match of nothing": (
        [LB0, passing({})],
        [(2, "$.match", "says nothing"), (2, "$.match", "says not of which family")],
    ),
    "a match of both families": (
        [LB0, snat({"src": ["10.0.0.0/8", "fd00::/8"], "dst": ["::/0"]})],
        [
            (2, "$.match.src[1]", "fd00::/8 is IPv6, the first one is IPv4"),
            (2, "$.match.dst[0]", "::/0 is IPv6"),
        ],
    ),
    "ports that are not there": (
        [LB0, snat({"iport": "lb1", "oport": "lb00"})],
        [
            (2, "$.match.iport", 'no port is named "lb1" (hint: did you mean "lb0"?)'),
            (2, "$.match.oport", 'no port is named "lb00"'),
        ],
    ),
    "too many prefixes": (
        [LB0, snat({"src": [f"10.{n}.0.0/16" for n in range(65)]})],
        [(2, "$.match", "65 prefixes, more than 64")],
    ),
    "too many matches": (
        [
            LB0,
            *(passing({"src": ["10.0.0.0/8"]}, name=f"s{n}", fwdmode="bypass") for n in range(66)),
        ],
        [(66, "$.match", "more than 64 services with a match")],
    ),
    "snat without laddrs": (
        [LB0, snat({"dst": ["0.0.0.0/0"]}, laddrs=[])],
        [(2, "$.laddrs", "missing (hint: snat needs the addresses that inside hosts share")],
    ),
    "snat has no choice to make": (
        [LB0, snat({"dst": ["0.0.0.0/0"]}, scheduler="rr", bypass=True)],
        [(2, "$.scheduler", "snat chooses no dest"), (2, "$.bypass", "beside snat")],
    ),
    "snat by what is spoken from already": (
        [
            port("lb0", "10.0.0.254/24", host="h0", host_addresses=["10.0.0.1/24"]),
            service(laddrs=["10.0.0.201"]),
            snat(
                {"dst": ["0.0.0.0/0"]},
                laddrs=["10.0.0.254", "10.0.0.100", "10.0.0.1", "10.0.0.202"],
            ),
        ],
        [
            (3, "$.laddrs[0]", '10.0.0.254 is the address of port "lb0" (line 1)'),
            (3, "$.laddrs[1]", "10.0.0.100 is the vaddr of service"),
            (3, "$.laddrs[2]", '10.0.0.1 is the host address of port "lb0" (line 1)'),
        ],
    ),
    "one laddr of fnat and snat": (
        [
            LB0,
            service(laddrs=["10.0.0.201", "10.0.0.198-10.0.0.200"]),
            snat({"dst": ["0.0.0.0/0"]}),
        ],
        [(2, "$.laddrs[1]", 'inside hosts of service "x" (line 3) go out by it')],
    ),
    "snat to a vaddr": (
        [LB0, service(fwdmode="snat", laddrs=["10.0.0.200"])],
        [(2, "$.fwdmode", '"snat" is for what is not addressed to tunlb')],
    ),
    "bypass of a vaddr": (
        [LB0, service(bypass=True), service("b", vport=81, fwdmode="bypass")],
        [
            (2, "$.bypass", "the original destination is the vaddr"),
            (3, "$.fwdmode", '"bypass" is for what is not addressed to tunlb'),
        ],
    ),
    "dests where there are none": (
        [
            LB0,
            snat({"dst": ["0.0.0.0/0"]}),
            dest(name="x"),
            passing({"dport": 80, "src": ["10.0.0.0/8"]}, name="y", fwdmode="bypass"),
            dest(name="y"),
        ],
        [
            (3, "$.service", 'service "x" is snat, which takes no dests'),
            (5, "$.service", 'service "y" is bypass, which takes no dests'),
        ],
    ),
    "a dest of a service's mode": (
        [LB0, service(), dest(fwdmode="snat"), dest("10.0.0.12", fwdmode="bypass")],
        [(3, "$.fwdmode", "not of a dest"), (4, "$.fwdmode", "not of a dest")],
    ),
    "a cache of another family": (
        [LB0, passing({"src": ["10.0.0.0/8"]}, fwdmode="nat"), dest("fd00::11", "x")],
        [(3, "$.daddr", 'the match of service "x" is IPv4')],
    ),
    "dr to a cache keeps the port": (
        [LB0, passing({"src": ["10.0.0.0/8"]}, fwdmode="dr"), dest(name="x", dport=80)],
        [(3, "$.dport", "80 is not the vport (0), and dr cannot map ports")],
    ),
    "pings have no ports": (
        [
            LB0,
            ping(vport=1),
            ping(name="b"),
            dest(name="b", dport=7),
            snat({"sport": 5, "dport": 6, "dst": ["0.0.0.0/0"]}, "icmp"),
        ],
        [
            (2, "$.vport", "icmp has no ports"),
            (4, "$.dport", "icmp has no ports"),
            (5, "$.match.sport", "icmp has no ports"),
            (5, "$.match.dport", "icmp has no ports"),
        ],
    ),
    "two services of pings": (
        [LB0, ping(), ping(name="b")],
        [(3, "$.vport", 'icmp 10.0.0.100 is already service "ping" (line 2)')],
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


def test_so_many_lists_and_classes() -> None:
    lists = [acl(src=f"10.{i >> 8}.{i & 255}.0/24") for i in range(ACL_MAX + 1)]
    with pytest.raises(ConfigError, match=f":{ACL_MAX + 2}: 65536 acl lines, more than {ACL_MAX}"):
        loads("\n".join(map(json.dumps, [LB0, *lists])))
    ports = [port(f"p{i}") for i in range(TC_MAX + 1)]
    classes = [tc(port=f"p{i}") for i in range(TC_MAX + 1)]
    with pytest.raises(ConfigError, match=f"{TC_MAX + 1} tc lines, more than {TC_MAX}"):
        loads("\n".join(map(json.dumps, [*ports, *classes])))


@pytest.mark.parametrize(
    ("written", "bits"),
    [(1000, 1000), ("1000bit", 1000), ("7kbit", 7000), ("10mbit", 10**7), ("2gbit", 2 * 10**9)],
)
def test_rates(written: object, bits: int) -> None:
    (found,) = loads("\n".join(map(json.dumps, [LB0, tc(rate=written)]))).tcs
    assert found.rate == bits
    assert found.burst_bytes() == max(16384, bits // 400)
    (found,) = loads("\n".join(map(json.dumps, [LB0, tc(rate=written, burst=9)]))).tcs
    assert found.burst_bytes() == 9
