"""Interfaces, addresses and routes of a configuration, made anew beside those that packets use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tunlb.conf import Config, IPAddress, Service
from tunlb.netif import ADDRESS, HOST_SIDE, LADDR, SHARED, VIP, Addresses, Key, Netif
from tunlb.route import Route, RouteTable

PIECE = 64  #: addresses or routes entered in one piece of work

Prefix = tuple[int, int, int, Netif]  #: length in 128 bits, hi, lo, where


def pair(address: IPAddress) -> Key:
    """An address as (hi, lo); IPv4 as ``::ffff:a.b.c.d``."""
    value = int(address)
    if address.version == 4:
        return 0, 0xFFFF_0000_0000 | value
    return value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF


def owned(service: Service) -> Iterator[tuple[int, IPAddress]]:
    """(kind, address) of the VIP and laddrs of a service."""
    if service.vaddr is not None:
        yield VIP, service.vaddr
    kind = SHARED if service.fwdmode == "snat" else LADDR
    for address in service.laddrs_expanded:
        yield kind, address


def laddrs_of(services: Iterable[Service]) -> dict[Key, int]:
    """The kind of each address that conns of these services speak from: LADDR or SHARED."""
    return {
        pair(address): kind
        for service in services
        for kind, address in owned(service)
        if kind != VIP
    }


def hosts_of(config: Config, ports: Sequence[Netif]) -> list[Netif]:
    """The TAPs of the host beside ``ports``, numbered after them, and each linked with its port."""
    found: list[Netif] = []
    for line, port in zip(config.ports, ports, strict=True):
        if line.host is not None:
            index = len(ports) + len(found)
            port.host = Netif(index, line.host, port.mac, port.mtu, port=port)
            found.append(port.host)
    return found


def mirror(config: Config, by_name: Mapping[str, Netif]) -> None:
    """Have the host get copies of what the ports receive, or no more."""
    for line in config.ports:
        port = by_name[line.name]
        port.mirror = line.host_mirror and port.host is not None
        port.detour = port.mirror


class Owned(NamedTuple):
    """The addresses of one service; ``snat``: inside hosts share its laddrs. ``until`` (ms): how
    long those of a removed one are answered for, because clients still speak to its VIP and dests
    to its laddrs.
    """

    vaddr: Key | None
    laddrs: tuple[Key, ...]
    snat: bool
    until: int = 0


class Wiring:
    """What a director's configuration makes of its ports. ``netifs`` are all that ever were,
    ``vlans`` those of each port by vid. ``announce``: it has an address that there was not before.
    """

    def __init__(self, known: Sequence[Netif]) -> None:
        self.netifs = list(known)
        self.by_name = {netif.name: netif for netif in known}
        self.vlans: dict[int, dict[int, Netif]] = {}
        self.addresses = Addresses()
        self.routes = RouteTable()
        self.announce = False

    def draw(
        self,
        config: Config,
        services: Iterable[Owned],
        former: Addresses,
        local: Iterable[Key | None] = (),
    ) -> Iterator[None]:
        """Make it, in pieces. ``former`` are the addresses until now. ``local`` are those of the
        dests that are the host itself, None for a rest.
        """
        self._link_vlans(config)
        prefixes: list[Prefix] = []
        for port in config.ports:
            for name, interfaces in port.subports():
                netif = self.by_name[name]
                for interface in interfaces:
                    hi, lo = pair(interface.ip)
                    self._own(netif, hi, lo, ADDRESS, former)
                    length = interface.network.prefixlen + (96 if interface.version == 4 else 0)
                    self.routes.add(hi, lo, length, Route(netif))
                    if interface.version == 4 and length < 127:
                        self.routes.add_broadcast(pair(interface.network.broadcast_address)[1])
                    prefixes.append((length, hi, lo, netif))
        yield
        yield from self._draw_routes(config)
        yield from self._draw_addresses(services, prefixes, former)
        if len(config.ports) < len(self.by_name):
            yield from self._draw_hosts(config, prefixes, former, local)

    def _draw_hosts(
        self,
        config: Config,
        prefixes: Sequence[Prefix],
        former: Addresses,
        local: Iterable[Key | None],
    ) -> Iterator[None]:
        """What the hosts beside the ports have: the ports' addresses, their own, and the VIPs of
        services that they serve.
        """
        for port in config.ports:
            netif = self.by_name[port.name]
            if netif.host is not None:
                for interface in port.addresses:
                    self._give(netif, *pair(interface.ip))
                for interface in port.host_addresses:
                    self._own(netif, *pair(interface.ip), HOST_SIDE, former)
                    self._give(netif, *pair(interface.ip))
        for service in config.services:
            for count, dest in enumerate(service.dests):
                if dest.fwdmode == "local" and service.vaddr is not None:
                    for address in (service.vaddr, dest.daddr):
                        self._give(self._place(prefixes, *pair(address)), *pair(address))
                if count % PIECE == 0:
                    yield
        # Those that drain need their way as well.
        for key in local:
            if key is None:
                yield
            else:
                self._lead(self._place(prefixes, *key), *key)

    def _give(self, netif: Netif | None, hi: int, lo: int) -> None:
        if netif is not None and netif.host is not None:
            self.addresses.give_host(hi, lo)
            self._lead(netif, hi, lo)

    def _lead(self, netif: Netif | None, hi: int, lo: int) -> None:
        if netif is not None and netif.host is not None:
            self.routes.add(hi, lo, 128, Route(netif.host))

    def _draw_routes(self, config: Config) -> Iterator[None]:
        for count, line in enumerate(config.routes):
            hi, lo = pair(line.dst.network_address)
            length = line.dst.prefixlen + (96 if line.dst.version == 4 else 0)
            via = None if line.via is None else pair(line.via)
            self.routes.add(hi, lo, length, Route(self.by_name[line.port], via, line.mtu or 0))
            if count % PIECE == 0:
                yield

    def _draw_addresses(
        self, services: Iterable[Owned], prefixes: Sequence[Prefix], former: Addresses
    ) -> Iterator[None]:
        count = 0
        for service in services:
            vaddrs = () if service.vaddr is None else (service.vaddr,)
            kinds = VIP, SHARED if service.snat else LADDR
            for kind, found in zip(kinds, (vaddrs, service.laddrs), strict=True):
                for hi, lo in found:
                    netif = self._place(prefixes, hi, lo)
                    if netif is not None:
                        self._own(netif, hi, lo, kind, former)
                    count += 1
                    if count % PIECE == 0:
                        yield

    def _own(self, netif: Netif, hi: int, lo: int, kind: int, former: Addresses) -> None:
        af = 4 if hi == 0 and lo >> 32 == 0xFFFF else 6
        self.addresses.add(netif, af, hi, lo, kind)
        if not former.is_local(hi, lo):
            self.announce = True

    def _link_vlans(self, config: Config) -> None:
        """VLAN sub-ports come and go with a reload; a port itself stays as it was at the start."""
        for port in config.ports:
            parent = self.by_name[port.name]
            vlans = self.vlans[parent.index] = {}
            for vlan in port.vlans:
                name = f"{port.name}.{vlan.id}"
                netif = self.by_name.get(name)
                if netif is None:
                    netif = self.by_name[name] = Netif(
                        len(self.netifs),
                        name,
                        parent.mac,
                        parent.mtu,
                        vid=vlan.id,
                        queue=parent.queue,
                    )
                    self.netifs.append(netif)
                vlans[vlan.id] = netif

    def _place(self, prefixes: Sequence[Prefix], hi: int, lo: int) -> Netif | None:
        """The port whose subnet holds an address, by the longest prefix; else a TUN, where it is
        simply routed.
        """
        value = hi << 64 | lo
        holding = [
            (length, netif)
            for length, p_hi, p_lo, netif in prefixes
            if (value ^ (p_hi << 64 | p_lo)) >> (128 - length) == 0
        ]
        if holding:
            return max(holding, key=lambda found: found[0])[1]
        return next((netif for netif in self.netifs if netif.tun), None)
