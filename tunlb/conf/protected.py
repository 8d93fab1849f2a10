"""Checks of acl and tc lines against services and ports."""

from __future__ import annotations

from tunlb.conf.errors import Problems, did_you_mean, shown
from tunlb.conf.net import Network
from tunlb.conf.parsed import Parsed
from tunlb.conf.protection import ACL_MAX, TC_MAX, Acl, Tc
from tunlb.conf.service import ServiceLine, version_of


def check(problems: Problems, parsed: Parsed, network: Network) -> None:
    """Adds what is wrong with lists and classes."""
    services = {service.name: service for service in parsed.of(ServiceLine)}
    acls = parsed.numbered(Acl)
    if len(acls) > ACL_MAX:
        message = f"{len(acls)} acl lines, more than {ACL_MAX}"
        hint = "this is the first line too many: write neighbouring addresses as prefixes"
        problems.add(acls[ACL_MAX][0], "", message, hint=hint)
    first: dict[object, int] = {}
    for line, acl in acls:
        before = first.setdefault((acl.service, acl.action, acl.src), line)
        if before != line:
            message = f"{acl.action} {acl.src} is already on line {before}"
            problems.add(line, "$.src", message, hint="keep one")
        if acl.service is None:
            continue
        service = services.get(acl.service)
        if service is None:
            _dangling(problems, parsed, line, acl.service)
        elif service.vaddr is None:
            message = f"service {shown(service.name)} has a match, of which no list is asked"
            hint = "name the sources in the match: other packets are none of the service's"
            problems.add(line, "$.service", message, hint=hint)
        elif version_of(service) != acl.src.version:
            message = (
                f"{acl.src} is IPv{acl.src.version},"
                f" the vaddr of service {shown(service.name)} is IPv{version_of(service)}"
            )
            problems.add(line, "$.src", message, hint="its clients are of the vaddr's family")
    for line, service in parsed.numbered(ServiceLine):
        if service.conn_burst and not service.conn_rate:
            message = "a burst of no rate"
            problems.add(line, "$.conn_burst", message, hint='add "conn_rate"')
    _classes(problems, parsed, network, services)


def _classes(
    problems: Problems, parsed: Parsed, network: Network, services: dict[str, ServiceLine]
) -> None:
    classes = parsed.numbered(Tc)
    if len(classes) > TC_MAX:
        message = f"{len(classes)} tc lines, more than {TC_MAX}"
        problems.add(classes[TC_MAX][0], "", message, hint="this is the first line too many")
    first: dict[object, int] = {}
    for line, tc in classes:
        before = first.setdefault((tc.port, tc.service), line)
        if before != line:
            what = "the port's own class" if tc.service is None else f"class {shown(tc.service)}"
            message = f"{what} on port {shown(tc.port)} is already on line {before}"
            problems.add(line, "$.port", message, hint="keep one")
        if tc.port not in network.types and parsed.whole("port"):
            names = list(network.types)
            hint = did_you_mean(tc.port, names) or f"the ports are {', '.join(names) or 'none'}"
            problems.add(line, "$.port", f"no port is named {shown(tc.port)}", hint=hint)
        if tc.service is None and tc.rate is None:
            hint = "a line without a service is the rate of its whole port"
            problems.add(line, "$.rate", "missing", hint=hint)
        if tc.service is not None and tc.service not in services:
            _dangling(problems, parsed, line, tc.service)


def _dangling(problems: Problems, parsed: Parsed, line: int, name: str) -> None:
    if not parsed.declares("service", name) and not parsed.unreadable:
        hint = did_you_mean(name, parsed.names("service"))
        problems.add(line, "$.service", f"no service is named {shown(name)}", hint=hint)
