"""The path becomes narrow in the middle of a connection, and a real kernel recovers: through every
mode, to the dest and back.

One router joins four segments: the client's, tunlb's outside and inside, and the far servers'::

    client 10.0.4.2 -- r -- 10.0.1.0/24 -- lb-out [tunlb] lb-in -- 10.0.2.0/24 -- r -- 10.0.3.11 s1
                                                                       s2 (dr)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType

import pytest

from tests.e2e.conftest import demand
from tests.e2e.kit import FAMILIES, Family, Line, counters_of, stopped, text_of
from tests.e2e.test_tunnel import decapsulating
from tunlb.lab import Lab, Topology, clients
from tunlb.lab.host import ip
from tunlb.lab.servers import pattern
from tunlb.lab.topology import Bridge, HostSpec, Link, Pair

SMALL_MTU = 1400
SIZE = 100_000
MODES = ("fnat", "nat", "dr", "tunnel")
VIPS = {mode: Pair(v4=f"10.0.1.10{n}", v6=f"fd01::10{n}") for n, mode in enumerate(MODES, start=1)}
FAR = Pair(v4="10.0.3.11", v6="fd03::11")
NEAR = Pair(v4="10.0.2.12", v6="fd02::12")
CLIENT = Pair(v4="10.0.4.2", v6="fd04::2")
LADDR = Pair(v4="10.0.2.200", v6="fd02::200")
DESTS = {"fnat": FAR, "nat": FAR, "dr": NEAR, "tunnel": FAR}
# What goes back through tunlb although the router knows a shorter way: the answers of a NAT dest,
# and the router's own words about what NAT wrote.
BACK = 100
ROUTER_RULES = tuple(
    f"{option} rule add {what} lookup {BACK} priority {priority}"
    for option, servers, client in (
        ("-4", "10.0.3.0/24", "10.0.4.0/24"),
        ("-6", "fd03::/64", "fd04::/64"),
    )
    for what, priority in ((f"from {servers} to {client}", 100), (f"iif lo to {client}", 101))
)
_FORWARDING = (
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    # Being the router of every side, it meets its own ICMP errors again, which tunlb passed on.
    ("net/ipv4/conf/all/accept_local", "1"),
)
_SILENT = (("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2"))


def _addresses(dev: str, number: int, host: int | str) -> tuple[tuple[str, str], ...]:
    return (dev, f"10.0.{number}.{host}/24"), (dev, f"fd0{number}::{host}/64")


def _holding(mode: str) -> tuple[tuple[str, str], ...]:
    return ("lo", f"{VIPS[mode].v4}/32"), ("lo", f"{VIPS[mode].v6}/128")


TOPOLOGY = Topology(
    name="path",
    summary="a router on every side of tunlb",
    hosts=(
        HostSpec(
            name="director",
            role="director",
            sysctls=(("net/ipv6/conf/all/disable_ipv6", "1"),),
            bridges=(
                Bridge(name="br-out", members=("to-r-out",)),
                Bridge(name="br-in", members=("to-r-in", "to-s2")),
                Bridge(name="br-far", members=("to-r-far", "to-s1")),
                Bridge(name="br-client", members=("to-r-cl", "to-client")),
            ),
        ),
        HostSpec(
            name="client",
            role="client",
            addresses=_addresses("eth0", 4, 2),
            routes=("default via 10.0.4.1", "default via fd04::1"),
        ),
        HostSpec(
            name="s3",
            role="peer",
            addresses=tuple(
                address for n in (1, 2, 3, 4) for address in _addresses(f"eth{n}", n, 1)
            ),
            routes=(
                f"default via 10.0.2.254 table {BACK}",
                f"default via fd02::fe table {BACK}",
            ),
            sysctls=_FORWARDING,
        ),
        HostSpec(
            name="s1",
            role="server",
            addresses=(*_addresses("eth0", 3, 11), *_holding("tunnel")),
            routes=("default via 10.0.3.1", "default via fd03::1"),
            sysctls=_SILENT,
        ),
        HostSpec(
            name="s2",
            role="server",
            addresses=(*_addresses("eth0", 2, 12), *_holding("dr")),
            routes=("default via 10.0.2.1", "default via fd02::1"),
            sysctls=_SILENT,
        ),
    ),
    links=(
        Link("s3", "eth1", "to-r-out"),
        Link("s3", "eth2", "to-r-in"),
        Link("s3", "eth3", "to-r-far"),
        Link("s3", "eth4", "to-r-cl"),
        Link("client", "eth0", "to-client"),
        Link("s1", "eth0", "to-s1"),
        Link("s2", "eth0", "to-s2"),
    ),
    vips=VIPS["fnat"],
    servers=(("s1", FAR), ("s2", NEAR)),
    ports=tuple(
        MappingProxyType(
            {
                "name": name,
                "bridge": bridge,
                "addresses": [f"10.0.{n}.254/24", f"fd0{n}::fe/64"],
            }
        )
        for n, (name, bridge) in enumerate((("lb-out", "br-out"), ("lb-in", "br-in")), start=1)
    ),
    services=(),
    config_routes=(
        MappingProxyType({"dst": "10.0.3.0/24", "via": "10.0.2.1", "port": "lb-in"}),
        MappingProxyType({"dst": "fd03::/64", "via": "fd02::1", "port": "lb-in"}),
        MappingProxyType({"dst": "0.0.0.0/0", "via": "10.0.1.1", "port": "lb-out"}),
        MappingProxyType({"dst": "::/0", "via": "fd01::1", "port": "lb-out"}),
    ),
)


def config() -> str:
    lines: list[Line] = [json.loads(line) for line in TOPOLOGY.config_text.splitlines()]
    for mode in MODES:
        for family in FAMILIES:
            name = f"{mode}-{family}"
            service: dict[str, object] = {
                "kind": "service",
                "name": name,
                "proto": "tcp",
                "vaddr": VIPS[mode].of(family),
                "vport": 7,
                "fwdmode": mode,
            }
            if mode == "fnat":
                service["laddrs"] = [LADDR.of(family)]
            if mode == "tunnel":
                service["tunnel"] = {"type": "gue" if family == "v4" else "ipip"}
            lines += [
                service,
                {"kind": "dest", "service": name, "daddr": DESTS[mode].of(family)},
            ]
    return text_of(lines)


@dataclass
class Site:
    """``tried``: which of the ways below, in which mode."""

    lab: Lab
    tried: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def site(_host_problems: list[str]) -> Iterator[Site]:
    demand(_host_problems)
    with Lab(TOPOLOGY, f"path-{os.getpid()}") as lab, decapsulating(lab.host("s1")):
        router = lab.host("s3")
        for rule in ROUTER_RULES:
            ip(*rule.split()[:1], "-n", router.ns, *rule.split()[1:])
        tunlb = lab.start_tunlb(config())
        made = Site(lab)
        yield made
        found = counters_of(stopped(tunlb))
        assert "drop.ICMP_UNRELATED" not in found, found
        assert "drop.ICMP_INVALID" not in found, found
        assert found.get("TUNNEL_PMTU", 0) >= made.tried.count(("towards_dest", "tunnel"))
        related = [way for way in made.tried if way[1] in ("nat", "fnat")]
        related += [way for way in made.tried if way == ("towards_client", "dr")]
        assert found.get("ICMP_RELATED", 0) >= len(related)
        assert found.get("drop.MTU_EXCEEDED", 0) < 200


@contextlib.contextmanager
def narrow(lab: Lab, target: str, via: str) -> Iterator[None]:
    """From now on the router has a small MTU towards `target`."""
    ns = lab.host("s3").ns
    route = [f"{target}/{128 if ':' in target else 32}", *via.split()]
    ip("-n", ns, "route", "add", *route, "mtu", "lock", str(SMALL_MTU))
    try:
        yield
    finally:
        ip("-n", ns, "route", "del", *route)
        for host in (lab.client, lab.host("s1"), lab.host("s2")):
            for family in ("-4", "-6"):
                ip("-n", host.ns, family, "route", "flush", "cache")


def towards_dest(mode: str, family: Family) -> tuple[str, str]:
    """Where packets to the dest become too large; to dr's, which is on link, before tunlb."""
    if mode == "dr":
        return VIPS[mode].of(family), "dev eth1"
    return FAR.of(family), "dev eth3"


def towards_client(mode: str, family: Family) -> tuple[str, str]:
    return CLIENT.of(family), "dev eth4"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", [towards_dest, towards_client])
def test_a_path_that_becomes_narrow(
    site: Site,
    where: Callable[[str, Family], tuple[str, str]],
    mode: str,
    family: Family,
) -> None:
    lab = site.lab
    site.tried.append((where.__name__, mode))
    data = pattern(SIZE)
    with clients.connection(lab.client, VIPS[mode].of(family), 7, timeout=10) as conn:
        assert conn.echo(data) == data
        with narrow(lab, *where(mode, family)):
            for _ in range(2):
                assert hashlib.sha256(conn.echo(data)).digest() == hashlib.sha256(data).digest()
