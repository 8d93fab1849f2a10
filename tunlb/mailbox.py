"""Mailboxes: how a worker hands a frame, or tells a message, to another worker.

A mailbox is a pair of connected AF_UNIX datagram sockets: every worker sends into one end and its
worker reads the other. Sockets, because a message then outlives whoever sent or should have read it
(both ends are held elsewhere as well), wakes an event loop, and is bounded by the kernel: the
peers of a pair are exempt from net.unix.max_dgram_qlen, so it is the sending end's SO_SNDBUF that
counts. The sending end is one socket for all senders, so the bound is one for all of them.

A frame is one datagram, written by one send() out of the Packet's buffer and read by one recv()
into another Packet's, both at the same place in it, so that nothing is moved:

    offset   112        120              130                  144 = L3_OFFSET
    TAP      header     virtio-net       Ethernet             IP ...
    TUN      header     (14 bytes that say nothing), virtio-net from 134 on, IP ...
    message  header     the message

Header: kind (1 byte), FORMAT (1), the port's ``Netif.queue`` and ``Netif.vid`` (big-endian, 2
each), ``Packet.chosen`` plus 1 (2: so 65535 is ASKED). The VLAN's number has to travel because its
tag was taken off already. How much L2 there is follows from the interface, which the reader looks
up itself.

A worker has no privileges and may be in wrong hands, so what it sends is checked as if it came from
the wire, and no send or recv depends on O_NONBLOCK, which each holder of a socket can take away
from all others.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.netif import Netif
from tunlb.packet import ASKED, BUFFER_LEN, ETHER_LEN, L3_OFFSET, VNET_LEN, Packet

if cython.compiled:
    from cython.cimports.tunlb.mailbox import recv, send
    from cython.cimports.tunlb.wire.vnet import emit
else:
    from tunlb.wire.vnet import emit

MAILBOX_BYTES = 4 * 1024 * 1024  #: of SO_SNDBUF; the kernel charges it each frame's overhead too
HEADER_LEN = 8
FORMAT = 1  #: raised when the header changes: a mailbox outlives the program that wrote into it
BASE = L3_OFFSET - ETHER_LEN - VNET_LEN - HEADER_LEN  #: where a datagram starts in the buffer
MESSAGE_MAX = BUFFER_LEN - BASE - HEADER_LEN

# What Mailbox.read found
NOTHING = 0
FRAME = 1
MESSAGE = 2
REFUSED = 3

SO_SNDBUFFORCE = 32  # asm-generic/socket.h

_NOTHING = cython.declare(cython.int, NOTHING)
_FRAME = cython.declare(cython.int, FRAME)
_MESSAGE = cython.declare(cython.int, MESSAGE)
_REFUSED = cython.declare(cython.int, REFUSED)
_FORMAT = cython.declare(cython.int, FORMAT)
_BASE = cython.declare(cython.int, BASE)
_HEADER_LEN = cython.declare(cython.int, HEADER_LEN)
_L3_OFFSET = cython.declare(cython.int, L3_OFFSET)
_ETHER_LEN = cython.declare(cython.int, ETHER_LEN)
_BUFFER_LEN = cython.declare(cython.int, BUFFER_LEN)
_DONTWAIT = cython.declare(cython.int, socket.MSG_DONTWAIT)
_ASKED = cython.declare(cython.int, ASKED)
_UNKNOWN = cython.declare(cython.int, DropReason.UNKNOWN)
_TRUNCATED = cython.declare(cython.int, DropReason.TRUNCATED)
_VLAN_UNKNOWN = cython.declare(cython.int, DropReason.VLAN_UNKNOWN)
_HANDOVER_FULL = cython.declare(cython.int, DropReason.HANDOVER_FULL)
_HANDED_OVER = cython.declare(cython.int, Event.HANDED_OVER)
_HANDED_IN = cython.declare(cython.int, Event.HANDED_IN)


def open_mailbox() -> tuple[int, int]:
    """(read_fd, write_fd) of a new mailbox, non-blocking and closed by exec.

    Without CAP_NET_ADMIN its bound is the smaller one that net.core.wmem_max allows.
    """
    reader, writer = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        writer.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, MAILBOX_BYTES)
    except PermissionError:
        writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAILBOX_BYTES)
    return reader.detach(), writer.detach()


class Mailbox:
    """A worker's own mailbox, and the way into everybody's; ``write_fds`` is indexed by worker.

    It owns all these descriptors. ``fd`` is readable when something waits.
    """

    def __init__(self, read_fd: int, write_fds: Sequence[int], counters: Counters) -> None:
        self.counters = counters
        self.fd = read_fd
        # Objects, because the uncompiled build needs them; they also close what they own.
        self._reader = socket.socket(fileno=read_fd)
        self._senders = [socket.socket(fileno=fd) for fd in write_fds]
        self._write_fds = tuple(write_fds)

    def close(self) -> None:
        """What waits stays with whoever else holds the reading end."""
        self.fd = -1
        self._write_fds = ()
        self._reader.close()
        for sender in self._senders:
            sender.close()
        self._senders = []

    def send_packet(self, pkt: Packet, to: cython.int) -> cython.bint:
        """Hand a packet over to worker ``to``; False if dropped, and counted.

        The packet is as ingress left it, its frame still behind the L2 header that it came with.
        The virtio-net header is made anew, because hooks may have edited the packet.
        """
        iif: Netif = pkt.iif
        start: cython.int = _L3_OFFSET if iif.tun else _L3_OFFSET - _ETHER_LEN
        if pkt.start != start or not 0 <= to < len(self._write_fds):
            self.counters.drop(_UNKNOWN)  # our bug, or a hook's that moved the frame
            return False
        emit(pkt)
        pkt.put16(_BASE, _FRAME << 8 | _FORMAT)
        pkt.put16(_BASE + 2, iif.queue)
        pkt.put16(_BASE + 4, iif.vid)
        pkt.put16(_BASE + 6, (pkt.chosen + 1) & 0xFFFF if pkt.handed else 0)
        sent: cython.bint = False
        if cython.compiled:
            fd: cython.int = self._write_fds[to]
            sent = send(fd, pkt.p + _BASE, pkt.end - _BASE, _DONTWAIT) >= 0
        else:
            try:
                self._senders[to].send(pkt.mem[_BASE : pkt.end], _DONTWAIT)
                sent = True
            except OSError:
                pass  # full, or its reader is gone: counted below
        if sent:
            self.counters.add(_HANDED_OVER, 1)
        else:
            self.counters.drop(_HANDOVER_FULL)
        return sent

    def send_message(self, message: bytes, to: int) -> bool:
        """Tell worker ``to`` at most MESSAGE_MAX bytes; False if dropped, and counted."""
        if not 0 <= to < len(self._senders) or len(message) > MESSAGE_MAX:
            self.counters.drop(_UNKNOWN)  # our bug
            return False
        header = bytes((MESSAGE, FORMAT)) + bytes(HEADER_LEN - 2)
        try:
            self._senders[to].send(header + message, socket.MSG_DONTWAIT)
        except OSError:
            self.counters.drop(_HANDOVER_FULL)
            return False
        return True

    def read(self, pkt: Packet, netifs: Mapping[tuple[int, int], Netif]) -> cython.int:
        """Read the next datagram into ``pkt``; ``netifs`` is keyed by (queue, vid).

        FRAME: a frame as a port reads it, its VLAN tag taken off and ``iif`` the sub-port; MESSAGE:
        ``pkt.frame()`` is the message; REFUSED: neither, counted as TRUNCATED or VLAN_UNKNOWN;
        NOTHING: no more wait.
        """
        n: cython.Py_ssize_t = -1
        if cython.compiled:
            n = recv(self.fd, pkt.p + _BASE, _BUFFER_LEN - _BASE, _DONTWAIT)
        else:
            try:
                n = self._reader.recv_into(pkt.mem[_BASE:], 0, _DONTWAIT)
            except OSError:
                pass  # EAGAIN; nothing else can happen to a socket that is ours alone to close
        if n < 0:
            return _NOTHING
        if n < _HEADER_LEN or pkt.p[_BASE + 1] != _FORMAT:
            self.counters.drop(_TRUNCATED)
            return _REFUSED
        kind: cython.int = pkt.p[_BASE]
        if kind == _MESSAGE:
            pkt.reset(_BASE + _HEADER_LEN, _BASE + n)
            return _MESSAGE
        if kind != _FRAME:
            self.counters.drop(_TRUNCATED)
            return _REFUSED
        queue: cython.int = pkt.be16(_BASE + 2)
        vid: cython.int = pkt.be16(_BASE + 4)
        netif: Netif | None = netifs.get((queue, vid))
        if netif is None:
            # A reload may just have taken the VLAN away; a port never goes.
            self.counters.drop(_TRUNCATED if vid == 0 else _VLAN_UNKNOWN)
            return _REFUSED
        pkt.iif = netif
        pkt.oif = None
        # A frame that ends before it starts is ingress' to refuse, as one from a port is.
        pkt.reset(_L3_OFFSET if netif.tun else _L3_OFFSET - _ETHER_LEN, _BASE + n)
        pkt.handed = True
        pkt.chosen = pkt.be16(_BASE + 6) - 1
        if pkt.chosen == 0xFFFE:
            pkt.chosen = _ASKED
        self.counters.add(_HANDED_IN, 1)
        return _FRAME
