"""Checks between services, dests and the network: who owns an address, who can be reached how."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from tunlb.conf import client_ip, host, policy, shape, synproxy
from tunlb.conf.errors import Problems, did_you_mean, shown
from tunlb.conf.lookup import Spans, overlaps
from tunlb.conf.net import Network
from tunlb.conf.parsed import Parsed
from tunlb.conf.schema import DEST_MAX, Port
from tunlb.conf.service import DestLine, ServiceLine, version_of, vport_of
from tunlb.conf.values import LADDRS_MAX, AddressRange, IPAddress, special_of
from tunlb.ipvs.sched import STATELESS

TRANSLATED = ("tcp", "udp", "sctp")  #: what NAT64 takes from one family to the other


def check(problems: Problems, parsed: Parsed, network: Network) -> None:
    """Adds what is wrong between services, dests and `network`."""
    host.check_ports(problems, parsed.numbered(Port))
    services = shape.check(problems, parsed, network)
    _vports(problems, services)
    vips = {
        service.vaddr: _named(line, service)
        for line, service in services
        if service.vaddr is not None
    }
    taken = Spans(_taken(network, vips, alone=False))
    taken_alone = Spans(_taken(network, vips, alone=True))
    whole_ports = parsed.whole("port")
    for line, service in services:
        _vip(problems, network, line, service)
        if whole_ports:
            _covered(problems, network, line, service)
        _laddrs(problems, taken if service.fwdmode == "snat" else taken_alone, line, service)
        synproxy.check(problems, line, service)
        _fallback(problems, line, service)
    laddrs = Spans(
        (span, f"local address of {_named(line, service)}")
        for line, service in services
        for span in service.laddrs
    )
    _sharing(problems, services)
    _Dests(problems, parsed, network, vips, laddrs, services).check()
    client_ip.check(problems, parsed)
    policy.check(problems, parsed)


def _named(line: int, service: ServiceLine) -> str:
    return f"service {shown(service.name)} (line {line})"


def _vports(problems: Problems, services: list[tuple[int, ServiceLine]]) -> None:
    """Two services may share an address only on different ports; any-port is what is left over."""
    groups: dict[tuple[object, ...], list[tuple[int, ServiceLine]]] = {}
    for line, service in services:
        if service.vaddr is not None:
            key = service.proto, service.vaddr, vport_of(service).is_any
            groups.setdefault(key, []).append((line, service))
    for group in groups.values():
        for earlier, later in overlaps([vport_of(service) for _, service in group]):
            (first, kept), (line, service) = group[earlier], group[later]
            at = f"{service.proto} {service.vaddr} port {vport_of(service)}"
            if service.vport is None:
                message = f"{service.proto} {service.vaddr} is already {_named(first, kept)}"
            elif kept.vport == service.vport:
                message = f"{at} is already {_named(first, kept)}"
            else:
                message = f"{at} overlaps {_named(first, kept)}, port {kept.vport}"
            problems.add(line, "$.vport", message, hint="each port belongs to one service")


def _taken(
    network: Network, vips: dict[IPAddress, str], *, alone: bool
) -> Iterator[tuple[AddressRange, str]]:
    """What may be no laddr. Not `alone`: with snat, a port's own address may, where no host beside
    the port speaks from it as well.
    """
    hosted = {address for addresses in network.hosts.values() for address in addresses}
    for addresses, word in ((network.own, ""), (network.host, ""), (vips, "vaddr of ")):
        for address, where in addresses.items():
            if alone or addresses is not network.own or address in hosted:
                yield AddressRange(address, address), f"{address} is the {word}{where}"


def _sharing(problems: Problems, services: list[tuple[int, ServiceLine]]) -> None:
    """What answers to an address of snat is its remote endpoint's worker's, and what answers to a
    laddr of fnat is the lport's.
    """
    shared = Spans(
        (span, f"inside hosts of {_named(line, service)} go out by it")
        for line, service in services
        if service.fwdmode == "snat"
        for span in service.laddrs
    )
    for line, service in services:
        for index, span in enumerate(service.laddrs):
            other = shared.touching(span) if service.fwdmode != "snat" else None
            if other:
                hint = "give fnat and snat addresses of their own"
                problems.add(line, f"$.laddrs[{index}]", other, hint=hint)


def _vip(problems: Problems, network: Network, line: int, service: ServiceLine) -> None:
    taken = network.host.get(service.vaddr) if service.vaddr is not None else None
    if taken and not any(service.vaddr in found for found in network.hosts.values()):
        message = f"{service.vaddr} is the {taken}"
        problems.add(line, "$.vaddr", message, hint="the kernel would answer for it as well")


def _laddrs(problems: Problems, taken: Spans[str], line: int, service: ServiceLine) -> None:
    if service.fwdmode == "fnat" and not service.laddrs:
        hint = 'fnat needs local addresses, e.g. "laddrs": ["10.0.0.200"], or set "fwdmode"'
        problems.add(line, "$.laddrs", "missing", hint=hint)
    for index, span in enumerate(service.laddrs):
        path = f"$.laddrs[{index}]"
        conflict = taken.touching(span)
        if conflict:
            problems.add(line, path, conflict, hint="a local address is used for nothing else")
    spans = service.laddrs
    for earlier, later in overlaps([_as_v6(span) for span in spans]):
        message = f"{spans[later]} is already in this list, in {shown(str(spans[earlier]))}"
        problems.add(line, f"$.laddrs[{later}]", message, hint="give each address once")
    total = sum(span.size for span in spans)
    if total > LADDRS_MAX:
        message = f"{total} local addresses, more than {LADDRS_MAX}"
        problems.add(line, "$.laddrs", message, hint="one gives 64511 connections to each dest")


def _fallback(problems: Problems, line: int, service: ServiceLine) -> None:
    """What a director must know of a conn that it never saw: the dest, and nothing else."""
    if not service.fallback:
        return
    if service.scheduler not in STATELESS:
        message = f"needs a scheduler that any director answers alike, not {service.scheduler}"
        problems.add(line, "$.fallback", message, hint=f"use one of {', '.join(STATELESS)}")
    if service.proto != "tcp":
        message = f"{service.proto} needs none: each of its packets may begin a conn"
        problems.add(line, "$.fallback", message, hint="leave it out")
    if service.fwdmode == "fnat":
        message = "fnat cannot go on with a conn that it does not know: its lport is lost"
        problems.add(line, "$.fallback", message, hint="use nat, dr or tunnel, or a snapshot")


def _as_v6(span: AddressRange) -> tuple[int, int]:
    """Numbers that tell the families apart: IPv4 as ::ffff:a.b.c.d."""
    base = 0xFFFF_0000_0000 if span[0].version == 4 else 0
    return base + int(span[0]), base + int(span[1])


def _covered(problems: Problems, network: Network, line: int, service: ServiceLine) -> None:
    """The VIP and the laddrs have an owner: the port whose subnet holds them, or a tun's kernel."""
    if service.vaddr is not None:
        _owned(problems, network, line, "$.vaddr", service.vaddr)
    for index, span in enumerate(service.laddrs):
        path = f"$.laddrs[{index}]"
        subnet = network.subnets.find(span[0])
        if subnet is not None and span[1] in subnet[0]:
            # Inside one subnet, only the ends can be no host's.
            addresses = iter(sorted({span[0], span[1]}, key=int))
        else:
            addresses = span.addresses()
        all(_owned(problems, network, line, path, address) for address in addresses)


