"""A lab for what passes by: inside hosts, tunlb as their gateway, a router, and somebody far away.

::

    client, client2 --br-in-- tunlb --br-out-- router --br-far-- far
                                       |
                                     cache

Only what has an address of the outside subnet is answered: the router knows no way to the inside.
"""

from __future__ import annotations

from tests.e2e.kit import Family, Line
from tunlb.lab.topology import Bridge, HostSpec, Link, Pair, Topology

FAR = Pair(v4="10.0.5.2", v6="fd05::2")
CACHE = Pair(v4="10.0.1.9", v6="fd01::9")
ROUTER = Pair(v4="10.0.1.1", v6="fd01::1")
INSIDE = Pair(v4="10.0.2.0/24", v6="fd02::/64")
HOSTS = {
    "client": Pair(v4="10.0.2.11", v6="fd02::11"),
    "client2": Pair(v4="10.0.2.12", v6="fd02::12"),
}
OURS = Pair(v4="10.0.2.254", v6="fd02::fe")
LADDRS = Pair(v4="10.0.1.200-10.0.1.201", v6="fd01::200-fd01::201")
EVERYWHERE = Pair(v4="0.0.0.0/0", v6="::/0")

_FORWARDS = (("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"))
_ONLY_BRIDGES = (("net/ipv6/conf/all/disable_ipv6", "1"),)


def _inside(name: str) -> HostSpec:
    return HostSpec(
        name=name,
        role="client" if name == "client" else "peer",
        addresses=(("eth0", f"{HOSTS[name].v4}/24"), ("eth0", f"{HOSTS[name].v6}/64")),
        routes=tuple(f"default via {via}" for via in OURS),
    )


TOPOLOGY = Topology(
    name="s-gateway",
    summary="a gateway with a router outside and hosts inside",
    hosts=(
        HostSpec(
            name="director",
            role="director",
            sysctls=_ONLY_BRIDGES,
            bridges=(
                Bridge(name="br-in", members=("to-client", "to-client2")),
                Bridge(name="br-out", members=("to-router", "to-cache")),
                Bridge(name="br-far", members=("to-router2", "to-far")),
            ),
        ),
        _inside("client"),
        _inside("client2"),
        HostSpec(
            name="router",
            role="peer",
            addresses=(
                *(("eth0", f"{a}/{n}") for a, n in zip(ROUTER, (24, 64), strict=True)),
                ("eth1", "10.0.5.1/24"),
                ("eth1", "fd05::1/64"),
            ),
            sysctls=_FORWARDS,
        ),
        HostSpec(
            name="far",
            role="server",
            addresses=(("eth0", f"{FAR.v4}/24"), ("eth0", f"{FAR.v6}/64")),
            routes=("default via 10.0.5.1", "default via fd05::1"),
        ),
        HostSpec(
            name="cache",
            role="server",
            addresses=(("eth0", f"{CACHE.v4}/24"), ("eth0", f"{CACHE.v6}/64")),
            routes=("default via 10.0.1.254", "default via fd01::fe"),
        ),
    ),
    links=(
        Link("client", "eth0", "to-client"),
        Link("client2", "eth0", "to-client2"),
        Link("router", "eth0", "to-router"),
        Link("router", "eth1", "to-router2"),
        Link("far", "eth0", "to-far"),
        Link("cache", "eth0", "to-cache"),
    ),
    vips=Pair(v4="10.0.1.100", v6="fd01::100"),
    servers=(),
    ports=(
        {"name": "lb-out", "bridge": "br-out", "addresses": ["10.0.1.254/24", "fd01::fe/64"]},
        {"name": "lb-in", "bridge": "br-in", "addresses": ["10.0.2.254/24", "fd02::fe/64"]},
    ),
    config_routes=(
        {"dst": EVERYWHERE.v4, "port": "lb-out", "via": ROUTER.v4},
        {"dst": EVERYWHERE.v6, "port": "lb-out", "via": ROUTER.v6},
    ),
    services=(),
    laddrs=LADDRS,
)


def snat(family: Family, *protos: str) -> list[Line]:
    """All that inside hosts begin goes out by the laddrs."""
    return [
        {
            "kind": "service",
            "name": f"out-{proto}-{family}",
            "proto": proto,
            "match": {"src": [INSIDE.of(family)], "oport": "lb-out"},
            "fwdmode": "snat",
            "laddrs": [LADDRS.of(family)],
        }
        for proto in protos or ("tcp", "udp", "icmp")
    ]
