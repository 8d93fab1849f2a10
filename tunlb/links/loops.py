"""Routing loops, found before they happen (design: layer d)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tunlb.conf.lookup import Prefixes
from tunlb.conf.schema import Config, Port
from tunlb.conf.service import Dest, Service
from tunlb.conf.values import IPAddress, IPNetwork
from tunlb.links.link import Link, link_from

RTN_LOCAL = 2
TABLE_MAIN = 254

# Nobody's addresses (RFC 5737, RFC 3849, RFC 9637), to ask where "anywhere" leads. Several, because
# an example configuration may well route one of these blocks.
_ANYWHERE = (
    (4, ("192.0.2.1", "198.51.100.1", "203.0.113.1")),
    (6, ("2001:db8::1", "3fff::1", "2001:db8:ffff::1")),
)


class LoopProblem(NamedTuple):
    """A route that works against us. `loop`: our own packets come back; else they go astray."""

    port: str
    address: str
    message: str
    fix: str
    loop: bool

    def __str__(self) -> str:
        return f"{self.message}; fix: {self.fix}"


class Hop(NamedTuple):
    port: Port
    via: IPAddress | None


class Answer(NamedTuple):
    """Where the kernel would send a packet: RTM_GETROUTE."""

    oif: int
    local: bool
    via: IPAddress | None


def check_loops(config: Config) -> list[LoopProblem]:
    """Ask the kernel where it would send what we are going to write, and what is meant for us.

    A frame that is written to a port enters the kernel as received on it. So the question is
    `ip route get DADDR from SADDR iif PORT`, and it predicts the outcome exactly (measured).

    - TUN: the kernel routes every packet we write. An answer that names the port itself is a loop.
      Asked for each dest that our own routes send out of that port, and for "anywhere", where the
      clients are.
    - TAP on a bridge: frames are switched by MAC address, and a bridge does not return a frame to
      the port that it came from, unless that port is set to hairpin.
    - TAP alone, or a bridge with addresses: the kernel only routes what we address to its own MAC,
      so only dests whose `via` is an address of this machine are asked for. An answer with one of
      our own addresses as the next hop or, without a bridge, with the TAP itself, is a loop.
    - Both: a VIP or laddr that is also an address of this machine never reaches us; nor, with a
      TUN, does one that is not routed into it.

    For FNAT the source is a laddr, for a tunnel that of the outer packet; for NAT the VIP stands
    for the clients. No packet is sent.
    """
    with IPRoute() as ipr:
        return list(Check(ipr, config).problems())


class Check:
    """One look at the configuration and the kernel's links and routes."""

    def __init__(self, ipr: IPRoute, config: Config) -> None:
        self.ipr = ipr
        self.config = config
        self.links = {link.name: link for link in map(link_from, ipr.get_links())}
        self.names = {link.index: link.name for link in self.links.values()}
        self.owned: dict[IPAddress, str] = {}  # -> what it is to us
        self._on_hosts: set[IPAddress] | None = None
        self.hops: Prefixes[Hop] = Prefixes()
        self.subnets: Prefixes[Port] = Prefixes()
        ports: dict[str, Port] = {}
        for port in config.ports:
            for name, addresses in port.subports():
                ports[name] = port
                for address in addresses:
                    self.subnets.add(address.network, port)
                    self.hops.add(address.network, Hop(port, None))
                    self.owned[address.ip] = "address"
        for route in config.routes:
            self.hops.add(route.dst, Hop(ports[route.port], route.via))
        for service in config.services:
            for laddr in service.laddrs_expanded:
                self.owned.setdefault(laddr, "laddr")
            if service.vaddr is not None:
                self.owned.setdefault(service.vaddr, "VIP")

    def problems(self) -> Iterator[LoopProblem]:
        for port in self.config.ports:
            link = self.links.get(port.name)
            # A device that was moved to another network namespace is that one's business.
            if link is not None:
                yield from self._anywhere(port, link) if port.type == "tun" else self._hairpin(link)
            host = self.links.get(port.host or "")
            if host is not None:
                yield from self._bridged(host)
        for address, kind in self.owned.items():
            yield from self._ours(address, kind)
        seen: set[tuple[IPAddress, IPAddress]] = set()
        for service in self.config.services:
            for dest in service.dests:
                source = self._source(service, dest)
                if source is not None and (dest.daddr, source) not in seen:
                    seen.add((dest.daddr, source))
                    yield from self._dest(dest.daddr, source)

    def _source(self, service: Service, dest: Dest) -> IPAddress | None:
        """The source of what is sent to a dest; of a tunnel, that of the outer packet."""
        if dest.fwdmode != "tunnel":
            return source_of(service, dest.daddr, dest.fwdmode)
        if dest.tunnel.src is not None:
            return dest.tunnel.src
        own = (address for address, kind in self.owned.items() if kind == "address")
        return next((a for a in own if a.version == dest.daddr.version), None)

    def _anywhere(self, port: Port, link: Link) -> Iterator[LoopProblem]:
        for version, probes in _ANYWHERE:
            source = next((a for a in self.owned if a.version == version), None)
            if source is None:
                continue
            answers = [self._ask(ip_address(p), source, link) for p in probes]
            if all(answer is not None and answer.oif == link.index for answer in answers):
                yield LoopProblem(
                    port.name,
                    "default" if version == 4 else "default (IPv6)",
                    f"the default route leads into {port.name}: what we write to clients returns",
                    self._way_around(link, ip_network("0.0.0.0/0" if version == 4 else "::/0")),
                    loop=True,
                )

    def _hairpin(self, link: Link) -> Iterator[LoopProblem]:
        if link.hairpin:
            yield LoopProblem(
                link.name,
                "",
                f"its bridge returns to {link.name} what comes from it (hairpin)",
                f"bridge link set dev {link.name} hairpin off",
                loop=True,
            )

    def _bridged(self, host: Link) -> Iterator[LoopProblem]:
        if host.master:
            yield LoopProblem(
                host.name,
                "",
                f"{host.name}, the host's side of a port, is on a bridge: frames go round",
                f"ip link set {host.name} nomaster",
                loop=True,
            )

    def _ours(self, address: IPAddress, kind: str) -> Iterator[LoopProblem]:
        found = self.subnets.find(address)
        tuns = [p for p in self.config.ports if p.type == "tun"]
        port = found[1] if found else (tuns[0] if len(tuns) == 1 else None)
        if port is None or port.name not in self.links:
            return
        answer = self._ask(address)
        if answer is not None and answer.local and address not in self._hosted():
            yield LoopProblem(
                port.name,
                str(address),
                f"the {kind} {address} is also an address of this machine, whose kernel keeps it",
                self._take_away(address),
                loop=False,
            )
        elif port.type == "tun" and kind != "address":
            link = self.links[port.name]
            if answer is None or answer.oif != link.index:
                yield LoopProblem(
                    port.name,
                    str(address),
                    f"the {kind} {address} is not routed into {port.name}",
                    f"ip route add {address} dev {port.name}",
                    loop=False,
                )

    def _hosted(self) -> set[IPAddress]:
        """What the hosts beside ports have: it comes to us first."""
        if self._on_hosts is None:
            hosts = [self.links.get(port.host or "") for port in self.config.ports]
            self._on_hosts = {
                ip_address(found.get("local") or found.get("address"))
                for host in hosts
                if host is not None
                for found in self.ipr.get_addr(index=host.index)
            }
        return self._on_hosts

    def _dest(self, daddr: IPAddress, source: IPAddress) -> Iterator[LoopProblem]:
        found = self.hops.find(daddr)
        if found is None or found[1].port.name not in self.links:
            return
        hop = found[1]
        link = self.links[hop.port.name]
        entry = link
        if hop.port.type == "tap":
            if hop.via is None:
                return
            router = self._ask(hop.via)
            if router is None or not router.local:
                return
            entry = next((b for b in self.links.values() if b.index == link.master), link)
        answer = self._ask(daddr, source, entry)
        if answer is None or answer.local:
            return
        # On a bridge the kernel may well send it out where it came in: to another member.
        back = entry is link and answer.oif == link.index
        if back or (answer.oif == entry.index and answer.via in self.owned):
            yield LoopProblem(
                hop.port.name,
                str(daddr),
                f"the kernel's route to the dest {daddr} leads back into {hop.port.name}",
                self._way_around(entry, ip_network(daddr)),
                loop=True,
            )

    def _ask(
        self, dst: IPAddress, src: IPAddress | None = None, iif: Link | None = None
    ) -> Answer | None:
        """None: there is no route, or the kernel would refuse the packet."""
        arguments: dict[str, Any] = {"dst": str(dst), "family": family_of(dst)}
        if src is not None and iif is not None:
            arguments |= {"src": str(src), "iif": iif.index}
        try:
            (route, *_) = self.ipr.route("get", **arguments)
        except NetlinkError:
            return None
        via = route.get("gateway")
        return Answer(
            route.get("oif") or 0, route["type"] == RTN_LOCAL, ip_address(via) if via else None
        )

    def _take_away(self, address: IPAddress) -> str:
        for found in self.ipr.get_addr(family=family_of(address)):
            if ip_address(found.get("local") or found.get("address")) == address:
                device = self.names.get(found["index"], "DEVICE")
                return f"ip addr del {address}/{found['prefixlen']} dev {device}"
        return f"ip route del local {address}"

    def _way_around(self, link: Link, net: IPNetwork) -> str:
        """The commands that lead packets from `link` to `net` by the best other route."""
        nowhere = "::" if net.version == 6 else "0.0.0.0"
        best: tuple[int, str] = (-1, "via GATEWAY dev DEVICE")
        for route in self.ipr.get_routes(family=family_of(net.network_address), table=TABLE_MAIN):
            via, oif, length = route.get("gateway"), route.get("oif"), route["dst_len"]
            if oif in (None, link.index) or (via and ip_address(via) in self.owned):
                continue
            route_net = ip_network((route.get("dst") or nowhere, length))
            if length <= net.prefixlen and net.network_address in route_net:
                gateway = f"via {via} " if via else ""
                best = max(best, (length, f"{gateway}dev {self.names.get(oif, 'DEVICE')}"))
        ip = "ip -6" if net.version == 6 else "ip"
        rule = f"{ip} rule add iif {link.name} lookup"
        commands = [f"{ip} route add {net} {best[1]} table 100", f"{rule} 100 priority 100"]
        if net.prefixlen == 0:
            # What the main table knows better than by its default route, dests above all, still
            # comes first.
            commands.append(f"{rule} main suppress_prefixlength 0 priority 99")
        return " && ".join(commands)


def source_of(service: Service, daddr: IPAddress, fwdmode: str) -> IPAddress | None:
    """The source of what is sent to a dest; None where the question makes no sense."""
    if fwdmode == "fnat":
        return next((a for a in service.laddrs_expanded if a.version == daddr.version), None)
    return service.vaddr if fwdmode == "nat" else None


def family_of(address: IPAddress) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)