def _owned(problems: Problems, network: Network, line: int, path: str, address: IPAddress) -> bool:
    found = network.subnets.find(address)
    if found is None:
        if network.has_tun:
            return True
        hint = 'give a port an address in the subnet that holds it, or use a port of "type": "tun"'
        problems.add(line, path, f"no port's subnet holds {address}", hint=hint)
        return False
    special = special_of(found[0], address)
    if special:
        message = f"{address} is {special} of {found[0]} on port {shown(found[1])}"
        problems.add(line, path, message, hint="choose a host's address")
        return False
    return True


class _Dests:
    """The checks of dest lines."""

    def __init__(
        self,
        problems: Problems,
        parsed: Parsed,
        network: Network,
        vips: dict[IPAddress, str],
        laddrs: Spans[str],
        services: list[tuple[int, ServiceLine]],
    ) -> None:
        self.problems = problems
        self.parsed = parsed
        self.network = network
        self.vips = vips
        self.laddrs = laddrs
        self.services = {service.name: service for _, service in services}
        self.reach = parsed.whole("port", "route")

    def check(self) -> None:
        lines = self.parsed.numbered(DestLine)
        if len(lines) > DEST_MAX:
            message = f"{len(lines)} dests in all services together, more than {DEST_MAX}"
            hint = "this is the first line too many: give some services to another director"
            self.problems.add(lines[DEST_MAX][0], "", message, hint=hint)
        first: dict[tuple[object, ...], int] = {}
        for line, dest in lines:
            service = self.services.get(dest.service)
            single = vport_of(service).single if service is not None else None
            dport = single if dest.dport is None else dest.dport
            before = first.setdefault((dest.service, dest.daddr, dport), line)
            if before != line:
                message = f"this dest of service {shown(dest.service)} is already on line {before}"
                self.problems.add(line, "$.daddr", message, hint="keep one, and set its weight")
            if service is not None:
                if shape.check_dest(self.problems, line, dest, service):
                    self._of_service(line, dest, service)
            else:
                self._dangling(line, dest)
            if service is None or self._fwdmode(dest, service) != "local":
                self._place(line, dest)

    def _fwdmode(self, dest: DestLine, service: ServiceLine) -> str:
        return service.fwdmode if dest.fwdmode is UNSET else dest.fwdmode

    def _dangling(self, line: int, dest: DestLine) -> None:
        known = self.parsed.declares("service", dest.service)
        if not known and not self.parsed.unreadable:
            message = f"no service is named {shown(dest.service)}"
            hint = did_you_mean(dest.service, self.parsed.names("service"))
            self.problems.add(line, "$.service", message, hint=hint)

    def _of_service(self, line: int, dest: DestLine, service: ServiceLine) -> None:
        add = self.problems.add
        fwdmode = self._fwdmode(dest, service)
        if fwdmode == "fnat" and service.fwdmode != "fnat" and service.fallback:
            message = f"fnat, but service {shown(service.name)} has a fallback"
            add(line, "$.fwdmode", message, hint="an lport of another director is lost: use nat")
        self._family(line, dest, service, fwdmode)
        # Where the service's own fwdmode is fnat, its line has the problem.
        if fwdmode == "fnat" and service.fwdmode != "fnat" and not service.laddrs:
            message = f"fnat, but service {shown(service.name)} has no laddrs"
            add(line, "$.fwdmode", message, hint='add "laddrs" to the service')
        synproxy.check_dest(self.problems, line, dest, service)
        if fwdmode == "dr":
            self._dr(line, dest, service)
        if fwdmode == "local" and self.reach:
            host.check_dest(self.problems, self.network, line, dest, service)

    def _family(self, line: int, dest: DestLine, service: ServiceLine, fwdmode: str) -> None:
        """Full NAT alone crosses families (NAT64), and speaks to a dest in the dest's own."""
        version = dest.daddr.version
        name = shown(service.name)
        crossed = version != version_of(service)
        if crossed and fwdmode == "tunnel":
            return
        if crossed and (fwdmode != "fnat" or service.proto not in TRANSLATED):
            whose = "vaddr" if service.match is None else "match"
            message = (
                f"{dest.daddr} is IPv{version},"
                f" the {whose} of service {name} is IPv{version_of(service)}"
            )
            hint = f"only fnat translates between the families, and {', '.join(TRANSLATED)}"
            self.problems.add(line, "$.daddr", message, hint=hint)
            return
        spoken_to = {span[0].version for span in service.laddrs}
        if fwdmode == "fnat" and spoken_to and version not in spoken_to:
            message = f"{dest.daddr} is IPv{version}, and service {name} has no such laddrs"
            hint = f'add an IPv{version} address to its "laddrs"'
            self.problems.add(line, "$.daddr", message, hint=hint)

    def _dr(self, line: int, dest: DestLine, service: ServiceLine) -> None:
        if dest.dport is not None and dest.dport != vport_of(service).single:
            vport = vport_of(service)
            message = f"{dest.dport} is not the vport ({vport}), and dr cannot map ports"
            hint = "dr rewrites only the Ethernet header: leave dport out, or use nat or fnat"
            self.problems.add(line, "$.dport", message, hint=hint)
        found = self.network.hops.find(dest.daddr)
        if found is None or not self.reach:
            return
        hop = found[1]
        if self.network.types.get(hop.port) == "tun":
            message = f"dr cannot reach {dest.daddr} through {shown(hop.port)}, which is a tun"
            hint = (
                "a packet that keeps its vaddr is routed back into the tun, so dr on a tun loops"
                " by definition: use fnat, or a tap port"
            )
            self.problems.add(line, "$.daddr", message, hint=hint)
        elif not hop.on_link:
            message = f"dr cannot reach {dest.daddr} by a gateway"
            hint = "a dr dest is on link of a tap port: only its Ethernet address tells it apart"
            self.problems.add(line, "$.daddr", message, hint=hint)

    def _place(self, line: int, dest: DestLine) -> None:
        """A dest is somebody else, and somewhere."""
        conflict = ""
        if dest.daddr in self.vips:
            conflict = f"the vaddr of {self.vips[dest.daddr]}"
        elif dest.daddr in self.network.own:
            conflict = f"the {self.network.own[dest.daddr]}"
        else:
            laddr = self.laddrs.touching(AddressRange(dest.daddr, dest.daddr))
            conflict = f"a {laddr}" if laddr else ""
        if conflict:
            message = f"{dest.daddr} is {conflict}"
            self.problems.add(line, "$.daddr", message, hint="packets to it would come back here")
        elif self.reach and self.network.hops.find(dest.daddr) is None:
            message = f"no port's subnet and no route reaches {dest.daddr}"
            whole = "0.0.0.0/0" if dest.daddr.version == 4 else "::/0"
            port = next(iter(self.network.types), "lb0")
            line_text = f'{{"kind": "route", "dst": "{whole}", "port": "{port}"}}'
            hint = f"add a route, e.g. {line_text}, with a via where a router is next"
            self.problems.add(line, "$.daddr", message, hint=hint)
