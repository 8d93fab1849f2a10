"""Interfaces, addresses and routes of a configuration, made anew beside those that packets use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tunlb.conf import Config, IPAddress, Service
from tunlb.netif import ADDRESS, LADDR, VIP, Addresses, Key, Netif
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
    yield VIP, service.vaddr
    for address in service.laddrs_expanded:
        yield LADDR, address


class Owned(NamedTuple):
    """The addresses of one service. ``until`` (ms): how long those of a removed one are answered
    for, because clients still speak to its VIP and dests to its laddrs.
    """

    vaddr: Key
    laddrs: tuple[Key, ...]
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

    def draw(self, config: Config, services: Iterable[Owned], former: Addresses) -> Iterator[None]:
        """Make it, in pieces. ``former`` are the addresses until now."""
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
            for kind, found in ((VIP, (service.vaddr,)), (LADDR, service.laddrs)):
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
