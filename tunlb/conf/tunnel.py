"""What makes a tunnel impossible: families, sources, ports and MTUs."""

from __future__ import annotations

from msgspec import UNSET

from tunlb.conf.errors import Problems
from tunlb.conf.net import Network
from tunlb.conf.parsed import Parsed
from tunlb.conf.schema import Port, Route
from tunlb.conf.service import DestLine, ServiceLine, TunnelKeys, version_of, vport_of
from tunlb.conf.values import IPAddress
from tunlb.ipvs.far import MTU_MIN
from tunlb.wire.encap import KINDS, overhead

_HINT = "tunnel keeps the client's packet as it is: leave dport out, or use nat or fnat"


def check(problems: Problems, parsed: Parsed, network: Network) -> None:
    """Adds what is wrong with tunnels, beyond what is wrong with any dest."""
    services = {service.name: service for service in parsed.of(ServiceLine)}
    uses = {name for name, service in services.items() if service.fwdmode == "tunnel"}
    mtus = _Mtus(parsed, network)
    for line, dest in parsed.numbered(DestLine):
        service = services.get(dest.service)
        fwdmode = dest.fwdmode
        if fwdmode is UNSET and service is not None:
            fwdmode = service.fwdmode
        if service is not None and fwdmode == "tunnel":
            uses.add(service.name)
            _dest(problems, network, mtus, line, dest, service)
        elif dest.tunnel is not UNSET:
            problems.add(line, "$.tunnel", "this dest is not reached by a tunnel", hint=_unused())
    for line, service in parsed.numbered(ServiceLine):
        if service.tunnel != TunnelKeys() and service.name not in uses and parsed.whole("dest"):
            message = "no dest of this service is reached by a tunnel"
            problems.add(line, "$.tunnel", message, hint=_unused())
        if service.mss_clamp is not False and service.proto != "tcp":
            message = f"{service.proto} has no MSS"
            problems.add(line, "$.mss_clamp", message, hint='only services of "proto": "tcp" have')
        if service.tunnel.src is not None:
            _source(problems, network, line, service, service.tunnel.src)


def _unused() -> str:
    return 'set "fwdmode": "tunnel", or leave it out'


def _dest(
    problems: Problems,
    network: Network,
    mtus: _Mtus,
    line: int,
    dest: DestLine,
    service: ServiceLine,
) -> None:
    if dest.dport is not None and dest.dport != vport_of(service).single:
        message = f"{dest.dport} is not the vport ({service.vport}), and a tunnel cannot map ports"
        problems.add(line, "$.dport", message, hint=_HINT)
    keys = service.tunnel if dest.tunnel is UNSET else dest.tunnel
    version = dest.daddr.version
    if dest.tunnel is not UNSET and keys.src is not None:
        _source(problems, network, line, service, keys.src)
    if keys.src is not None and keys.src.version != version:
        message = f"its source {keys.src} is IPv{keys.src.version}, the dest is IPv{version}"
        path = "$.daddr" if dest.tunnel is UNSET else "$.tunnel.src"
        problems.add(line, path, message, hint="give the dest a tunnel of its own")
    if keys.src is None and not any(own.version == version for own in network.own):
        message = f"no port has an IPv{version} address to send the outer packet from"
        hint = 'give the port towards it an address, or the tunnel a "src"'
        problems.add(line, "$.daddr", message, hint=hint)
    mtu = mtus.to(dest.daddr)
    taken = overhead(KINDS.index(keys.type), version, keys.csum)
    inner = version_of(service)
    least = MTU_MIN[inner]
    if 0 < mtu < least + taken:
        message = f"the MTU of {mtu} towards it leaves less than {least} in the tunnel"
        rfc = "RFC 8200" if inner == 6 else "RFC 791"
        hint = f"an IPv{inner} packet needs {least + taken} there ({rfc})"
        problems.add(line, "$.daddr", message, hint=hint)


def _source(
    problems: Problems, network: Network, line: int, service: ServiceLine, src: IPAddress
) -> None:
    if src in network.own or any(src in span.addresses() for span in service.laddrs):
        return
    message = f"{src} is not an address of a port of tunlb's"
    hint = "packets with another source would be answered to somebody else"
    problems.add(line, "$.tunnel.src", message, hint=hint)


class _Mtus:
    """The MTU of the route towards an address."""

    def __init__(self, parsed: Parsed, network: Network) -> None:
        self.network = network
        self.ports = {port.name: port.mtu for port in parsed.of(Port)}
        self.routes = {route.dst: route.mtu for route in parsed.of(Route) if route.mtu}

    def to(self, address: IPAddress) -> int:
        """0: not known."""
        found = self.network.hops.find(address)
        if found is None:
            return 0
        mtu = self.ports.get(found[1].port.partition(".")[0], 0)
        return min(mtu, self.routes.get(found[0], mtu))
