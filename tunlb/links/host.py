"""The kernel's side of a port's host: a TAP with the port's own MAC address, its addresses, and who
answers for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from pyroute2 import IPRoute

from tunlb.conf.schema import Port
from tunlb.conf.values import IPAddress
from tunlb.links.change import SYSCTLS, Change, Journal, Setup, apply
from tunlb.links.link import Link, address_change, attribute, require_in, up
from tunlb.tap import DeviceError


def configure_host(
    port: Port,
    mac: int,
    addresses: Iterable[tuple[IPAddress, int]],
    members: Iterable[str],
    journal: Journal | None = None,
) -> Setup:
    """MAC address, MTU, queue length, up, ``addresses`` (with their prefix lengths), and the
    switches below. The device must exist. Raises DeviceError; without permission, only for what is
    missing and needed.

    - `arp_ignore` on the host and on ``members``, the bridges (or, without one, devices) of the
      port and its backups: else the kernel answers there, with another MAC address, for addresses
      that it has here, and clients pass us by.
    - `arp_announce` on the host: it asks with an address of its own.
    - the reverse path filter no more than loose: another interface may well be in the same subnet.
    - no forwarding of what comes in by the host: it is for this machine, or for nobody.
    - IPv6 on, where an address of it is wanted.
    """
    assert port.host is not None
    wanted = list(addresses)
    with IPRoute() as ipr:
        link = require_in(ipr, port.host)
        refuse_bridge(link)
        changes = [
            *_switches(link, members, any(address.version == 6 for address, _ in wanted)),
            *_link_changes(link, port, mac),
            *_missing(ipr, link, wanted),
        ]
        return apply(ipr, link.name, changes, journal)


def refuse_bridge(link: Link) -> None:
    """Raises DeviceError if the host's side is a member of a bridge."""
    if link.master:
        raise DeviceError(
            f"{link.name} is on a bridge, where it would make a loop",
            f"ip link set {link.name} nomaster",
        )


def left_over(
    undo: Collection[Change], index: int, wanted: Iterable[tuple[IPAddress, int]]
) -> list[Change]:
    """What of ``undo`` takes away addresses of the link ``index`` that are not ``wanted``."""
    stay = set(wanted)
    return [
        change
        for change in undo
        if change.call == "addr"
        and change.arguments["index"] == index
        and (ip_address(change.arguments["address"]), change.arguments["prefixlen"]) not in stay
    ]


def _missing(ipr: IPRoute, link: Link, wanted: Iterable[tuple[IPAddress, int]]) -> Iterator[Change]:
    present = {
        (ip_address(a.get("local") or a.get("address")), a["prefixlen"])
        for a in ipr.get_addr(index=link.index)
    }
    for address, length in wanted:
        if (address, length) not in present:
            yield address_change(link, address, length)


def _link_changes(link: Link, port: Port, mac: int) -> Iterator[Change]:
    ours = mac.to_bytes(6, "big")
    if link.mac != ours:
        yield attribute(link, "address", ours.hex(":"), link.mac.hex(":"))
    if link.mtu != port.mtu:
        yield attribute(link, "mtu", port.mtu, link.mtu)
    if link.txqueuelen != port.txqueuelen:
        change = attribute(link, "txqueuelen", port.txqueuelen, link.txqueuelen, "txqlen")
        yield change._replace(needed=False)
    if not link.up:
        yield up(link)


def _switches(link: Link, members: Iterable[str], v6: bool) -> Iterator[Change]:
    own = f"ipv4/conf/{link.name}"
    for conf in (own, *(f"ipv4/conf/{name}" for name in members)):
        # The larger of `all` and the interface counts, for these and for the filter.
        if _largest(conf, "arp_ignore") == 0:
            yield _set(f"{conf}/arp_ignore", 1)
    if _largest(own, "arp_announce") < 2:
        yield _set(f"{own}/arp_announce", 2, needed=False)
    if _largest(own, "rp_filter") == 1:
        yield _set(f"{own}/rp_filter", 2)
    if _read(f"{own}/forwarding") != 0:
        yield _set(f"{own}/forwarding", 0, needed=False)
    if v6 and _read(f"ipv6/conf/{link.name}/disable_ipv6") != 0:
        yield _set(f"ipv6/conf/{link.name}/disable_ipv6", 0)


def _largest(conf: str, switch: str) -> int:
    return max(_read(f"{conf}/{switch}"), _read(f"ipv4/conf/all/{switch}"))


def _read(path: str) -> int:
    try:
        return int((SYSCTLS / path).read_text())
    except OSError as error:
        hint = "is this IP version disabled in the kernel?"
        raise DeviceError(f"cannot read {SYSCTLS / path}: {error.strerror}", hint) from error


def _set(path: str, value: int, needed: bool = True) -> Change:
    def write(number: int) -> tuple[str, str, str, dict[str, Any]]:
        command = f"sysctl -w net/{path}={number}"
        return command, "sysctl", "set", {"path": path, "value": str(number)}

    old = _read(path)
    back = Change(f"{path} is {value}", *write(old))
    return Change(f"{path} is {old}", *write(value), needed, (back,))
