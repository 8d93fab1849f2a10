"""Checks of `client_ip`: what can carry a client's address, and in which modes."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET

from tunlb.conf.errors import Problems, shown
from tunlb.conf.match import PREFIXES_MAX
from tunlb.conf.parsed import Parsed
from tunlb.conf.service import DestLine, ServiceLine, version_of

#: The modes in which both directions pass and addresses are rewritten.
MODES: Final = ("fnat", "nat")


def check(problems: Problems, parsed: Parsed) -> None:
    """Adds what is wrong with `client_ip` of services, and with dests of those that have it."""
    telling: dict[str, str] = {}
    for line, service in parsed.numbered(ServiceLine):
        if service.client_ip_trust:
            _trust(problems, line, service)
        if service.client_ip == "none":
            continue
        telling[service.name] = service.client_ip
        wanted = ("tcp", "udp") if service.client_ip == "proxy-v2" else ("tcp",)
        if service.proto not in wanted:
            message = f"{shown(service.client_ip)} is not for {service.proto}"
            hint = 'use "proxy-v2"' if service.proto == "udp" else ""
            problems.add(line, "$.client_ip", message, hint=hint)
        if service.fallback and service.client_ip != "toa":
            message = f"not with client_ip {shown(service.client_ip)}"
            hint = "what a header moved is known to the director that put it there: use a snapshot"
            problems.add(line, "$.fallback", message, hint=hint)
        if service.fwdmode not in MODES:
            _mode(problems, line, "$.client_ip", service.client_ip, service.fwdmode)
    for line, dest in parsed.numbered(DestLine):
        how = telling.get(dest.service)
        if how is not None and dest.fwdmode is not UNSET and dest.fwdmode not in MODES:
            _mode(problems, line, "$.fwdmode", how, dest.fwdmode)


def _trust(problems: Problems, line: int, service: ServiceLine) -> None:
    path = "$.client_ip_trust"
    if service.client_ip == "none":
        hint = "leave it out: what a client says passes as it is"
        problems.add(line, path, "there is no client_ip that it could do instead", hint=hint)
    if service.client_ip == "toa" and service.synproxy:
        hint = "the ACK that opens the dest's connection is tunlb's own, without their option"
        problems.add(line, path, "not with toa and the SYN proxy", hint=hint)
    if len(service.client_ip_trust) > PREFIXES_MAX:
        message = f"{len(service.client_ip_trust)} prefixes, more than {PREFIXES_MAX}"
        problems.add(line, path, message, hint="use shorter prefixes")
    version = version_of(service)
    for index, prefix in enumerate(service.client_ip_trust):
        if version and prefix.version != version:
            message = f"{prefix} is IPv{prefix.version}, the service's clients are IPv{version}"
            problems.add(line, f"{path}[{index}]", message, hint="leave it out")


def _mode(problems: Problems, line: int, path: str, how: str, fwdmode: str) -> None:
    message = f"client_ip {shown(how)} does not go with fwdmode {shown(fwdmode)}"
    hint = 'use "fnat" or "nat": tunlb has to see and to change both directions'
    problems.add(line, path, message, hint=hint)
