"""The kernel's side of a port: its interface, MTU, bridge and addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any

from pyroute2 import IPRoute

from tunlb.conf.schema import Port
from tunlb.conf.values import IPInterface
from tunlb.links.change import Change, Setup, apply
from tunlb.tap import DeviceError

IFF_UP = 1
IFA_F_NODAD = 2


@dataclass(frozen=True, kw_only=True)
class Link:
    """An interface of the kernel. `mac` is empty on a TUN; `master` is a bridge's index or 0."""

    index: int
    name: str
    kind: str
    mac: bytes
    up: bool
    mtu: int
    txqueuelen: int
    master: int
    hairpin: bool


def find_link(name: str) -> Link | None:
    """The interface of that name in this network namespace."""
    with IPRoute() as ipr:
        return find_in(ipr, name)


def find_in(ipr: IPRoute, name: str) -> Link | None:
    # Asked by name in a dump: a request for one unknown name is an error that differs by kernel.
    for link in ipr.get_links():
        if link.get("ifname") == name:
            return link_from(link)
    return None


def require_in(ipr: IPRoute, name: str) -> Link:
    link = find_in(ipr, name)
    if link is None:
        raise DeviceError(f"there is no device {name} in this network namespace", "see ip link")
    return link


def link_from(link: Any) -> Link:
    return Link(
        index=link["index"],
        name=link.get("ifname"),
        kind=link.get(("linkinfo", "kind")) or "",
        mac=bytes.fromhex((link.get("address") or "").replace(":", "")),
        up=bool(link["flags"] & IFF_UP),
        mtu=link.get("mtu") or 0,
        txqueuelen=link.get("txqlen") or 0,
        master=link.get("master") or 0,
        hairpin=bool(link.get(("linkinfo", "slave_data", "mode"))),
    )


def derive_mac(kernel_mac: bytes, name: str) -> int:
    """The MAC address of our side: locally administered, unicast, never the kernel side's.

    It is as stable as the kernel side's, which is drawn when a device is made: a persistent device
    keeps its MACs over restarts. For any other, the configuration's `mac` fixes ours.
    """
    digest = blake2b(kernel_mac + name.encode(), digest_size=6).digest()
    # One bit is always the other way round on the kernel's side.
    first = (digest[0] & 0xF8) | (~kernel_mac[0] & 0x04) | 0x02
    return int.from_bytes(bytes([first]) + digest[1:], "big")


def configure_port(port: Port) -> Setup:
    """MTU, queue length, bridge, up, addresses: the kernel's side as the port line wants it.

    The device must exist (`tap.open_device`). Its MAC stays as it is. Raises DeviceError; without
    permission, only for what is missing and needed.
    """
    name = port.name
    with IPRoute() as ipr:
        link = require_in(ipr, name)
        changes: list[Change] = []

        def want(
            what: str, command: str, arguments: Mapping[str, Any], needed: bool = True
        ) -> None:
            changes.append(
                Change(what, command, "link", "set", {"index": link.index, **arguments}, needed)
            )

        if link.mtu != port.mtu:
            want(f"mtu is {link.mtu}", f"ip link set {name} mtu {port.mtu}", {"mtu": port.mtu})
        if link.txqueuelen != port.txqueuelen:
            want(
                f"txqueuelen is {link.txqueuelen}",
                f"ip link set {name} txqueuelen {port.txqueuelen}",
                {"txqlen": port.txqueuelen},
                needed=False,
            )
        if port.bridge is not None:
            bridge = _bridge(ipr, port.bridge)
            if link.master != bridge.index:
                command = f"ip link set {name} master {bridge.name}"
                want(f"not in the bridge {bridge.name}", command, {"master": bridge.index})
        if not link.up:
            want("down", f"ip link set {name} up", {"state": "up"})
        changes += _missing_addresses(ipr, link, port.host_addresses)
        return apply(ipr, name, changes)


def _bridge(ipr: IPRoute, name: str) -> Link:
    make = f"ip link add {name} type bridge && ip link set {name} up"
    bridge = find_in(ipr, name)
    if bridge is None:
        raise DeviceError(f"there is no bridge {name}", make)
    if bridge.kind != "bridge":
        raise DeviceError(
            f"{name} is not a bridge but a {bridge.kind or 'device'}", "see ip -d link"
        )
    if not bridge.up:
        raise DeviceError(
            f"the bridge {name} is down, nothing would pass", f"ip link set {name} up"
        )
    return bridge


def _missing_addresses(ipr: IPRoute, link: Link, wanted: Iterable[IPInterface]) -> Iterator[Change]:
    present = {
        (ip_address(a.get("local") or a.get("address")), a["prefixlen"])
        for a in ipr.get_addr(index=link.index)
    }
    for address in wanted:
        prefix_len = address.network.prefixlen
        if (address.ip, prefix_len) in present:
            continue
        arguments = {"index": link.index, "address": str(address.ip), "prefixlen": prefix_len}
        command = f"ip addr add {address} dev {link.name}"
        if address.version == 6:
            # Nobody else is on this link who could have the address.
            arguments["flags"] = IFA_F_NODAD
            command += " nodad"
        yield Change(f"{address} is missing", command, "addr", "add", arguments)
