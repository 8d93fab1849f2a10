"""Opening TAP and TUN devices: attaching queues, and the offloads that a device is asked for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

import pytun

from tunlb.packet import VNET_LEN

NODE = "/dev/net/tun"
NAME_MAX = 15  #: bytes of an interface name (IFNAMSIZ without its NUL)

# ioctl numbers of linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8

# TUN_F_* bits, in the order in which kernels learned them. The kernel refuses a value with a bit
# that it does not know, and all others need CSUM: so the offer is made again without the latest
# ones.
OFFLOADS = (("csum", 1), ("tso4", 2), ("tso6", 4), ("tso_ecn", 8), ("uso4", 32), ("uso6", 64))
OFFLOAD_STEPS = (6, 4, 1, 0)  #: how many of OFFLOADS to ask for; USO4 and USO6 only go together


class DeviceError(Exception):
    """The operating system refused something about a device. ``hint`` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class Device(NamedTuple):
    """An attached queue: its descriptor, which the receiver closes, and the accepted offloads."""

    fd: int
    offloads: tuple[str, ...]


def open_device(
    name: str,
    *,
    tun: bool = False,
    offload: bool = True,
    multi_queue: bool = False,
    node: str = NODE,
) -> Device:
    """Create the device, or attach a queue to it where it exists already (persistent devices do).

    Offloads and the length of the virtio-net header belong to the device, not to the queue, and
    outlive us on a persistent one: both are set every time. Raises :class:`DeviceError`.
    """
    if len(os.fsencode(name)) > NAME_MAX:
        raise DeviceError(
            f"the interface name {name!r} is too long", f"at most {NAME_MAX} characters"
        )
    _probe_node(node)
    flags: int = (pytun.IFF_TUN if tun else pytun.IFF_TAP) | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR
    if multi_queue:
        flags |= pytun.IFF_MULTI_QUEUE
    try:
        handle = pytun.TunTapDevice(name=name, flags=flags, dev=node)
    except OSError as error:
        raise _attach_error(name, tun, multi_queue, error) from error
    try:
        # pytun closes its descriptor when the object dies; ours lives as long as we say.
        fd = os.dup(handle.fileno())
    finally:
        handle.close()
    try:
        os.set_blocking(fd, False)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_LEN))
        return Device(fd, _set_offloads(fd, offload))
    except OSError as error:
        os.close(fd)
        raise DeviceError(
            f"{name}: the kernel does not take a virtio-net header or offloads: {error.strerror}",
            "the device may have been deleted meanwhile; otherwise a newer kernel is needed",
        ) from error


def open_queues(
    name: str,
    count: int,
    *,
    tun: bool = False,
    offload: bool = True,
    multi_queue: bool | None = None,
    node: str = NODE,
) -> list[Device]:
    """``count`` queues of a device that nobody else has any of: the one at index i is queue i.

    ``multi_queue`` None: several queues need a multi-queue device, and a single one takes whatever
    is there (what ``tunlb setup`` makes is multi-queue always). All queues or none: raises
    :class:`DeviceError`. It blocks on netlink: call it before the loop starts, or in a thread.
    """
    kind = _find_kind(name)
    if multi_queue is None:
        multi_queue = count > 1 or kind.multi_queue
    if multi_queue and kind.queues:
        # The kernel would give us more queues of it, and take part of its owner's frames away.
        raise _in_use(name)
    devices: list[Device] = []
    try:
        while len(devices) < count:
            device = open_device(name, tun=tun, offload=offload, multi_queue=multi_queue, node=node)
            devices.append(device)
    except DeviceError:
        for device in devices:
            os.close(device.fd)
        raise
    return devices


class _Kind(NamedTuple):
    """Of an existing TUN or TAP: can it have several queues, and how many does somebody hold?"""

    multi_queue: bool
    queues: int


def _find_kind(name: str) -> _Kind:
    """Asked of the kernel, which counts the queues of processes that we may not look at, too."""
    from pyroute2 import IPRoute  # a worker opens no device and need not load it

    with IPRoute() as ipr:
        for link in ipr.get_links():
            if link.get("ifname") == name:
                several, active, parked = (
                    link.get(("linkinfo", "data", f"tun_{key}")) or 0
                    for key in ("multi_queue", "num_queues", "num_disabled_queues")
                )
                return _Kind(bool(several), active + parked)
    return _Kind(False, 0)


def _probe_node(node: str) -> None:
    """pytun does not say whether the node or the device was refused, and the cures differ."""
    try:
        os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            hint = (
                f"mkdir -p {os.path.dirname(node)} && mknod {node} c 10 200 && chmod 0600 {node}; "
                f"for a container: --device {node}"
            )
            raise DeviceError(f"{node} is missing", hint) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = (
                f"run as root, or let this user read and write {node}; "
                f"for a container: --device {node}"
            )
            raise DeviceError(f"no permission to open {node}", hint) from error
        if error.errno in (errno.ENODEV, errno.ENXIO):
            raise DeviceError(
                f"this kernel has no TUN/TAP driver behind {node}", "modprobe tun"
            ) from error
        raise DeviceError(f"cannot open {node}: {error.strerror}") from error


def _attach_error(name: str, tun: bool, multi_queue: bool, error: OSError) -> DeviceError:
    kind = "tun" if tun else "tap"
    queues = " multi_queue" if multi_queue else ""
    if error.errno == errno.EPERM:
        return DeviceError(
            f"no permission to create or attach the {kind} device {name}",
            "needs CAP_NET_ADMIN, or a device that an administrator made for this user: "
            f"ip tuntap add dev {name} mode {kind}{queues} user {os.geteuid()}",
        )
    if error.errno == errno.EBUSY:
        return _in_use(name)
    if error.errno == errno.EINVAL and _exists(name):
        wanted = "several queues" if multi_queue else "one queue"
        return DeviceError(
            f"the name {name} is taken by a device that is not a {kind} with {wanted}",
            f"see ip -d link show {name}; remove it (ip link del {name}) or choose another name",
        )
    return DeviceError(f"cannot create the {kind} device {name}: {error.strerror or error}")


def _in_use(name: str) -> DeviceError:
    return DeviceError(
        f"the device {name} is in use by {holders(name) or 'another process'}",
        f"stop that process, or give the port another name; ip -d link show {name}",
    )


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def holders(name: str) -> str:
    """Who has a device of this name open, as far as we may look: "pid 7 (qemu)".

    Other namespaces may have devices of the same name: whoever is in ours is meant, if anybody is.
    """
    here: list[str] = []
    elsewhere: list[str] = []
    ours = os.stat("/proc/self/ns/net").st_ino
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(_is_queue(f"/proc/{pid}", fd, name) for fd in os.listdir(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm") as comm:
                    who = f"pid {pid} ({comm.read().strip()})"
                is_here = os.stat(f"/proc/{pid}/ns/net").st_ino == ours
                (here if is_here else elsewhere).append(who)
    return ", ".join(here or elsewhere)


def _is_queue(process: str, fd: str, name: str) -> bool:
    try:
        if not os.readlink(f"{process}/fd/{fd}").endswith("/net/tun"):
            return False
        with open(f"{process}/fdinfo/{fd}") as info:
            return f"iff:\t{name}\n" in info
    except OSError:
        return False


def _set_offloads(fd: int, offload: bool) -> tuple[str, ...]:
    for count in OFFLOAD_STEPS if offload else (0,):
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, sum(bit for _, bit in OFFLOADS[:count]))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return tuple(name for name, _ in OFFLOADS[:count])
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
