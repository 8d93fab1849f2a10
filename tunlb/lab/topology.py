"""The lab's topologies, as data: who is there, how they are wired, and the configuration.

Nothing here does anything: `tunlb.lab.net` turns a Topology into namespaces. Every topology has
one host called `client`, one called `director` (where tunlb runs) and the servers `s1` to `s3`.
Each service is offered twice, over IPv4 and over IPv6.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Family = Literal["v4", "v6"]
FAMILIES: tuple[Family, ...] = ("v4", "v6")

HTTP_PORTS = (80, 8080, 8081)
ECHO_PORTS = (7, 7777)
IPERF_PORT = 5201

# IPv4 settings of a new namespace are inherited from the host and IPv6 ones are not, so both
# are stated. Duplicate address detection would hold each address back for a second or two.
BASE_SYSCTLS: tuple[tuple[str, str], ...] = (
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
)

# Where br_netfilter is loaded (a machine with Docker), bridged frames would pass iptables in every
# new namespace: measured as a quarter of the CPU time of small frames through two bridges.
NO_BRIDGE_NETFILTER: tuple[tuple[str, str], ...] = tuple(
    (f"net/bridge/bridge-nf-call-{tables}", "0")
    for tables in ("iptables", "ip6tables", "arptables")
)

# A director that only bridges has no business with IP: its kernel stays silent on the bridges,
# so that what tunlb reads from a TAP comes from the client, the servers, or nobody.
_BRIDGING_ONLY: tuple[tuple[str, str], ...] = (("net/ipv6/conf/all/disable_ipv6", "1"),)

# What a TUN needs of the kernel: it forwards what tunlb writes, without asking whether the
# source address would be routed back the same way, and without telling anyone a better way.
_ROUTING: tuple[tuple[str, str], ...] = (
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
)

# A server that holds a VIP on `lo` must keep silent about it on the wire. For IPv6 the kernel
# answers neighbour solicitations only for addresses of the interface itself, which suffices.
_SILENT_VIP: tuple[tuple[str, str], ...] = (
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same thing in both address families."""

    v4: str
    v6: str

    def of(self, family: Family) -> str:
        return self.v4 if family == "v4" else self.v6

    def __iter__(self) -> Iterator[str]:
        return iter((self.v4, self.v6))


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """A Linux bridge in a host; `members` are devices of that host."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A veth pair: `dev` in `host`, and `director_dev`, its other end, in the director."""

    host: str
    dev: str
    director_dev: str


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """One namespace.

    `addresses` are (device, address/prefix) pairs. `routes` are arguments of `ip route add`.
    `sysctls` are (path below /proc/sys, value) pairs, written in order after BASE_SYSCTLS.
    `iperf_binds` are the addresses that iperf3 servers bind to ("" = any). A lab starts its own
    servers in each `server`; a `peer` is one where whoever builds the network starts them.
    """

    name: str
    role: Literal["client", "director", "server", "peer"]
    addresses: tuple[tuple[str, str], ...] = ()
    routes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    bridges: tuple[Bridge, ...] = ()
    iperf_binds: tuple[str, ...] = ("",)


