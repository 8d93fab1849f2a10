"""Checks between ports, routes and neighbours, and the network that they make."""

from __future__ import annotations

from typing import Final

import msgspec

from tunlb.conf.errors import Problems, did_you_mean, shown
from tunlb.conf.lookup import Prefixes
from tunlb.conf.parsed import Parsed
from tunlb.conf.schema import KINDS, Neigh, Port, Route
from tunlb.conf.values import IPAddress, IPInterface

IPV6_MTU_MIN: Final = 1280  # RFC 8200 section 5


class Hop(msgspec.Struct, frozen=True):
    """The way to an address: through `port` (or a VLAN of it), on link or by a gateway."""

    port: str
    on_link: bool


class Network:
    """What the port and route lines say about addresses, each with the line that says it."""

    def __init__(self) -> None:
        self.subnets: Prefixes[str] = Prefixes()
        self.hops: Prefixes[Hop] = Prefixes()
        self.own: dict[IPAddress, str] = {}
        self.host: dict[IPAddress, str] = {}
        self.types: dict[str, str] = {}  # every port and VLAN that a line may name -> tap or tun
        self.links: dict[str, Prefixes[str]] = {}  # what is on link, by port
        self.backups: dict[str, str] = {}  # the port that each is a backup of
        self.hosts: dict[str, dict[IPAddress, str]] = {}  # what hosts beside ports have, by port

    @property
    def has_tun(self) -> bool:
        return "tun" in self.types.values()


def check(problems: Problems, parsed: Parsed) -> Network:
    """Adds what is wrong between ports, routes and neighbours, and returns the network."""
    network = Network()
    for line, port in parsed.numbered(Port):
        _port(problems, network, line, port)
    if parsed.whole(*_EVERY_KIND) and not parsed.of(Port):
        problems.add(
            0, "", "there is no port line", hint='add {"kind": "port", "name": "lb0", ...}'
        )
    _backups(problems, parsed)
    for line, route in parsed.numbered(Route):
        if _known_port(problems, parsed, network, line, route.port):
            link = network.links[route.port]
            if route.via is None:
                link.add(route.dst, "route")
    _routes(problems, parsed, network)
    _neighs(problems, parsed, network)
    return network


_EVERY_KIND: Final = tuple(KINDS)


def _backups(problems: Problems, parsed: Parsed) -> None:
    """A backup is nothing but another device of its port."""
    ports = {port.name: port for port in parsed.of(Port)}
    for line, port in parsed.numbered(Port):
        if port.backup_of is None:
            continue
        of = ports.get(port.backup_of)
        if of is None:
            if parsed.whole("port"):
                message = f"no port is named {shown(port.backup_of)}"
                hint = did_you_mean(port.backup_of, list(ports))
                problems.add(line, "$.backup_of", message, hint=hint)
            continue
        if of.backup_of is not None or of is port:
            message = f"{shown(of.name)} is a backup itself"
            problems.add(line, "$.backup_of", message, hint="name the port that has the addresses")
        for each in (port, of):
            if each.type == "tun":
                message = f"{shown(each.name)} is a tun, which no network is behind"
                problems.add(line, "$.backup_of", message, hint="bond tap ports")
        for key in ("addresses", "vlans", "host", "host_addresses", "host_mirror", "mac"):
            if getattr(port, key):
                message = f"a backup has those of {shown(of.name)}"
                problems.add(line, f"$.{key}", message, hint=f"remove {key}")
        for key in ("mtu", "offload"):
            if getattr(port, key) != getattr(of, key):
                message = f"differs from {shown(of.name)}, whose packets it takes over"
                problems.add(line, f"$.{key}", message, hint="give both the same")


def _port(problems: Problems, network: Network, line: int, port: Port) -> None:
    if port.type == "tun":
        for key, given in (("mac", port.mac), ("bridge", port.bridge), ("vlans", port.vlans)):
            if given:
                reason = f"port {shown(port.name)} is a tun: it has no Ethernet"
                problems.add(line, f"$.{key}", reason, hint=f'remove {key}, or use "type": "tap"')
    v6 = [address for _, own in port.subports() for address in own if address.version == 6]
    if v6 and port.mtu < IPV6_MTU_MIN:
        message = f"{port.mtu} is too small for the IPv6 address {v6[0].ip}"
        problems.add(line, "$.mtu", message, expected=f"at least {IPV6_MTU_MIN} (RFC 8200)")
    ids: set[int] = set()
    for index, vlan in enumerate(port.vlans):
        path = f"$.vlans[{index}].id"
        if vlan.id in ids:
            problems.add(line, path, f"VLAN {vlan.id} is already in this list", hint="keep one")
        elif f"{port.name}.{vlan.id}" in network.types:
            message = f"its name {shown(f'{port.name}.{vlan.id}')} is already a port's"
            problems.add(line, path, message, hint="rename that port")
        ids.add(vlan.id)
    if port.backup_of is not None:
        network.backups[port.name] = port.backup_of
        return
    for index, (name, addresses) in enumerate(port.subports()):
        path = "$.addresses" if not index else f"$.vlans[{index - 1}].addresses"
        if not index and name in network.types and "." in name:
            # Two ports of one name are reported where lines are filed: this one is a VLAN's.
            _named_like_vlan(problems, line, name)
        network.types.setdefault(name, port.type)
        network.links.setdefault(name, Prefixes())
        for number, address in enumerate(addresses):
            _own(problems, network, line, f"{path}[{number}]", name, address)
    for index, address in enumerate(port.host_addresses):
        path = f"$.host_addresses[{index}]"
        _take(problems, network, line, path, address.ip)
        network.host[address.ip] = f"host address of port {shown(port.name)} (line {line})"
    if port.host is not None:
        interfaces = (*port.addresses, *port.host_addresses)
        network.hosts[port.name] = {each.ip: port.host for each in interfaces}


