"""The device edge: TAP and TUN queues, and bursts of frames between them and a director.

Heads up: read the kernel's Documentation/networking/tuntap.rst and drivers/net/tun.c first. One
read is one frame and one write is one frame, each with its virtio-net header before it; there is no
way to move two. The descriptors never block, and TUNSETSNDBUF is never called: the kernel's fast
path for written frames needs its default.

What a descriptor says when something happens to its device (measured on Linux 6.18; TAP and TUN,
one queue or several, all the same):

| event                                    | epoll                | read           | write  |
|------------------------------------------|----------------------|----------------|--------|
| created, link not yet up                 | nothing              | EAGAIN         | EIO    |
| link set down                            | nothing              | EAGAIN         | EIO    |
| link set up again                        | EPOLLIN with frames  | frames         | works  |
| moved to another network namespace       | nothing              | EAGAIN         | EIO    |
| and set up there                         | EPOLLIN with frames  | frames         | works  |
| deleted, or its network namespace is     | EPOLLERR, no EPOLLIN | EBADFD at once | EBADFD |

So a link that goes down or moves needs nothing from us: the descriptor comes back to life by itself
(the move takes away the device's addresses, routes and bridge, which whoever moved it has to give
it again). A deleted device never comes back: :attr:`Port.lost` is set, and the caller closes the
port and opens the device anew. uvloop (libuv) reports EPOLLERR to a reader exactly once and then
stops polling, so a reader that returns without looking at ``lost`` would be a silent stop;
asyncio's own loop would call it for ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cython
import pytun

from tunlb.counters import Counters, DropReason, Event
from tunlb.director import Director
from tunlb.hook import Verdict
from tunlb.netif import Netif
from tunlb.outbox import Outbox
from tunlb.packet import BUFFER_LEN, ETHER_LEN, L3_OFFSET, VNET_LEN, Packet

if cython.compiled:
    from cython.cimports.libc.errno import errno as c_errno
    from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec
    from cython.cimports.posix.unistd import read, write
    from cython.cimports.tunlb.wire.vnet import emit
else:
    from tunlb.wire.vnet import emit

NODE = "/dev/net/tun"
NAME_MAX = 15  #: bytes of an interface name (IFNAMSIZ without its NUL)
BURST_FRAMES = 64
BURST_BYTES = 512 * 1024

# ioctl numbers of linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8

# TUN_F_* bits, in the order in which kernels learned them. The kernel refuses a value with a bit
# that it does not know, and all others need CSUM: so the offer is made again without the latest
# ones.
OFFLOADS = (("csum", 1), ("tso4", 2), ("tso6", 4), ("tso_ecn", 8), ("uso4", 32), ("uso6", 64))
OFFLOAD_STEPS = (6, 4, 1, 0)  #: how many of OFFLOADS to ask for; USO4 and USO6 only go together

_FRAME = cython.declare(cython.int, 1)
_NOTHING = cython.declare(cython.int, 0)
_DEVICE_ERROR = cython.declare(cython.int, -1)

_VNET_LEN = cython.declare(cython.int, VNET_LEN)
_BUFFER_LEN = cython.declare(cython.int, BUFFER_LEN)
_BURST_FRAMES = cython.declare(cython.int, BURST_FRAMES)
_BURST_BYTES = cython.declare(cython.int, BURST_BYTES)
_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_UNKNOWN = cython.declare(cython.int, DropReason.UNKNOWN)
_PORT_DOWN = cython.declare(cython.int, DropReason.PORT_DOWN)
_TX_BLOCKED = cython.declare(cython.int, DropReason.TX_BLOCKED)
_TX_REFUSED = cython.declare(cython.int, DropReason.TX_REFUSED)
_RX_FRAMES = cython.declare(cython.int, Event.RX_FRAMES)
_RX_BYTES = cython.declare(cython.int, Event.RX_BYTES)
_TX_FRAMES = cython.declare(cython.int, Event.TX_FRAMES)
_TX_BYTES = cython.declare(cython.int, Event.TX_BYTES)
_EAGAIN = cython.declare(cython.int, errno.EAGAIN)
_EBADF = cython.declare(cython.int, errno.EBADF)
_EBADFD = cython.declare(cython.int, errno.EBADFD)
_EINTR = cython.declare(cython.int, errno.EINTR)
_EIO = cython.declare(cython.int, errno.EIO)
_ENETDOWN = cython.declare(cython.int, errno.ENETDOWN)
_ENOBUFS = cython.declare(cython.int, errno.ENOBUFS)
_ENODEV = cython.declare(cython.int, errno.ENODEV)
_ENOMEM = cython.declare(cython.int, errno.ENOMEM)
_ENXIO = cython.declare(cython.int, errno.ENXIO)


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
        return DeviceError(
            f"the device {name} is in use by {_holders(name) or 'another process'}",
            f"stop that process, or give the port another name; ip -d link show {name}",
        )
    if error.errno == errno.EINVAL and _exists(name):
        wanted = "several queues" if multi_queue else "one queue"
        return DeviceError(
            f"the name {name} is taken by a device that is not a {kind} with {wanted}",
            f"see ip -d link show {name}; remove it (ip link del {name}) or choose another name",
        )
    return DeviceError(f"cannot create the {kind} device {name}: {error.strerror or error}")


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _holders(name: str) -> str:
    """Who has a device of this name open, as far as we may look: "pid 7 (qemu)"."""
    found: list[str] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(_is_queue(f"/proc/{pid}", fd, name) for fd in os.listdir(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm") as comm:
                    found.append(f"pid {pid} ({comm.read().strip()})")
    return ", ".join(found)


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


def monotonic_ms() -> cython.longlong:
    """The clock of the inside, in milliseconds."""
    if cython.compiled:
        now = cython.declare(timespec)
        clock_gettime(CLOCK_MONOTONIC, cython.address(now))
        return now.tv_sec * 1000 + now.tv_nsec // 1_000_000
    else:
        return time.monotonic_ns() // 1_000_000


def drop_reason(err: cython.int) -> cython.int:
    """The DropReason for a write that failed with errno ``err``."""
    if err == _EAGAIN or err == _ENOBUFS or err == _ENOMEM or err == _EINTR:
        return _TX_BLOCKED
    if (
        err == _EIO
        or err == _EBADFD
        or err == _ENXIO
        or err == _ENODEV
        or err == _ENETDOWN
        or err == _EBADF
    ):
        return _PORT_DOWN
    return _TX_REFUSED


class Port:
    """One queue of one device. It owns ``fd``, which must not block.

    ``lost`` says that the device is gone for good, ``error`` why (the last errno of a read or
    write): close the port and open the device anew.
    """

    def __init__(
        self, netif: Netif, fd: int, counters: Counters, offloads: tuple[str, ...] = ()
    ) -> None:
        self.netif = netif
        self.fd = fd
        self.counters = counters
        self.offloads = offloads
        self.error = 0
        self.lost = False
        # The network header of an untagged frame lands on L3_OFFSET.
        self._offset = L3_OFFSET - VNET_LEN - (0 if netif.tun else ETHER_LEN)

    def close(self) -> None:
        """Idempotent. Frames not yet read are gone, and so is a device that is not persistent."""
        fd = self.fd
        self.fd = -1
        self.lost = True
        if fd >= 0:
            os.close(fd)

    def read_frame(self, pkt: Packet) -> cython.int:
        """Read the next frame into ``pkt``.

        1: a frame; 0: none is waiting; -1: the device failed, and is ``lost``. What is shorter than
        a virtio-net header is a frame that ends before it starts.
        """
        offset: cython.int = self._offset
        n: cython.Py_ssize_t
        err: cython.int = 0
        if cython.compiled:
            n = read(self.fd, pkt.p + offset, _BUFFER_LEN - offset)
            if n < 0:
                err = c_errno
        else:
            try:
                n = os.readv(self.fd, [pkt.mem[offset:]])
            except OSError as error:
                n = -1
                err = error.errno or _EIO
        if n < 0:
            if err == _EAGAIN or err == _EINTR:
                return _NOTHING
            self._failed(err)
            self.lost = True
            return _DEVICE_ERROR
        pkt.iif = self.netif
        pkt.oif = None
        pkt.reset(offset + _VNET_LEN, offset + n)
        self.counters.add(_RX_FRAMES, 1)
        if n > _VNET_LEN:
            self.counters.add(_RX_BYTES, n - _VNET_LEN)
        return _FRAME

    def write_packet(self, pkt: Packet) -> cython.bint:
        """Write it, its virtio-net header made anew; False when it was dropped, and counted."""
        n: cython.Py_ssize_t
        err: cython.int = 0
        start: cython.int = pkt.start - _VNET_LEN
        emit(pkt)
        if cython.compiled:
            n = write(self.fd, pkt.p + start, pkt.end - start)
            if n < 0:
                err = c_errno
        else:
            try:
                n = os.write(self.fd, pkt.mem[start : pkt.end])
            except OSError as error:
                n = -1
                err = error.errno or _EIO
        return self._written(n, err)

    def write_frame(self, frame: bytes) -> cython.bint:
        """Write a frame that starts with its virtio-net header; False and counted if dropped."""
        n: cython.Py_ssize_t
        err: cython.int = 0
        if cython.compiled:
            n = write(self.fd, cython.cast(cython.p_char, frame), len(frame))
            if n < 0:
                err = c_errno
        else:
            try:
                n = os.write(self.fd, frame)
            except OSError as error:
                n = -1
                err = error.errno or _EIO
        return self._written(n, err)

    def _written(self, n: cython.Py_ssize_t, err: cython.int) -> cython.bint:
        if n < 0:
            self.counters.drop(drop_reason(err))
            self._failed(err)
            return False
        self.counters.add(_TX_FRAMES, 1)
        self.counters.add(_TX_BYTES, n - _VNET_LEN)
        return True

    def _failed(self, err: cython.int) -> None:
        self.error = err
        # A link that is down says EIO and may come up again; these two never get better.
        if err == _EBADFD or err == _EBADF:
            self.lost = True


class Drain:
    """Moves bursts of frames from a port through the director to ports.

    ``ports`` is indexed by ``Netif.queue``; replace an entry when a lost port was opened anew.
    ``on_lost`` is called with a port that :meth:`readable` found lost.
    """

    def __init__(
        self, director: Director, ports: Sequence[Port], on_lost: Callable[[Port], None]
    ) -> None:
        self.director = director
        self.ports = list(ports)
        self.on_lost = on_lost

    def readable(self, port: Port) -> None:
        """What an event loop calls when the port's descriptor is readable, or in error.

        Compiled, because a loop under a light load wakes for every frame or two.
        """
        self.run(port, monotonic_ms())
        if port.lost:
            self.on_lost(port)

    def run(
        self, port: Port, now: cython.longlong, budget: cython.int = _BURST_FRAMES
    ) -> cython.int:
        """One burst: at most ``budget`` frames or BURST_BYTES, then what the director sent itself.

        Returns how many frames were read; dropped ones count too. The descriptor stays readable
        while more wait, so the loop comes back after its timers and its other descriptors had their
        turn. The time is bounded by the number of bytes instead of a clock: a write() costs the
        kernel a fixed part for each frame and a part for its bytes, and a burst that ends by a
        count ends the same way in every run.
        """
        pkt = self.director.packet
        frames = 0
        size = 0
        got = _FRAME
        while frames < budget and size < _BURST_BYTES:
            got = port.read_frame(pkt)
            if got != _FRAME:
                break
            frames += 1
            size += pkt.end - pkt.start
            if self.director.receive(pkt, now) == _ACCEPT:
                self._send(pkt)
        self.flush()
        return frames

    def flush(self) -> cython.int:
        """Write what waits in the director's outbox, also due after its timers ran; how many."""
        outbox: Outbox = self.director.outbox
        if not outbox.frames:
            return 0
        waiting: list[tuple[Netif, bytes]] = outbox.take()
        for netif, frame in waiting:
            port = self._port_of(netif)
            if port is None:
                self.director.counters.drop(_PORT_DOWN)
            else:
                port.write_frame(frame)
        return len(waiting)

    def _port_of(self, netif: Netif) -> Port | None:
        # Checked here, because a compiled list does not check it.
        if 0 <= netif.queue < len(self.ports):
            port: Port = self.ports[netif.queue]
            return port
        return None

    def _send(self, pkt: Packet) -> None:
        oif = pkt.oif
        if oif is None:
            # Accepted, but not told where to: our bug, shown by the counter that must stay 0.
            self.director.counters.drop(_UNKNOWN)
            return
        port = self._port_of(oif)
        if port is None:
            self.director.counters.drop(_PORT_DOWN)
        else:
            port.write_packet(pkt)