@dataclass(frozen=True, kw_only=True)
class LabService:
    """A service with the three servers as dests, offered on the VIP of each family."""

    name: str
    proto: Literal["tcp", "udp"]
    vport: int
    dport: int
    fwdmode: Literal["fnat", "nat", "dr"]
    scheduler: str
    weights: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Hosts, one of which is the director, and the veth pairs between it and the others."""

    hosts: tuple[HostSpec, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True, kw_only=True)
class Topology(Wiring):
    """A lab: hosts, their wiring, and what tunlb is told.

    `ports` and `config_routes` are configuration lines of those kinds. `after_ready` are
    commands of `ip` (without the word itself) to run in the director once tunlb is ready,
    for what needs tunlb's own device to exist.
    """

    name: str
    summary: str
    vips: Pair
    servers: tuple[tuple[str, Pair], ...]
    ports: tuple[Mapping[str, object], ...]
    services: tuple[LabService, ...]
    laddrs: Pair | None = None
    config_routes: tuple[Mapping[str, object], ...] = ()
    after_ready: tuple[str, ...] = ()

    def service(self, name: str) -> LabService:
        for service in self.services:
            if service.name == name:
                return service
        raise KeyError(f"topology {self.name} has no service {name!r}")

    @property
    def server_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.servers)

    @property
    def config_text(self) -> str:
        """What tunlb is started with: JSON lines, as docs/configuration.md names them."""
        lines: list[Mapping[str, object]] = [
            {"kind": "tunlb", "version": 1, "name": self.name},
            *({"kind": "port", **port} for port in self.ports),
            *({"kind": "route", **route} for route in self.config_routes),
        ]
        for service in self.services:
            for family in FAMILIES:
                lines.extend(self._service_lines(service, family))
        return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)

    def _service_lines(self, service: LabService, family: Family) -> list[Mapping[str, object]]:
        name = f"{service.name}-{family}"
        head: dict[str, object] = {
            "kind": "service",
            "name": name,
            "proto": service.proto,
            "vaddr": self.vips.of(family),
            "vport": service.vport,
            "fwdmode": service.fwdmode,
            "scheduler": service.scheduler,
        }
        if service.fwdmode == "fnat" and self.laddrs is not None:
            head["laddrs"] = [self.laddrs.of(family)]
        dests = [
            {
                "kind": "dest",
                "service": name,
                "daddr": addrs.of(family),
                "dport": service.dport,
                "weight": weight,
            }
            for (_, addrs), weight in zip(self.servers, service.weights, strict=True)
        ]
        return [head, *dests]


_NUMBERS = (1, 2, 3)


def _server_pairs(net4: str, net6: str) -> tuple[tuple[str, Pair], ...]:
    return tuple((f"s{n}", Pair(v4=f"{net4}.1{n}", v6=f"{net6}::1{n}")) for n in _NUMBERS)


def _server_hosts(
    servers: tuple[tuple[str, Pair], ...],
    gateway: Pair | None,
    vips: Pair | None = None,
) -> tuple[HostSpec, ...]:
    """Three servers; with a default gateway, or with the VIPs on `lo`, or neither."""
    on_lo = () if vips is None else (("lo", f"{vips.v4}/32"), ("lo", f"{vips.v6}/128"))
    return tuple(
        HostSpec(
            name=name,
            role="server",
            addresses=(("eth0", f"{addrs.v4}/24"), ("eth0", f"{addrs.v6}/64"), *on_lo),
            routes=() if gateway is None else tuple(f"default via {via}" for via in gateway),
            sysctls=() if vips is None else _SILENT_VIP,
            # With UDP, an iperf3 server bound to "any" answers from the interface's address;
            # behind DR the client expects the VIP.
            iperf_binds=("",) if vips is None else tuple(vips),
        )
        for name, addrs in servers
    )


def _server_links() -> tuple[Link, ...]:
    return tuple(Link(f"s{n}", "eth0", f"to-s{n}") for n in _NUMBERS)


_CLIENT_LINK = Link("client", "eth0", "to-client")
_SERVER_ENDS = tuple(link.director_dev for link in _server_links())


def _services(
    fwdmode: Literal["fnat", "nat", "dr"],
    scheduler: str,
    weights: tuple[int, int, int] = (1, 1, 1),
) -> tuple[LabService, ...]:
    """web, echo and iperf3. DR cannot map ports, so there dport is vport."""
    vports = (HTTP_PORTS[0], ECHO_PORTS[0])
    http, echo = vports if fwdmode == "dr" else (HTTP_PORTS[1], ECHO_PORTS[1])

    def service(
        name: str, proto: Literal["tcp", "udp"], vport: int, dport: int, sched: str
    ) -> LabService:
        return LabService(
            name=name,
            proto=proto,
            vport=vport,
            dport=dport,
            fwdmode=fwdmode,
            scheduler=sched,
            weights=weights if name == "web" else (1, 1, 1),
        )

    return (
        service("web", "tcp", HTTP_PORTS[0], http, scheduler),
        service("echo", "tcp", ECHO_PORTS[0], echo, "rr"),
        service("echo-udp", "udp", ECHO_PORTS[0], echo, "rr"),
        # iperf3 opens a control connection and data flows, over TCP and UDP: all of them must
        # meet at one server, so the choice may depend on nothing but the client's address.
        service("iperf", "tcp", IPERF_PORT, IPERF_PORT, "sh"),
        service("iperf-udp", "udp", IPERF_PORT, IPERF_PORT, "sh"),
    )


def _one_segment(
    name: str,
    summary: str,
    *,
    services: tuple[LabService, ...],
    laddrs: Pair | None,
    vips_on_servers: bool,
) -> Topology:
    """Everybody on one bridge, in one subnet; tunlb's TAP is one more member of it."""
    vips = Pair(v4="10.0.0.100", v6="fd00::100")
    servers = _server_pairs("10.0.0", "fd00")
    return Topology(
        name=name,
        summary=summary,
        hosts=(
            HostSpec(
                name="director",
                role="director",
                sysctls=_BRIDGING_ONLY,
                bridges=(Bridge(name="br0", members=(_CLIENT_LINK.director_dev, *_SERVER_ENDS)),),
            ),
            HostSpec(
                name="client",
                role="client",
                addresses=(("eth0", "10.0.0.2/24"), ("eth0", "fd00::2/64")),
            ),
            *_server_hosts(servers, None, vips if vips_on_servers else None),
        ),
        links=(_CLIENT_LINK, *_server_links()),
        vips=vips,
        servers=servers,
        ports=(
            MappingProxyType(
                {
                    "name": "lb0",
                    "type": "tap",
                    "bridge": "br0",
                    "addresses": ["10.0.0.254/24", "fd00::fe/64"],
                }
            ),
        ),
        services=services,
        laddrs=laddrs,
    )


ONE_ARM = _one_segment(
    "one-arm",
    "one subnet on one bridge, full NAT",
    services=_services("fnat", "wrr", (2, 1, 1)),
    laddrs=Pair(v4="10.0.0.200-10.0.0.209", v6="fd00::200-fd00::209"),
    vips_on_servers=False,
)

