"""`tunlb setup` and `tunlb teardown`: all that needs privilege, in advance, and taken back exactly.

After setup a process of the devices' owner runs tunlb without a capability. Persistent devices have
several queues whatever `workers` says, so that raising it later needs no privilege.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tunlb.conf import Config
from tunlb.conf import Port as PortConf
from tunlb.conf.host import host_interfaces, host_members
from tunlb.device import NODE, DeviceError, holders, open_device
from tunlb.links.change import Change, Journal, Setup, merge_undo, take_back
from tunlb.links.host import configure_host
from tunlb.links.link import Link, configure_port, derive_mac, find_in, find_link, link_from
from tunlb.links.record import MadeDevice, Record, Store, locked
from tunlb.links.tun import install_tun_routes, tun_addresses

# ioctl numbers of linux/if_tun.h
TUNSETPERSIST: Final = 0x400454CB
TUNSETOWNER: Final = 0x400454CC


class Prepared(NamedTuple):
    """What was changed, as commands that do the same, and what the operator should know."""

    changed: tuple[str, ...]
    warnings: tuple[str, ...]


class Removed(NamedTuple):
    """What was taken back, as commands; and, with the reason, what could not be."""

    undone: tuple[str, ...]
    failed: tuple[str, ...]


class InUse(Exception):
    """A device has a process that uses it."""


def setup(config: Config, control: str, owner: int, workers: int) -> Prepared:
    """Make the devices of the uid `owner`, set their links up, and route VIPs into the TUN.

    Changes only what differs, so it can be run again, after the configuration was changed, and also
    while tunlb runs. Raises DeviceError or RecordError, and has then changed nothing.
    """
    with locked(control):
        store = Store(control)
        before = store.record
        work = _Setup(store, owner, workers)
        try:
            work.run(config)
        except BaseException as error:
            _, left, failed = _take_back(store.record.since(before))
            store.save(
                before._replace(
                    directories=store.record.directories,
                    devices=(*before.devices, *left.devices),
                    undo=(*left.undo, *before.undo),
                )
            )
            for text in failed:
                error.add_note(f"not taken back, left to `tunlb teardown`: {text}")
            raise
        return Prepared(tuple(work.changed), tuple(work.warnings))


def teardown(config: Config, control: str) -> Removed | None:
    """Take back what `setup` changed, and nothing else; None when it has changed nothing.

    What cannot be taken back stays in the record, for another try. Raises InUse or RecordError.
    """
    with locked(control):
        store = Store(control)
        if store.record.empty:
            return None
        with IPRoute() as ipr:
            links = [_find(ipr, device) for device in store.record.devices]
            links += [find_in(ipr, port.name) for port in config.ports]
            links += [find_in(ipr, port.host) for port in config.ports if port.host is not None]
        for link in links:
            if link is not None and link.device is not None and link.device.attached:
                raise InUse(
                    f"the device {link.name} is in use by "
                    f"{holders(link.name) or 'another process'}: stop tunlb first"
                )
        undone, left, failed = _take_back(store.record)
        store.save(left._replace(directories=store.record.directories))
        return Removed(tuple(undone), tuple(failed))


class _Setup:
    """One run of setup."""

    def __init__(self, store: Store, owner: int, workers: int) -> None:
        self.store = store
        self.owner = owner
        self.workers = workers
        self.changed: list[str] = []
        self.warnings: list[str] = []

    def run(self, config: Config) -> None:
        used = [self._port(port) for port in config.ports]
        for port in config.ports:
            if port.host is not None:
                self._host(config, port, port.host)
        tun = tun_addresses(config)
        if tun is not None:
            # A running tunlb may still drain conns of addresses that were taken out.
            only_add = any(used)
            self._record(
                lambda journal: install_tun_routes(
                    tun.name, tun.addresses, (), journal, only_add=only_add
                )
            )
        if not _opens(NODE, self.owner):
            self.warnings.append(
                f"user {self.owner} may not open {NODE}: to start `tunlb run` as this user, "
                f"chmod 0666 {NODE} (making devices needs CAP_NET_ADMIN all the same)"
            )

    def _port(self, port: PortConf) -> bool:
        """Whether somebody uses the device."""
        link = find_link(port.name)
        if link is None:
            link = self._make(port)
        else:
            self._check(port, link)
        if self._made(link):
            # The end of the device is the way back.
            self._add(configure_port(port))
        else:
            self._record(lambda journal: configure_port(port, journal))
        return link.device is not None and link.device.attached

    def _host(self, config: Config, port: PortConf, name: str) -> None:
        beside = find_link(port.name)
        if beside is None:
            raise DeviceError(f"{port.name} vanished while it was set up")
        mac = derive_mac(beside.mac, port.name) if port.mac is None else int.from_bytes(port.mac)
        device = msgspec.structs.replace(port, name=name)
        link = find_link(name)
        if link is None:
            link = self._make(device)
        else:
            self._check(device, link)
        addresses = list(host_interfaces(config, port))
        self._made(link)
        # Also where its end is the way back: the port's bridge has a switch that is not its.
        members = host_members(config, port)
        self._record(lambda journal: configure_host(port, mac, addresses, members, journal))

    def _made(self, link: Link) -> bool:
        """Whether this setup or an earlier one made it; one that was killed at it learns so."""
        record = self.store.record
        if MadeDevice(link.name) in record.devices:
            self.store.save(record.with_device(link.name, link.index))
            return True
        return MadeDevice(link.name, link.index) in record.devices

    def _make(self, port: PortConf) -> Link:
        self.store.save(self.store.record.with_device(port.name))
        fd = open_device(
            port.name, tun=port.type == "tun", offload=port.offload, multi_queue=True
        ).fd
        try:
            # The owner alone: with a group as well, the kernel would ask for both.
            fcntl.ioctl(fd, TUNSETOWNER, self.owner)
            fcntl.ioctl(fd, TUNSETPERSIST, 1)
        except OSError as error:
            raise DeviceError(
                f"{port.name}: user {self.owner} cannot be its owner: {error.strerror}",
                "a user namespace knows only the users that are mapped into it: try --user root"
                if error.errno == errno.EINVAL
                else "",
            ) from error
        finally:
            os.close(fd)
        link = find_link(port.name)
        if link is None:
            raise DeviceError(f"{port.name} vanished while it was set up")
        self.store.save(self.store.record.with_device(link.name, link.index))
        self.changed.append(
            f"ip tuntap add dev {port.name} mode {port.type} multi_queue vnet_hdr user {self.owner}"
        )
        return link

    def _check(self, port: PortConf, link: Link) -> None:
        """Whether a device that exists will do; it is not made another one."""
        name, device = link.name, link.device
        remove = f"ip link del {name}, or give the port another name"
        if device is None or device.type != port.type:
            kind = device.type if device else link.kind or "device of another kind"
            raise DeviceError(f"{name} exists, and is not a {port.type} but a {kind}", remove)
        if not device.persistent:
            maker = holders(name) or "the process that made it"
            raise DeviceError(
                f"{name} exists only as long as {maker} runs", "stop that process first"
            )
        if self.workers > 1 and not device.multi_queue:
            raise DeviceError(f"{name} has one queue, not {self.workers}", remove)
        if device.owner is None:
            self.warnings.append(
                f"{name} has no owner: any user may attach to it; better: {remove}"
            )
        elif device.owner != self.owner:
            raise DeviceError(
                f"{name} belongs to user {device.owner}, not {self.owner}",
                f"tunlb setup --user {device.owner}; if setup made it, tunlb teardown first; "
                f"or {remove}",
            )

    def _record(self, change: Callable[[Journal], Setup]) -> None:
        """Make a change that has a way back, and know the way before it is made."""
        before = self.store.record

        def owe(undo: Iterable[Change]) -> None:
            self.store.save(before._replace(undo=merge_undo(before.undo, undo)))

        done = change(owe)
        owe(done.undo)
        self._add(done)

    def _add(self, done: Setup) -> None:
        self.changed += done.changed
        self.warnings += done.warnings


def _take_back(record: Record) -> tuple[list[str], Record, list[str]]:
    """(what was taken back, what is left to be, why it is left)."""
    with IPRoute() as ipr:
        done, failed = take_back(ipr, record.undo)
        undone = [change.command for change in done]
        reasons = [f"{change.command}: {why}" for change, why in failed]
        devices = []
        for device in record.devices:
            link = _find(ipr, device)
            if link is None:
                continue
            command = f"ip link del {link.name}"
            try:
                ipr.link("del", index=link.index)
                undone.append(command)
            except NetlinkError as error:
                devices.append(device)
                reasons.append(f"{command}: {os.strerror(error.code)}")
    left = Record(devices=tuple(devices), undo=tuple(change for change, _ in failed))
    return undone, left, reasons


def _find(ipr: IPRoute, device: MadeDevice) -> Link | None:
    """The device, whatever it is called by now; not another one that has its name."""
    if device.index:
        links = map(link_from, ipr.get_links())
        return next((link for link in links if link.index == device.index), None)
    link = find_in(ipr, device.name)
    persistent = link is not None and link.device is not None and link.device.persistent
    return link if persistent else None


def _opens(node: str, uid: int) -> bool:
    """Whether the mode of a device node lets a user read and write it."""
    try:
        found = os.stat(node)
    except FileNotFoundError:
        return False
    try:
        user = pwd.getpwuid(uid)
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
    except KeyError:
        groups = []
    if uid == found.st_uid:
        wanted = stat.S_IRUSR | stat.S_IWUSR
    elif found.st_gid in groups:
        wanted = stat.S_IRGRP | stat.S_IWGRP
    else:
        wanted = stat.S_IROTH | stat.S_IWOTH
    return uid == 0 or found.st_mode & wanted == wanted
