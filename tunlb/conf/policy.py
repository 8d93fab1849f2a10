"""Checks of what a service does with its conns: persistence, one-packet scheduling, limits, ends,
slow start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from tunlb.conf.errors import Problems, one_of, shown
from tunlb.conf.parsed import Parsed
from tunlb.conf.service import DestLine, ServiceLine, version_of, vport_of
from tunlb.conf.values import IPAddress

#: Modes in which a datagram needs no conn: the dest answers the client itself, or from an endpoint
#: that tells what the client asked. With fnat the dest does not know the client.
OPS_FWDMODES: Final = ("nat", "dr", "tunnel")
#: Modes in which both directions pass, so that both sides' sequence numbers are known.
RESET_FWDMODES: Final = ("fnat", "nat")
#: Our schedulers to which twice the weight is twice the share, and which make no table of it: a
#: table made anew at each step would move clients that have nothing to do with it.
SLOW_START_SCHEDULERS: Final = ("wrr", "wlc", "sed", "nq", "twos")


def check(problems: Problems, parsed: Parsed) -> None:
    """Adds what is wrong with the policies of services and dests."""
    services = {service.name: service for service in parsed.of(ServiceLine)}
    for line, service in parsed.numbered(ServiceLine):
        for path, message, hint in _of_service(service):
            problems.add(line, path, message, hint=hint)
    answering: dict[tuple[IPAddress, int | None], int] = {}
    for line, dest in parsed.numbered(DestLine):
        whose = services.get(dest.service)
        for path, message, hint in _of_dest(dest, whose):
            problems.add(line, path, message, hint=hint)
        if whose is not None and whose.ops and _fwdmode(dest, whose) == "nat":
            for path, message, hint in _of_answers(line, dest, whose, answering):
                problems.add(line, path, message, hint=hint)


def _of_service(service: ServiceLine) -> Iterator[tuple[str, str, str]]:
    mask = service.persistence_mask
    if mask is not None and service.persistence_s == 0:
        yield "$.persistence_mask", "without persistence_s it means nothing", "set persistence_s"
    if mask is not None and mask > 32 and version_of(service) == 4:
        yield "$.persistence_mask", f"{mask} bits, and an IPv4 address has 32", ""
    if service.fallback and service.persistence_s:
        message = "with fallback any director has to choose alike, and templates are one's own"
        yield "$.persistence_s", message, "set one of the two"
    if service.ops:
        yield from _of_ops(service)
    if service.reset_on_expire:
        if service.proto != "tcp":
            message = f"{service.proto} has no RST"
            yield "$.reset_on_expire", message, "leave it out"
        elif service.fwdmode not in RESET_FWDMODES:
            yield "$.reset_on_expire", *_one_sided(service.fwdmode)
    name = str(service.scheduler)
    if service.slow_start_s and ":" not in name and name not in SLOW_START_SCHEDULERS:
        message = f"to {name}, weights are no shares that could grow"
        yield "$.slow_start_s", message, f'set "scheduler" to {one_of(SLOW_START_SCHEDULERS)}'


def _of_ops(service: ServiceLine) -> Iterator[tuple[str, str, str]]:
    if service.proto != "udp":
        yield "$.ops", f"{service.proto} needs conns", "one-packet scheduling is for udp"
    elif service.fwdmode not in OPS_FWDMODES:
        yield "$.ops", *_unanswered(service.fwdmode)
    if service.persistence_s:
        yield "$.persistence_s", "with ops each datagram is scheduled anew", "set one of the two"
    if service.max_conn:
        yield "$.max_conn", "with ops there are no conns to count", "set one of the two"


def _of_dest(dest: DestLine, service: ServiceLine | None) -> Iterator[tuple[str, str, str]]:
    if dest.min_conn and not dest.max_conn:
        yield "$.min_conn", "without max_conn it means nothing", "set max_conn"
    elif dest.min_conn > dest.max_conn:
        yield "$.min_conn", f"{dest.min_conn} is above max_conn ({dest.max_conn})", ""
    if service is None or dest.fwdmode is UNSET or dest.fwdmode == service.fwdmode:
        return
    if service.ops and dest.fwdmode not in OPS_FWDMODES:
        yield "$.fwdmode", *_unanswered(dest.fwdmode)
    if service.reset_on_expire and dest.fwdmode not in RESET_FWDMODES:
        yield "$.fwdmode", *_one_sided(dest.fwdmode)


def _of_answers(
    line: int,
    dest: DestLine,
    service: ServiceLine,
    answering: dict[tuple[IPAddress, int | None], int],
) -> Iterator[tuple[str, str, str]]:
    """Through nat, a dest's endpoint has to tell the service and the port that a client asked."""
    if service.match is not None:
        message = "with ops and nat nobody could tell which address of a match was asked"
        yield "$.daddr", message, 'set "fwdmode" to "dr" or "tunnel"'
        return
    vport = vport_of(service)
    if dest.dport is not None and vport.single is None:
        message = f"with ops and nat nobody could tell which port of {vport} was asked"
        yield "$.dport", message, "leave it out, or have a service for each port"
        return
    dport = vport.single if dest.dport is None else dest.dport
    first = answering.setdefault((dest.daddr, dport), line)
    if first != line:
        message = f"with ops and nat nobody could tell its answers from those of line {first}"
        yield "$.daddr", message, "give the dest another address or dport for each service"


def _fwdmode(dest: DestLine, service: ServiceLine) -> str:
    return service.fwdmode if dest.fwdmode is UNSET else dest.fwdmode


def _unanswered(fwdmode: str) -> tuple[str, str]:
    message = f"with ops nobody could tell whose answer it is that comes back through {fwdmode}"
    return message, f'set "fwdmode" to {one_of(OPS_FWDMODES)}'


def _one_sided(fwdmode: str) -> tuple[str, str]:
    message = f"with {shown(fwdmode)} the dest's packets do not pass"
    return message, f'reset_on_expire needs "fwdmode" {one_of(RESET_FWDMODES)}'
