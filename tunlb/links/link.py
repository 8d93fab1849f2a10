"""The kernel's side of a port: its interface, MTU, bridge and addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple

from pyroute2 import IPRoute

from tunlb.conf.schema import Port
from tunlb.conf.values import IPAddress, IPInterface
from tunlb.links.change import SYSCTLS, Change, Journal, Setup, apply
from tunlb.tap import DeviceError

IFF_UP = 1
IFA_F_NODAD = 2
IFLA_TUN_TYPE_TUN = 1


class TunTap(NamedTuple):
    """What a TUN or TAP device is: `owner` None = anybody may attach to it."""

    type: Literal["tap", "tun"]
    owner: int | None
    persistent: bool
    multi_queue: bool
    attached: bool  # some process has a queue of it


@dataclass(frozen=True, kw_only=True)
class Link:
    """An interface of the kernel. `mac` is empty on a TUN; `master` is a bridge's index or 0.

    `device` is None for what is neither a TUN nor a TAP.
    """

    index: int
    name: str
    kind: str
    mac: bytes
    up: bool
    mtu: int
    txqueuelen: int
    master: int
    hairpin: bool
    device: TunTap | None


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
        device=_tuntap(link) if link.get(("linkinfo", "kind")) == "tun" else None,
    )


def _tuntap(link: Any) -> TunTap:
    def get(key: str) -> int | None:
        value: int | None = link.get(("linkinfo", "data", key))
        return value

    # The kernel counts queues of multi-queue devices only. Any device that is not attached has no
    # carrier, but one whose carrier somebody switched off may be.
    queues = (get("tun_num_queues") or 0) + (get("tun_num_disabled_queues") or 0)
    return TunTap(
        type="tun" if get("tun_type") == IFLA_TUN_TYPE_TUN else "tap",
        owner=get("tun_owner"),
        persistent=bool(get("tun_persist")),
        multi_queue=bool(get("tun_multi_queue")),
        attached=queues > 0 or bool(link.get("carrier")),
    )


def carries(port: Port) -> bool:
    """Does the device of this port reach anybody, as far as the kernel knows: it is up, and so are
    its bridge and one more member of that?
    """
    with IPRoute() as ipr:
        found = {link["index"]: link for link in ipr.get_links()}
    by_name = {link.get("ifname"): link for link in found.values()}
    own = by_name.get(port.name)
    if own is None or not own["flags"] & IFF_UP:
        return False
    if port.bridge is None:
        return True
    bridge = by_name.get(port.bridge)
    if bridge is None or not bridge["flags"] & IFF_UP or own.get("master") != bridge["index"]:
        return False
    return any(
        link.get("master") == bridge["index"]
        and link["flags"] & IFF_UP
        and bool(link.get("carrier"))
        for link in found.values()
        if link is not own
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


def configure_port(port: Port, journal: Journal | None = None) -> Setup:
    """MTU, queue length, bridge, up, addresses: the kernel's side as the port line wants it.

    The device must exist (`tap.open_device`). Its MAC stays as it is. Raises DeviceError; without
    permission, only for what is missing and needed.
    """
    with IPRoute() as ipr:
        link = require_in(ipr, port.name)
        changes = [
            *_link_changes(ipr, link, port),
            # With a host beside the port they are that one's, see links/host.py.
            *_missing_addresses(ipr, link, () if port.host else port.host_addresses),
        ]
        setup = apply(ipr, port.name, changes, journal)
    return setup._replace(warnings=(*setup.warnings, *filtered(port)))


def filtered(port: Port) -> Iterator[str]:
    """Where br_netfilter is loaded (by Docker, for one) frames on every bridge pass iptables unless
    its switches say no. Theirs is the whole machine, so we only tell.
    """
    switches = [f"bridge/bridge-nf-call-{tables}" for tables in ("iptables", "ip6tables")]
    paths = [SYSCTLS / switch for switch in switches]
    if port.bridge is not None and any(
        path.exists() and path.read_text().strip() == "1" for path in paths
    ):
        command = " ".join(f"net.{switch.replace('/', '.')}=0" for switch in switches)
        yield (
            f"{port.name}: frames on {port.bridge} pass iptables, which takes up to half of the "
            f"speed; better, unless a firewall here counts on that: sysctl -w {command}"
        )


def _link_changes(ipr: IPRoute, link: Link, port: Port) -> Iterator[Change]:
    if link.mtu != port.mtu:
        yield attribute(link, "mtu", port.mtu, link.mtu)
    if link.txqueuelen != port.txqueuelen:
        change = attribute(link, "txqueuelen", port.txqueuelen, link.txqueuelen, "txqlen")
        yield change._replace(needed=False)
    if port.bridge is not None:
        bridge = _bridge(ipr, port.bridge)
        if link.master != bridge.index:
            yield _attach(ipr, link, bridge)
    if not link.up:
        yield up(link)


def up(link: Link) -> Change:
    """Sets a link up."""
    down = Change("up", f"ip link set {link.name} down", *_of(link, state="down"))
    change = Change("down", f"ip link set {link.name} up", *_of(link, state="up"))
    return change._replace(undo=(down,))


def _of(link: Link, **keys: object) -> tuple[str, str, dict[str, object]]:
    return "link", "set", {"index": link.index, **keys}


def attribute(
    link: Link, key: str, new: int | str, old: int | str, netlink_key: str = ""
) -> Change:
    """Sets an attribute of a link; ``netlink_key`` where that differs from the command's."""
    attribute = netlink_key or key
    command = f"ip link set {link.name} {key}"
    back = Change(f"{key} is {new}", f"{command} {old}", *_of(link, **{attribute: old}))
    change = Change(f"{key} is {old}", f"{command} {new}", *_of(link, **{attribute: new}))
    return change._replace(undo=(back,))


def _attach(ipr: IPRoute, link: Link, bridge: Link) -> Change:
    command = f"ip link set {link.name}"
    before = next((x.name for x in map(link_from, ipr.get_links()) if x.index == link.master), "")
    back = Change(
        f"in the bridge {bridge.name}",
        f"{command} master {before}" if before else f"{command} nomaster",
        *_of(link, master=link.master),
    )
    change = Change(
        f"not in the bridge {bridge.name}",
        f"{command} master {bridge.name}",
        *_of(link, master=bridge.index),
    )
    return change._replace(undo=(back,))


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
        yield address_change(link, address.ip, prefix_len)


def address_change(link: Link, ip: IPAddress, prefix_len: int) -> Change:
    """Adds an address to a link."""
    arguments = {"index": link.index, "address": str(ip), "prefixlen": prefix_len}
    address = f"{ip}/{prefix_len}"
    delete = Change(
        f"it has {address}",
        f"ip addr del {address} dev {link.name}",
        "addr",
        "del",
        dict(arguments),
    )
    command = f"ip addr add {address} dev {link.name}"
    if ip.version == 6:
        # Nobody else is on this link who could have the address.
        arguments["flags"] = IFA_F_NODAD
        command += " nodad"
    add = Change(f"{address} is missing", command, "addr", "add", arguments)
    return add._replace(undo=(delete,))
