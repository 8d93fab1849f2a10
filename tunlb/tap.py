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
| deleted, or its network namespace is     | EPOLLERR, no EPOLLIN | EBADFD         | EBADFD |

So a link that goes down or moves needs nothing from us: the descriptor comes back to life by itself
(the move takes away the device's addresses, routes and bridge, which whoever moved it has to give
it again). A deleted device never comes back: :attr:`Port.lost` is set, and the caller closes the
port and opens the device anew. uvloop (libuv) reports EPOLLERR to a reader exactly once and then
stops polling, so a reader that returns without looking at ``lost`` would be a silent stop;
asyncio's own loop would call it for ever. And once is too early at times: the kernel wakes the
reader just before it takes the device away (tun_detach_all), so that this one read may still say
EAGAIN. Somebody has to read again a little later: the worker does so ten times a second.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.device import Device, DeviceError, open_device, open_queues
from tunlb.director import Director
from tunlb.hook import Verdict
from tunlb.mailbox import MESSAGE, NOTHING, REFUSED, Mailbox
from tunlb.netif import Netif
from tunlb.outbox import Outbox
from tunlb.packet import BUFFER_LEN, CUT, ETHER_LEN, L3_OFFSET, NOT_ASKED, VNET_LEN, Packet

if cython.compiled:
    from cython.cimports.libc.errno import errno as c_errno
    from cython.cimports.posix.time import CLOCK_MONOTONIC, clock_gettime, timespec
    from cython.cimports.posix.unistd import read, write
    from cython.cimports.tunlb.pipeline import host
    from cython.cimports.tunlb.wire.ether import mac_at
    from cython.cimports.tunlb.wire.vnet import emit, parse, trust
else:
    from tunlb.pipeline import host
    from tunlb.wire.ether import mac_at
    from tunlb.wire.vnet import emit, parse, trust

__all__ = [
    "BURST_BYTES",
    "BURST_FRAMES",
    "Device",
    "DeviceError",
    "Drain",
    "Port",
    "drop_reason",
    "monotonic_ms",
    "open_device",
    "open_queues",
]

BURST_FRAMES = 64
BURST_BYTES = 512 * 1024

_DISCARDED = cython.declare(cython.int, 4096)  # frames at a time: a queue's usual length
_STANDBY = cython.declare(cython.int, DropReason.STANDBY)
_FRAME = cython.declare(cython.int, 1)
_NOTHING = cython.declare(cython.int, 0)
_DEVICE_ERROR = cython.declare(cython.int, -1)
_NO_MAIL = cython.declare(cython.int, NOTHING)
_MAILED_MESSAGE = cython.declare(cython.int, MESSAGE)
_REFUSED_MAIL = cython.declare(cython.int, REFUSED)