def _named_like_vlan(problems: Problems, line: int, name: str) -> None:
    message = (
        f"{shown(name)} is already the name of a VLAN of port {shown(name.rpartition('.')[0])}"
    )
    problems.add(line, "$.name", message, hint="rename this port")


def _take(problems: Problems, network: Network, line: int, path: str, ip: IPAddress) -> None:
    taken = network.own.get(ip) or network.host.get(ip)
    if taken:
        problems.add(line, path, f"{ip} is already the {taken}", hint="give each address once")


def _own(
    problems: Problems, network: Network, line: int, path: str, name: str, address: IPInterface
) -> None:
    """Files an address of tunlb's own, its subnet, and what that puts on link."""
    _take(problems, network, line, path, address.ip)
    network.own[address.ip] = f"address of port {shown(name)} (line {line})"
    network.links[name].add(address.network, name)
    if address.is_link_local and address.version == 6:
        return  # fe80::/64 is on every link, and on none in particular
    owner = network.subnets.add(address.network, name)
    if owner != name and address.network.prefixlen < address.max_prefixlen:
        message = f"{address.network} is already the subnet of port {shown(owner)}"
        hint = "which of the two would answer for an address in it? use one port, or two subnets"
        problems.add(line, path, message, hint=hint)
    network.hops.add(address.network, Hop(port=owner, on_link=True))


def _known_port(problems: Problems, parsed: Parsed, network: Network, line: int, name: str) -> bool:
    """Whether a line's `port` can be looked up; a name that no line declares is a problem."""
    if name in network.types:
        return True
    if name in network.backups:
        message = f"{shown(name)} is the backup of another port"
        problems.add(line, "$.port", message, hint=f"name {shown(network.backups[name])}")
    elif parsed.whole("port"):
        names = list(network.types)
        hint = did_you_mean(name, names) or f"the ports are {', '.join(names) or 'none'}"
        problems.add(line, "$.port", f"no port is named {shown(name)}", hint=hint)
    return False


def _routes(problems: Problems, parsed: Parsed, network: Network) -> None:
    first: dict[object, int] = {}
    for line, route in parsed.numbered(Route):
        before = first.setdefault(route.dst, line)
        if before != line:
            message = f"a route to {route.dst} is already on line {before}"
            problems.add(line, "$.dst", message, hint="keep one")
        if route.port not in network.types:
            continue
        if route.via is not None:
            _via(problems, network, line, route, route.via)
        hop = Hop(port=route.port, on_link=route.via is None)
        known = network.hops.add(route.dst, hop)
        if known != hop and before == line:
            # The router would take the place of the subnet, and whoever is on link be behind it.
            message = f"{route.dst} is the subnet of port {shown(known.port)}"
            problems.add(line, "$.dst", message, hint="route a part of it, or leave this line out")


def _via(problems: Problems, network: Network, line: int, route: Route, via: IPAddress) -> None:
    if network.types[route.port] == "tun":
        message = f"port {shown(route.port)} is a tun: it has no gateways"
        problems.add(line, "$.via", message, hint="remove via: the kernel routes what is written")
    elif via.version != route.dst.version:
        message = f"{via} cannot be the gateway to {route.dst}: the families differ"
        problems.add(line, "$.via", message, hint='a route to "::/0" is written with its dst')
    elif via in network.own:
        problems.add(line, "$.via", f"{via} is the {network.own[via]}", hint="name another router")
    elif not _on_link(network, route.port, via):
        _off_link(problems, line, "$.via", route.port, via)


def _on_link(network: Network, port: str, address: IPAddress) -> bool:
    on_every_link = address.version == 6 and address.is_link_local
    return on_every_link or network.links[port].find(address) is not None


def _off_link(problems: Problems, line: int, path: str, port: str, address: IPAddress) -> None:
    message = f"{address} is not on link of port {shown(port)}"
    hint = "give the port an address in its subnet, or an on-link route to it"
    problems.add(line, path, message, hint=hint)


def _neighs(problems: Problems, parsed: Parsed, network: Network) -> None:
    first: dict[tuple[str, IPAddress], int] = {}
    for line, neigh in parsed.numbered(Neigh):
        before = first.setdefault((neigh.port, neigh.addr), line)
        if before != line:
            message = f"{neigh.addr} on port {shown(neigh.port)} is already on line {before}"
            problems.add(line, "$.addr", message, hint="keep one")
        if not _known_port(problems, parsed, network, line, neigh.port):
            continue
        if network.types[neigh.port] == "tun":
            message = f"port {shown(neigh.port)} is a tun: it has no neighbours"
            problems.add(line, "$.port", message, hint="remove this line")
        elif neigh.addr in network.own:
            problems.add(line, "$.addr", f"{neigh.addr} is the {network.own[neigh.addr]}")
        elif not _on_link(network, neigh.port, neigh.addr):
            _off_link(problems, line, "$.addr", neigh.port, neigh.addr)
