"""Checks of what a port's host has to do with it, and of dests that are the host itself."""

from __future__ import annotations

from collections.abc import Iterator

from tunlb.conf.errors import Problems, shown
from tunlb.conf.net import Network
from tunlb.conf.schema import Config, Port
from tunlb.conf.service import DestLine, ServiceLine, vport_of
from tunlb.conf.values import IPAddress


def check_ports(problems: Problems, ports: list[tuple[int, Port]]) -> None:
    """A host is a device of its own."""
    lines = {name: line for line, port in ports for name, _ in port.subports()}
    hosts: dict[str, int] = {}
    for line, port in ports:
        if port.host is None:
            if port.host_mirror:
                hint = 'name the device that gets the copies, e.g. "host": "lb0-host"'
                problems.add(line, "$.host_mirror", "the port has no host", hint=hint)
            continue
        if port.type == "tun":
            message = f"port {shown(port.name)} is a tun: what is not for it stays with the kernel"
            problems.add(line, "$.host", message, hint='remove host, or use "type": "tap"')
        before = lines.get(port.host, hosts.get(port.host))
        if before is not None:
            message = f"{shown(port.host)} is already the name of a device (line {before})"
            problems.add(line, "$.host", message, hint="the host's side is a device of its own")
        hosts[port.host] = line


def check_dest(
    problems: Problems, network: Network, line: int, dest: DestLine, service: ServiceLine
) -> None:
    """A dest with fwdmode local: it is the host beside the port that has the vaddr."""
    if service.vaddr is None:
        hint = "what passes by is for no host of ours"
        problems.add(line, "$.fwdmode", "local, for a service with a match", hint=hint)
        return
    if dest.dport is not None and dest.dport != vport_of(service).single:
        message = f"{dest.dport} is not the vport ({service.vport}), and local cannot map ports"
        hint = "the host gets the packets as they came: leave dport out"
        problems.add(line, "$.dport", message, hint=hint)
    found = network.subnets.find(service.vaddr)
    port = found[1] if found is not None else None
    if port is None or port not in network.hosts:
        message = f"the port that has {service.vaddr} has no host"
        hint = 'give it one, e.g. "host": "lb0-host"'
        problems.add(line, "$.fwdmode", message, hint=hint)
    elif dest.daddr != service.vaddr and network.hosts[port].get(dest.daddr) is None:
        message = f"{dest.daddr} is not an address of the host of port {shown(port)}"
        hint = f"write the vaddr, {service.vaddr}, or an address of that port"
        problems.add(line, "$.daddr", message, hint=hint)


def local_vips(config: Config) -> frozenset[IPAddress]:
    """The VIPs that the host has to have because it serves them itself."""
    return frozenset(
        service.vaddr
        for service in config.services
        if service.vaddr is not None and any(dest.fwdmode == "local" for dest in service.dests)
    )


def port_of(config: Config, address: IPAddress) -> Port | None:
    """The port whose subnet holds an address, by the longest prefix; no VLAN's."""
    found = [
        (interface.network.prefixlen, -index, port if name == port.name else None)
        for index, port in enumerate(config.ports)
        for name, interfaces in port.subports()
        for interface in interfaces
        if address in interface.network
    ]
    return max(found, key=lambda each: each[:2])[2] if found else None


def host_interfaces(
    config: Config, port: Port, also: frozenset[IPAddress] = frozenset()
) -> Iterator[tuple[IPAddress, int]]:
    """(address, prefix length) of all that the host beside `port` has; VIPs, and those in `also`
    that are the port's, as single addresses.
    """
    for interface in (*port.addresses, *port.host_addresses):
        yield interface.ip, interface.network.prefixlen
    known = {interface.ip for interface in (*port.addresses, *port.host_addresses)}
    for address in sorted((local_vips(config) | also) - known, key=lambda a: (a.version, int(a))):
        if port_of(config, address) is port:
            yield address, address.max_prefixlen


def host_members(config: Config, port: Port) -> list[str]:
    """The interfaces of this machine that are in the segment of `port` and its backups: their
    bridges, or the devices' own kernel side.
    """
    devices = [port, *(each for each in config.ports if each.backup_of == port.name)]
    return list(dict.fromkeys(each.bridge or each.name for each in devices))
