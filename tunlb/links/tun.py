"""What makes the kernel hand VIPs and laddrs to a TUN, and forward what is written to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import NamedTuple

from pyroute2 import IPRoute

from tunlb.conf.schema import Config
from tunlb.conf.values import IPAddress, IPNetwork
from tunlb.links.change import SYSCTLS, Change, Journal, Setup, apply
from tunlb.links.link import Link, require_in
from tunlb.tap import DeviceError
from tunlb.wiring import owned

PROTOCOL = 116  #: marks the routes and rules that we made (`ip route show proto 116`); 't'
TABLE_BASE = 0x74000000
PRIORITY = 740  #: of our rule: after `local` (0), before `main` (32766) and what VPNs install

DUMMY_ADDRESS = "192.0.0.8"

FIB_RULE_INVERT = 2
RT_SCOPE_LINK = 253
RTPROT_RA = 9


class TunAddresses(NamedTuple):
    """A TUN by its name, and what is routed into it."""

    name: str
    addresses: frozenset[IPAddress]


def service_addresses(config: Config) -> frozenset[IPAddress]:
    """Every VIP and laddr."""
    return frozenset(address for service in config.services for _, address in owned(service))


def tun_addresses(config: Config, also: Iterable[IPAddress] = ()) -> TunAddresses | None:
    """What is routed into the first TUN (None: there is none): the VIPs and laddrs, and those in
    `also`, that no TAP's subnet holds, and the TUN's own addresses.
    """
    tun = next((port for port in config.ports if port.type == "tun"), None)
    if tun is None:
        return None
    on_link = [
        interface.network
        for port in config.ports
        if port.type == "tap"
        for _, interfaces in port.subports()
        for interface in interfaces
    ]
    wanted = service_addresses(config).union(also)
    routed = {a for a in wanted if not any(a in network for network in on_link)}
    return TunAddresses(tun.name, frozenset(routed.union(a.ip for a in tun.addresses)))


def install_tun_routes(
    name: str,
    vips: Collection[IPAddress],
    laddrs: Collection[IPAddress],
    journal: Journal | None = None,
    *,
    only_add: bool = False,
) -> Setup:
    """Make the kernel hand VIPs and laddrs to the TUN, and forward what we write to it. Idempotent.

    Nothing but those addresses is routed into the TUN, from a table of its own that a rule shows to
    every packet *not* coming from the TUN: what we write can therefore not come back by these
    routes, whatever address it has. Call it again with new addresses after a reload, and with the
    same ones after the link was down, which makes the kernel forget its routes. The rule outlives
    the device (and matches an empty table) until `undo`. What an earlier call routed and this one
    does not is taken out, unless `only_add`: somebody may still be using it.

    The sysctls, each only where it differs:

    - forwarding on, or the kernel drops what we write. The switch sets every interface's own, and
      back as well, so its undo puts back what those were. For IPv6, turning it on makes the kernel
      ignore router advertisements, so an interface that owes its default route to one is told to
      go on (accept_ra 2).
    - the reverse path filter off on the TUN: the client's address, which NAT keeps, is behind
      another interface. The larger value of `all` and the interface counts, so where `all` is not
      0, loose (2) it is; and a loose filter drops everything on an interface without an address
      (measured), so the TUN gets one: the dummy address of RFC 7600.
    - no redirects out of the TUN: they are off only if both `all` and the TUN say so; other
      interfaces keep their own.

    Keep the `undo` of every call: a later one holds only what that call changed.
    """
    addresses = [*vips, *laddrs]
    with IPRoute() as ipr:
        link = require_in(ipr, name)
        if not link.up:
            raise DeviceError(f"{name} is down and takes no routes", f"ip link set {name} up")
        changes: list[Change] = []
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            nets = _networks(addresses, version)
            if nets:
                changes += _needs4(ipr, link) if version == 4 else _needs6(ipr)
            rules = _tun_rule(ipr, name, family, bool(nets))
            routes = _tun_routes(ipr, link, family, nets)
            changes += [c for c in (*rules, *routes) if c.verb == "add" or not only_add]
        return apply(ipr, name, changes, journal)


def _networks(addresses: Iterable[IPAddress], version: int) -> list[IPNetwork]:
    """The fewest prefixes that hold exactly these addresses.

    The first address of an IPv6 prefix shorter than /127 gets a route of its own besides: the
    kernel takes it for the subnet-router anycast address (RFC 4291 section 2.6.1), to which it
    sends no ICMPv6 error, and a laddr without packet too big is a black hole.
    """
    if version == 4:
        return [*collapse_addresses(IPv4Network(a) for a in addresses if a.version == 4)]
    nets = [*collapse_addresses(IPv6Network(a) for a in addresses if a.version == 6)]
    return [*nets, *(IPv6Network(net.network_address) for net in nets if net.prefixlen < 127)]


def tun_table(name: str) -> int:
    """The routing table of a TUN port: the same for a device that is made again."""
    return TABLE_BASE | int.from_bytes(blake2b(name.encode(), digest_size=3).digest(), "big")


def _tun_rule(ipr: IPRoute, name: str, family: int, wanted: bool) -> Iterator[Change]:
    table = tun_table(name)
    ip = "ip -6" if family == socket.AF_INET6 else "ip"
    text = f"not iif {name} lookup {table} priority {PRIORITY} protocol {PROTOCOL}"
    arguments = {
        "family": family,
        "priority": PRIORITY,
        "table": table,
        "iifname": name,
        "flags": FIB_RULE_INVERT,
        "protocol": PROTOCOL,
        "action": "to_tbl",
    }
    add = Change("the rule is missing", f"{ip} rule add {text}", "rule", "add", arguments)
    delete = Change("a rule is left over", f"{ip} rule del {text}", "rule", "del", arguments)
    present = any(
        (rule.get("table"), rule.get("iifname"), rule.get("priority")) == (table, name, PRIORITY)
        and rule["flags"] & FIB_RULE_INVERT
        for rule in ipr.get_rules(family=family)
    )
    if wanted and not present:
        yield add._replace(undo=(delete,))
    elif present and not wanted:
        yield delete._replace(needed=False)


def _tun_routes(
    ipr: IPRoute, link: Link, family: int, wanted: Sequence[IPNetwork]
) -> Iterator[Change]:
    table = tun_table(link.name)
    ip = "ip -6" if family == socket.AF_INET6 else "ip"
    present = {
        ip_network((route.get("dst"), route["dst_len"]))
        for route in ipr.get_routes(family=family, table=table)
        if route.get("oif") == link.index and route["proto"] == PROTOCOL and route["dst_len"]
    }
    for net in (*(n for n in wanted if n not in present), *(present - set(wanted))):
        text = f"{net} dev {link.name} table {table} proto {PROTOCOL}"
        arguments = {
            "family": family,
            "dst": str(net),
            "oif": link.index,
            "table": table,
            "proto": PROTOCOL,
        }
        add = Change(f"no route for {net}", f"{ip} route add {text}", "route", "add", arguments)
        delete = Change(f"{net} is routed", f"{ip} route del {text}", "route", "del", arguments)
        if net in present:
            yield delete._replace(needed=False)
        else:
            yield add._replace(undo=(delete,))


def _needs4(ipr: IPRoute, link: Link) -> Iterator[Change]:
    conf = f"ipv4/conf/{link.name}"
    if _sysctl("ipv4/ip_forward") != "1":
        yield _forward("ipv4/ip_forward")
    elif _sysctl(f"{conf}/forwarding") != "1":
        yield _set(f"{conf}/forwarding", "1")
    if _sysctl("ipv4/conf/all/rp_filter") == "0":
        if _sysctl(f"{conf}/rp_filter") == "1":
            yield _set(f"{conf}/rp_filter", "0")
    else:
        if "2" not in (_sysctl("ipv4/conf/all/rp_filter"), _sysctl(f"{conf}/rp_filter")):
            yield _set(f"{conf}/rp_filter", "2")
        if not [*ipr.get_addr(family=socket.AF_INET, index=link.index)]:
            yield _dummy_address(link)
    for where in ("ipv4/conf/all", conf):
        if _sysctl(f"{where}/send_redirects") != "0":
            yield _set(f"{where}/send_redirects", "0", needed=False)


def _dummy_address(link: Link) -> Change:
    text = f"{DUMMY_ADDRESS}/32 dev {link.name} scope link"
    arguments = {
        "index": link.index,
        "address": DUMMY_ADDRESS,
        "prefixlen": 32,
        "scope": RT_SCOPE_LINK,
    }
    delete = Change("an address is left over", f"ip addr del {text}", "addr", "del", arguments)
    add = Change("it has no IPv4 address", f"ip addr add {text}", "addr", "add", arguments)
    return add._replace(undo=(delete,))


def _needs6(ipr: IPRoute) -> Iterator[Change]:
    if _sysctl("ipv6/conf/all/forwarding") == "1":
        return
    advertised = {
        route.get("oif")
        for route in ipr.get_default_routes(family=socket.AF_INET6)
        if route["proto"] == RTPROT_RA
    }
    for index in sorted(advertised - {None}):
        path = f"ipv6/conf/{socket.if_indextoname(index)}/accept_ra"
        if _sysctl(path) == "1":
            yield _set(path, "2")
    yield _forward("ipv6/conf/all/forwarding")


def _forward(switch: str) -> Change:
    family = switch.partition("/")[0]
    conf = f"{family}/conf"
    own = (f"{conf}/{name}/forwarding" for name in os.listdir(SYSCTLS / conf) if name != "all")
    old = _sysctl(switch)
    again = [path for path in own if _sysctl(path) != old]
    if family == "ipv4" and _sysctl(f"{conf}/all/accept_redirects") == "0":
        # To the kernel, forwarding off means a host, which heeds redirects.
        again.append(f"{conf}/all/accept_redirects")
    change = _set(switch, "1")
    return change._replace(undo=(*change.undo, *map(_back, again)))


def _sysctl(path: str) -> str:
    try:
        return (SYSCTLS / path).read_text().strip()
    except OSError as error:
        hint = "is this IP version disabled in the kernel?"
        raise DeviceError(f"cannot read {SYSCTLS / path}: {error.strerror}", hint) from error


def _set(path: str, value: str, needed: bool = True) -> Change:
    change = _write(path, value)
    return change._replace(needed=needed, undo=(_back(path),))


def _back(path: str) -> Change:
    """What puts a sysctl back to its value of now."""
    return _write(path, _sysctl(path))


def _write(path: str, value: str) -> Change:
    # In its own notation a dot in a device's name would be a separator, and a slash is not.
    command = f"sysctl -w net/{path}={value}"
    arguments = {"path": path, "value": value}
    return Change(f"{path} is {_sysctl(path)}", command, "sysctl", "set", arguments)