DR = _one_segment(
    "dr",
    "one subnet on one bridge, servers hold the VIP and answer the client themselves",
    services=_services("dr", "wlc"),
    laddrs=None,
    vips_on_servers=True,
)


def _two_arm() -> Topology:
    servers = _server_pairs("10.0.2", "fd02")
    return Topology(
        name="two-arm",
        summary="a gateway between an outside and an inside subnet, NAT (full NAT on port 81)",
        hosts=(
            HostSpec(
                name="director",
                role="director",
                sysctls=_BRIDGING_ONLY,
                bridges=(
                    Bridge(name="br-out", members=(_CLIENT_LINK.director_dev,)),
                    Bridge(name="br-in", members=_SERVER_ENDS),
                ),
            ),
            HostSpec(
                name="client",
                role="client",
                addresses=(("eth0", "10.0.1.2/24"), ("eth0", "fd01::2/64")),
                routes=("default via 10.0.1.254", "default via fd01::fe"),
            ),
            *_server_hosts(servers, Pair(v4="10.0.2.254", v6="fd02::fe")),
        ),
        links=(_CLIENT_LINK, *_server_links()),
        vips=Pair(v4="10.0.1.100", v6="fd01::100"),
        servers=servers,
        ports=(
            MappingProxyType(
                {
                    "name": "lb-out",
                    "type": "tap",
                    "bridge": "br-out",
                    "addresses": ["10.0.1.254/24", "fd01::fe/64"],
                }
            ),
            MappingProxyType(
                {
                    "name": "lb-in",
                    "type": "tap",
                    "bridge": "br-in",
                    "addresses": ["10.0.2.254/24", "fd02::fe/64"],
                }
            ),
        ),
        services=(
            *_services("nat", "rr"),
            LabService(
                name="web-fnat",
                proto="tcp",
                vport=81,
                dport=HTTP_PORTS[1],
                fwdmode="fnat",
                scheduler="rr",
            ),
        ),
        laddrs=Pair(v4="10.0.2.200-10.0.2.209", v6="fd02::200-fd02::209"),
    )


_NAT_TABLE = 8081
_NAT_REPLIES = (
    f"iif br-in ipproto tcp sport {HTTP_PORTS[2]} lookup {_NAT_TABLE} priority {_NAT_TABLE}"
)


def _tun() -> Topology:
    servers = _server_pairs("10.0.2", "fd02")
    return Topology(
        name="tun",
        summary="a routing director, VIPs and laddrs routed to a TUN, full NAT (NAT on port 81)",
        hosts=(
            HostSpec(
                name="director",
                role="director",
                addresses=(
                    (_CLIENT_LINK.director_dev, "10.0.1.1/24"),
                    (_CLIENT_LINK.director_dev, "fd01::1/64"),
                    ("br-in", "10.0.2.1/24"),
                    ("br-in", "fd02::1/64"),
                ),
                # With NAT a reply is addressed to the client, whom the kernel knows a direct way
                # to: replies of NAT services (and nothing else) are turned back into the TUN.
                # What tunlb then writes enters with another `iif`, so it cannot come back.
                rules=tuple(f"{family} rule add {_NAT_REPLIES}" for family in ("-4", "-6")),
                sysctls=_ROUTING,
                bridges=(Bridge(name="br-in", members=_SERVER_ENDS),),
            ),
            HostSpec(
                name="client",
                role="client",
                addresses=(("eth0", "10.0.1.2/24"), ("eth0", "fd01::2/64")),
                routes=("default via 10.0.1.1", "default via fd01::1"),
            ),
            *_server_hosts(servers, Pair(v4="10.0.2.1", v6="fd02::1")),
        ),
        links=(_CLIENT_LINK, *_server_links()),
        vips=Pair(v4="10.0.3.100", v6="fd03::100"),
        servers=servers,
        ports=(
            MappingProxyType(
                {"name": "lb0", "type": "tun", "addresses": ["10.0.3.254/24", "fd03::fe/64"]}
            ),
        ),
        config_routes=(
            MappingProxyType({"dst": "0.0.0.0/0", "port": "lb0"}),
            MappingProxyType({"dst": "::/0", "port": "lb0"}),
        ),
        services=(
            *_services("fnat", "lc"),
            LabService(
                name="web-nat",
                proto="tcp",
                vport=81,
                dport=HTTP_PORTS[2],
                fwdmode="nat",
                scheduler="rr",
            ),
        ),
        laddrs=Pair(v4="10.0.3.200-10.0.3.209", v6="fd03::200-fd03::209"),
        after_ready=(
            f"-4 route replace default dev lb0 table {_NAT_TABLE}",
            f"-6 route replace default dev lb0 table {_NAT_TABLE}",
        ),
    )


TOPOLOGIES: Mapping[str, Topology] = MappingProxyType(
    {topology.name: topology for topology in (ONE_ARM, _two_arm(), DR, _tun())}
)