_VNET_LEN = cython.declare(cython.int, VNET_LEN)
_BUFFER_LEN = cython.declare(cython.int, BUFFER_LEN)
_BURST_FRAMES = cython.declare(cython.int, BURST_FRAMES)
_BURST_BYTES = cython.declare(cython.int, BURST_BYTES)
_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_CUT = cython.declare(cython.int, CUT)
_NOT_ASKED = cython.declare(cython.int, NOT_ASKED)
_UNKNOWN = cython.declare(cython.int, DropReason.UNKNOWN)
_TRUNCATED = cython.declare(cython.int, DropReason.TRUNCATED)
_HOST_MAC = cython.declare(cython.int, DropReason.HOST_MAC)
_MIRROR_LOST = cython.declare(cython.int, DropReason.MIRROR_LOST)
_HOST_OUT = cython.declare(cython.int, Event.HOST_OUT)
_HOST_MIRRORED = cython.declare(cython.int, Event.HOST_MIRRORED)
_ETHER_LEN = cython.declare(cython.int, ETHER_LEN)
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

    def write_copy(self, frame: bytes) -> None:
        """Like write_frame(), for a copy that nobody waits for: it is counted as one."""
        try:
            os.write(self.fd, frame)
        except OSError as error:
            self.counters.drop(_MIRROR_LOST)
            self._failed(error.errno or _EIO)
        else:
            self.counters.add(_HOST_MIRRORED, 1)

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
    """Moves bursts of frames from a port, or from other workers, through the director to ports.

    ``ports`` is indexed by ``Netif.queue``; replace an entry when a lost port was opened anew.
    ``on_lost`` is called with a port that :meth:`readable` found lost. ``mailbox`` is None with a
    single worker.
    """

    def __init__(
        self,
        director: Director,
        ports: Sequence[Port],
        on_lost: Callable[[Port], None],
        mailbox: Mailbox | None = None,
    ) -> None:
        self.director = director
        self.ports = list(ports)
        self.on_lost = on_lost
        self.mailbox = mailbox
        self.on_wake: Callable[[int], None] | None = None  # given when the director is to be woken

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
        if port.netif.detour:
            return self._detour(port, now, budget)
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
            budget -= max(0, self._carry_out(pkt, self.director.receive(pkt, now), now))
        self.flush()
        return frames

    def discard(self, port: Port, budget: cython.int = _DISCARDED) -> None:
        """Read what waits at the device of a bond that is not the active one, and forget it.

        What both devices heard, a broadcast above all, must not be answered twice; and who becomes
        active must not begin with what was said long ago.
        """
        pkt = self.director.packet
        while budget > 0 and port.read_frame(pkt) == _FRAME:
            self.director.counters.drop(_STANDBY)
            budget -= 1

    def _detour(self, port: Port, now: cython.longlong, budget: cython.int) -> cython.int:
        """A burst from the host, which goes out of its port as it is, or one that is mirrored."""
        pkt = self.director.packet
        netif = port.netif
        frames = 0
        size = 0
        while frames < budget and size < _BURST_BYTES:
            if port.read_frame(pkt) != _FRAME:
                break
            frames += 1
            size += pkt.end - pkt.start
            if netif.port is None:
                budget -= self._mirror(pkt, netif, now)
            elif self._from_host(pkt, netif.port):
                self.director.counters.add(_HOST_OUT, 1)
        self.flush()
        return frames

    def _from_host(self, pkt: Packet, netif: Netif) -> cython.bint:
        """Write what the host sent to its port; False when it was dropped, and counted."""
        reason: cython.int = _TRUNCATED
        if pkt.end - pkt.start >= _ETHER_LEN:
            # Whatever else is behind the host's TAP, a bridge for one, would make a loop.
            reason = parse(pkt) if mac_at(pkt, pkt.start + 6) == netif.mac else _HOST_MAC
        if reason != 0:
            self.director.counters.drop(reason)
            return False
        port = self._port_of(netif)
        if port is None:
            self.director.counters.drop(_PORT_DOWN)
            return False
        trust(pkt)
        return port.write_packet(pkt)

    def _mirror(self, pkt: Packet, netif: Netif, now: cython.longlong) -> cython.int:
        """A frame through the director, and a copy of it as it came to the host of ``netif``,
        unless the frame itself goes there, or another worker has the last word on it and shows it.

        What that costs of the burst beside the frame, in frames.
        """
        copy: bytes = host.shown(pkt, netif)
        whole: cython.bint = pkt.end - pkt.start >= _ETHER_LEN
        verdict: cython.int = self.director.receive(pkt, now)
        passed: cython.bint = verdict == _ACCEPT and pkt.oif is netif.host
        cost: cython.int = self._carry_out(pkt, verdict, now)
        if cost < 0:
            return 0
        port = None if netif.host is None else self._port_of(netif.host)
        if whole and not passed and port is not None:
            port.write_copy(copy)
        return cost

    def _carry_out(self, pkt: Packet, verdict: cython.int, now: cython.longlong) -> cython.int:
        """Do with the packet what the director said; what that costs of the burst beside the frame,
        in frames, or -1: another worker has it now.
        """
        if verdict == _ACCEPT:
            self._send(pkt)
        elif verdict == _STOLEN:
            return self._stolen(pkt, now)
        return 0

    def _stolen(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """What is left to do with a STOLEN packet: cut it, or hand it over; as _carry_out()."""
        if pkt.owner == _CUT:
            return self._send_segments(pkt, now)
        if pkt.owner < 0:
            return 0
        if pkt.handed and pkt.chosen == _NOT_ASKED:
            # Neither a question nor the answer to one: two workers that each take the other for the
            # owner must not play ball with it. Our bug, shown by the counter that must stay 0.
            self.director.counters.drop(_UNKNOWN)
            return 0
        return -1 if self._hand_over(pkt) else 0

    def mail(self) -> None:
        """What an event loop calls when the mailbox's descriptor is readable."""
        self.take_mail(monotonic_ms())

    def take_mail(self, now: cython.longlong, budget: cython.int = _BURST_FRAMES) -> cython.int:
        """One burst of what other workers sent, bounded as :meth:`run` is; how many were read."""
        mailbox = self.mailbox
        if mailbox is None:
            return 0
        pkt = self.director.packet
        netifs = self.director.neighs.netifs
        taken = 0
        size = 0
        while taken < budget and size < _BURST_BYTES:
            got = mailbox.read(pkt, netifs)
            if got == _NO_MAIL:
                break
            taken += 1
            if got == _REFUSED_MAIL:
                continue
            size += pkt.end - pkt.start
            if got == _MAILED_MESSAGE:
                self.director.hear(pkt.frame(), now)
                continue
            port = self._port_of(pkt.iif)
            if port is not None and port.netif.mirror:
                budget -= self._mirror(pkt, port.netif, now)
            else:
                budget -= max(0, self._carry_out(pkt, self.director.receive(pkt, now), now))
        self.flush()
        return taken

    def flush(self) -> cython.int:
        """Write what waits in the director's outbox, also due after its timers ran; how many.

        What it has to tell other workers goes out as well.
        """
        peers = self.director.peers
        if peers is not None and peers.waiting:
            self._tell(peers.take())
        outbox: Outbox = self.director.outbox
        if not outbox.waiting:
            return 0
        waiting: list[tuple[Netif, bytes]] = outbox.take()
        for netif, frame in waiting:
            port = self._port_of(netif)
            if port is None:
                self.director.counters.drop(_PORT_DOWN)
            else:
                port.write_frame(frame)
        if outbox.waiting:
            self._go_on(outbox)
        return len(waiting)

    def _go_on(self, outbox: Outbox) -> None:
        """Fragments that waited go on, and the director is woken in time."""
        pkt = self.director.packet
        if outbox.resumed:
            now = monotonic_ms()
            for netif, frame, mark, handed in outbox.take_resumed():
                pkt.load(frame, netif)
                pkt.mark = mark
                pkt.handed = handed
                self._carry_out(pkt, self.director.resume(pkt, now), now)
            # None of them waits again: what they caused is frames.
            self.flush()
        at = outbox.take_wake()
        if at >= 0 and self.on_wake is not None:
            self.on_wake(at)

    def _tell(self, messages: list[tuple[int, bytes]]) -> None:
        for to, message in messages:
            if self.mailbox is None:
                self.director.counters.drop(_UNKNOWN)  # nobody to tell: our bug
            else:
                self.mailbox.send_message(message, to)

    def _hand_over(self, pkt: Packet) -> cython.bint:
        mailbox = self.mailbox
        if mailbox is None:
            self.director.counters.drop(_UNKNOWN)  # nobody to hand it to: our bug
            return False
        return mailbox.send_packet(pkt, pkt.owner)

    def _send_segments(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """Write a frame that was stolen to be cut, all of it before the next is read; what that
        costs of the burst, in frames: a frame is a read and a write, a segment is a write.
        """
        segments: cython.int = 0
        verdict: cython.int = self.director.segment(pkt, now)
        while verdict >= 0:
            segments += 1
            if verdict == _ACCEPT:
                self._send(pkt)
            verdict = self.director.segment(pkt, now)
        return segments // 2

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
