"""Checks of one service by itself: which of its keys go together."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import msgspec
from msgspec import UNSET

from tunlb.conf.errors import Problems, did_you_mean, shown
from tunlb.conf.match import MATCHES_MAX, PREFIXES_MAX, Match
from tunlb.conf.net import Network
from tunlb.conf.parsed import Parsed
from tunlb.conf.service import Dest, DestLine, ServiceLine, version_of
from tunlb.conf.values import READERS, IPAddress, PortRange

_SCHEDULER = next(
    field.default for field in msgspec.structs.fields(ServiceLine) if field.name == "scheduler"
)
NO_DESTS = ("snat", "bypass")  #: fwdmodes of whole services, whose packets need no real server


def check(problems: Problems, parsed: Parsed, network: Network) -> list[tuple[int, ServiceLine]]:
    """Adds what is wrong, and returns the services that other checks may look at."""
    sound = []
    matches = 0
    for line, service in parsed.numbered(ServiceLine):
        found = len(problems.found)
        if service.match is None:
            _with_vaddr(problems, line, service)
        else:
            matches += 1
            _with_match(problems, line, service, service.match, network, parsed)
            if matches == MATCHES_MAX + 1:
                message = f"more than {MATCHES_MAX} services with a match"
                hint = "one match takes several prefixes, and each new flow is held against all"
                problems.add(line, "$.match", message, hint=hint)
        if len(problems.found) == found:
            sound.append((line, service))
    return sound


def _with_vaddr(problems: Problems, line: int, service: ServiceLine) -> None:
    if service.vaddr is None:
        problems.add(line, "$.vaddr", "missing", expected=READERS[IPAddress][1])
    if service.proto == "icmp":
        if service.vport is not None:
            hint = "leave it out: the identifier of a ping is not an address"
            problems.add(line, "$.vport", "icmp has no ports", hint=hint)
    elif service.vport is None:
        problems.add(line, "$.vport", "missing", expected=READERS[PortRange][1])
    if service.fwdmode in NO_DESTS:
        message = f"{shown(service.fwdmode)} is for what is not addressed to tunlb"
        hint = 'replace "vaddr" and "vport" by a "match"'
        problems.add(line, "$.fwdmode", message, hint=hint)
    if service.bypass:
        message = "the original destination is the vaddr, which is tunlb's own"
        problems.add(line, "$.bypass", message, hint='bypass is for a service with a "match"')


def _with_match(
    problems: Problems,
    line: int,
    service: ServiceLine,
    match: Match,
    network: Network,
    parsed: Parsed,
) -> None:
    for key in ("vaddr", "vport"):
        if getattr(service, key) is not None:
            hint = "a service has a vaddr and a vport, or a match"
            problems.add(line, f"$.{key}", "beside a match", hint=hint)
    if service.fallback:
        hint = "leave it out: nothing tells whose conn an unknown packet is of"
        problems.add(line, "$.fallback", "beside a match", hint=hint)
    for key in ("persistence_s", "synproxy"):
        if getattr(service, key):
            hint = "leave it out: it is for what is addressed to a vaddr"
            problems.add(line, f"$.{key}", "beside a match", hint=hint)
    if match == Match():
        hint = f"it takes {', '.join(match.__struct_fields__)}"
        problems.add(line, "$.match", "says nothing", hint=hint)
    for key in ("sport", "dport"):
        if service.proto == "icmp" and getattr(match, key) is not None:
            problems.add(line, f"$.match.{key}", "icmp has no ports", hint="leave it out")
    if parsed.whole("port"):
        for key in ("iport", "oport"):
            name = getattr(match, key)
            if name is not None and name not in network.types:
                hint = did_you_mean(name, network.types)
                problems.add(line, f"$.match.{key}", f"no port is named {shown(name)}", hint=hint)
    if len(match.src) + len(match.dst) > PREFIXES_MAX:
        message = f"{len(match.src) + len(match.dst)} prefixes, more than {PREFIXES_MAX}"
        problems.add(line, "$.match", message, hint="use shorter prefixes, or several services")
    _family(problems, line, service, match)
    if service.fwdmode == "snat":
        _snat(problems, line, service)


def _family(problems: Problems, line: int, service: ServiceLine, match: Match) -> None:
    version = version_of(service)
    if not version:
        hint = 'add "src" or "dst", e.g. "dst": ["0.0.0.0/0"]'
        problems.add(line, "$.match", "says not of which family", hint=hint)
    for key in ("src", "dst"):
        for index, prefix in enumerate(getattr(match, key)):
            if prefix.version != version:
                message = f"{prefix} is IPv{prefix.version}, the first one is IPv{version}"
                hint = "a service for each family"
                problems.add(line, f"$.match.{key}[{index}]", message, hint=hint)


def _snat(problems: Problems, line: int, service: ServiceLine) -> None:
    if not service.laddrs:
        hint = 'snat needs the addresses that inside hosts share, e.g. "laddrs": ["192.0.2.8"]'
        problems.add(line, "$.laddrs", "missing", hint=hint)
    if service.scheduler != _SCHEDULER:
        hint = "a host keeps one of the laddrs, by its own address: leave it out"
        problems.add(line, "$.scheduler", "snat chooses no dest", hint=hint)
    if service.bypass:
        hint = "leave one of them out: a bypassed packet keeps its source"
        problems.add(line, "$.bypass", "beside snat", hint=hint)


def check_dest(problems: Problems, line: int, dest: DestLine, service: ServiceLine) -> bool:
    """Whether a dest goes with its service, as far as the two lines say."""
    found = len(problems.found)
    if service.fwdmode in NO_DESTS:
        message = f"service {shown(service.name)} is {service.fwdmode}, which takes no dests"
        hint = "its laddrs are its pool: remove this line"
        if service.fwdmode == "bypass":
            hint = 'set its fwdmode to how packets reach this dest, and "bypass": true'
        problems.add(line, "$.service", message, hint=hint)
    elif dest.fwdmode is not UNSET and dest.fwdmode in NO_DESTS:
        hint = f"{shown(dest.fwdmode)} is a service's fwdmode"
        problems.add(line, "$.fwdmode", "not of a dest", hint=hint)
    if service.proto == "icmp" and dest.dport is not None:
        problems.add(line, "$.dport", "icmp has no ports", hint="leave it out")
    return len(problems.found) == found


def implied(line: ServiceLine) -> tuple[Dest, ...]:
    """The dest that stands for a packet's own destination, where its service sends packets there.

    Its address is the unspecified one, so no line can name it.
    """
    if line.fwdmode not in NO_DESTS and not line.bypass:
        return ()
    nowhere = IPv4Address(0) if version_of(line) == 4 else IPv6Address(0)
    return (
        Dest(
            service=line.name,
            daddr=nowhere,
            dport=None,
            weight=1,
            fwdmode="snat" if line.fwdmode == "snat" else "bypass",
            max_conn=0,
            min_conn=0,
            tunnel=line.tunnel,
        ),
    )
