"""What is asked of the kernel when a device is opened, and what is said when it refuses."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct

import pyroute2
import pytest
import pytun

from tunlb.device import DeviceError, open_device, open_queues
from tunlb.packet import VNET_LEN


def refuse(monkeypatch: pytest.MonkeyPatch, where: object, name: str, err: int) -> None:
    def raising(*_args: object, **_kwargs: object) -> None:
        raise OSError(err, os.strerror(err))

    monkeypatch.setattr(where, name, raising)


@pytest.mark.parametrize(
    ("err", "message", "hint"),
    [
        (errno.ENOENT, "/dev/net/tun is missing", "mknod /dev/net/tun c 10 200"),
        (errno.EACCES, "no permission to open /dev/net/tun", "--device /dev/net/tun"),
        (errno.EPERM, "no permission to open /dev/net/tun", "--device /dev/net/tun"),
        (errno.ENXIO, "no TUN/TAP driver", "modprobe tun"),
        (errno.EMFILE, "cannot open /dev/net/tun: Too many open files", ""),
    ],
    ids=["missing", "permission", "device cgroup", "no driver", "any other"],
)
def test_what_is_said_about_the_node(
    monkeypatch: pytest.MonkeyPatch, err: int, message: str, hint: str
) -> None:
    refuse(monkeypatch, os, "open", err)
    with pytest.raises(DeviceError) as caught:
        open_device("lb0")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "tun", "queues", "err", "message", "hint"),
    [
        ("lb0", False, False, errno.EPERM, "no permission", "ip tuntap add dev lb0 mode tap user "),
        ("lb0", True, True, errno.EPERM, "no permission", "dev lb0 mode tun multi_queue user "),
        ("tunlb-nobody", False, False, errno.EBUSY, "in use by another process", "ip -d link show"),
        ("lo", True, False, errno.EINVAL, "not a tun with one queue", "ip -d link show lo"),
        ("a/b", False, False, errno.EINVAL, "cannot create the tap device a/b: Invalid", ""),
    ],
    ids=["permission", "permission, tun", "busy", "taken", "bad name"],
)
def test_what_is_said_about_the_device(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tun: bool,
    queues: bool,
    err: int,
    message: str,
    hint: str,
) -> None:
    refuse(monkeypatch, pytun, "TunTapDevice", err)
    with pytest.raises(DeviceError) as caught:
        open_device(name, tun=tun, multi_queue=queues, node=os.devnull)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert str(caught.value).startswith(caught.value.message)


def test_a_name_that_is_too_long_never_reaches_the_kernel() -> None:
    with pytest.raises(DeviceError, match=r"'a-name-of-16-chr' is too long .at most 15"):
        open_device("a-name-of-16-chr", node=os.devnull)


@pytest.mark.parametrize(
    ("offload", "known", "accepted"),
    [
        (True, 0x6F, ("csum", "tso4", "tso6", "tso_ecn", "uso4", "uso6")),
        (True, 0x0F, ("csum", "tso4", "tso6", "tso_ecn")),
        (True, 0x01, ("csum",)),
        (True, 0, ()),
        (False, 0x6F, ()),
    ],
    ids=["all", "a kernel before 6.2", "checksums only", "none", "not wanted"],
)
def test_offloads_are_probed_in_steps(
    monkeypatch: pytest.MonkeyPatch, offload: bool, known: int, accepted: tuple[str, ...]
) -> None:
    calls: list[tuple[int, object]] = []

    def ioctl(_fd: int, request: int, argument: object) -> None:
        calls.append((request, argument))
        if isinstance(argument, int) and argument & ~known:
            raise OSError(errno.EINVAL, "unknown bit")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(
        pytun, "TunTapDevice", lambda **_: os.fdopen(os.open(os.devnull, os.O_RDWR))
    )
    fd, offloads = open_device("lb0", offload=offload, node=os.devnull)
    assert offloads == accepted
    assert calls[0] == (0x400454D8, struct.pack("i", VNET_LEN))
    assert not os.get_blocking(fd)
    os.close(fd)


# -- several queues


class Kernel:
    """One device as the driver sees it: which attachments it takes, and with what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exists = False
        self.multi_queue = False
        self.queues = 0
        self.limit = 256
        self.asked: list[bool] = []
        self.opened: list[int] = []
        monkeypatch.setattr(pytun, "TunTapDevice", self.attach)
        monkeypatch.setattr(fcntl, "ioctl", lambda *_: None)
        monkeypatch.setattr(os, "dup", self.dup)
        monkeypatch.setattr(socket, "if_nametoindex", lambda name: 2)
        monkeypatch.setattr(pyroute2, "IPRoute", lambda: contextlib.nullcontext(self))

    def get_links(self) -> list[dict[object, object]]:
        lo: dict[object, object] = {"ifname": "lo"}
        if not self.exists:
            return [lo]
        about: dict[object, object] = {
            ("linkinfo", "data", "tun_multi_queue"): int(self.multi_queue),
            ("linkinfo", "data", "tun_num_queues"): self.queues if self.multi_queue else None,
        }
        return [lo, {"ifname": "lb0", **about}]

    def attach(self, name: str, flags: int, dev: str) -> object:
        several = bool(flags & pytun.IFF_MULTI_QUEUE)
        self.asked.append(several)
        if self.exists and several != self.multi_queue:
            raise OSError(errno.EINVAL, "Invalid argument")
        if self.queues >= (self.limit if several else 1):
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.exists = True
        self.multi_queue = several
        self.queues += 1
        return os.fdopen(os.open(os.devnull, os.O_RDWR))

    def dup(self, fd: int) -> int:
        self.opened.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
        return self.opened[-1]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("count", "existing", "wanted", "asked"),
    [
        (1, None, None, False),
        (3, None, None, True),
        (1, False, None, False),
        (1, True, None, True),
        (3, True, None, True),
        (1, None, True, True),
    ],
    ids=[
        "one, new",
        "several, new",
        "one of a single-queue device",
        "one of a multi-queue device",
        "several of a multi-queue device",
        "one, to become several",
    ],
)
def test_queues_are_opened_in_order(
    kernel: Kernel, count: int, existing: bool | None, wanted: bool | None, asked: bool
) -> None:
    kernel.exists, kernel.multi_queue = existing is not None, bool(existing)
    devices = open_queues("lb0", count, multi_queue=wanted, node=os.devnull)
    assert [device.fd for device in devices] == kernel.opened
    assert kernel.asked == [asked] * count
    assert all(device.offloads for device in devices)
    for device in devices:
        os.close(device.fd)


@pytest.mark.parametrize(
    ("count", "multi_queue", "queues", "message"),
    [
        (1, False, 1, "the device lb0 is in use"),
        (1, True, 1, "the device lb0 is in use"),
        (2, True, 2, "the device lb0 is in use"),
        (2, False, 0, "not a tap with several queues"),
    ],
    ids=["single", "one more", "two more", "single, several wanted"],
)
def test_what_somebody_has_is_left_to_him(
    kernel: Kernel, count: int, multi_queue: bool, queues: int, message: str
) -> None:
    kernel.exists, kernel.multi_queue, kernel.queues = True, multi_queue, queues
    with pytest.raises(DeviceError, match=message):
        open_queues("lb0", count, node=os.devnull)
    assert kernel.queues == queues
    assert kernel.opened == []


def test_all_queues_or_none(kernel: Kernel) -> None:
    kernel.limit = 2
    with pytest.raises(DeviceError, match="in use"):
        open_queues("lb0", 3, node=os.devnull)
    assert len(kernel.opened) == 2
    assert not [fd for fd in kernel.opened if is_open(fd)]
