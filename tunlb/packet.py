"""Packet: one frame in a buffer, where its headers are, and where it goes.

A Packet points into a buffer and is reused for every frame of a worker. The network header of what
was read sits at :data:`L3_OFFSET`, so that an L2 header can be put before it, dropped or changed in
length without moving the packet, and the virtio-net header goes right before whatever the frame
starts with. A stage that gives the packet another network header moves ``l3``, not the packet.

Wire order is read and written byte by byte (``be16`` and friends): compilers make one instruction
of it, it never needs alignment, and it means the same on the uncompiled build.
"""

from __future__ import annotations

import cython

from tunlb.netif import NOWHERE, Netif

VNET_LEN = 10  #: legacy virtio-net header, on every port (linux/virtio_net.h)
ETHER_LEN = 14
VLAN_LEN = 4
L3_OFFSET = (
    144  #: where the IP header starts; 16-byte aligned, room for vnet + Ethernet + VLAN before it
)
MAX_FRAME = 65535 + ETHER_LEN + VLAN_LEN
BUFFER_LEN = L3_OFFSET + 65536 + 64

# L2 classes (linux/if_packet.h, DPVS: ETH_PKT_*)
HOST = 0
BROADCAST = 1
MULTICAST = 2
OTHERHOST = 3

# An address family is the IP version that carries it.
AF_INET = 4
AF_INET6 = 6

IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_UDP = 17
IPPROTO_ICMPV6 = 58
IPPROTO_SCTP = 132

NOT_FRAGMENT = 0
FIRST_FRAGMENT = 1
LATER_FRAGMENT = 2

CUT = -2  #: in ``owner``, beside STOLEN: the packet is to be sent in segments
# Packet.chosen; from 0 on it is the number of a dest
NOT_ASKED = -1
ASKED = -2  #: which dest for this packet?

_L3_OFFSET = cython.declare(cython.int, L3_OFFSET)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)


class Packet:
    """One frame.

    Offsets are indices into the buffer: ``start`` (first byte of the frame), ``l3``, ``l4``,
    ``end`` (one past the last byte that counts). Addresses are (hi, lo) pairs of unsigned 64 bits,
    IPv4 as ``::ffff:a.b.c.d``. ``neigh`` is the index of the neighbour to send to (0: not decided),
    ``reason`` the DropReason behind a DROP, and ``err_type`` >= 0 asks the one who counts the drop
    to send an ICMP error about it. ``owner`` >= 0 beside STOLEN asks for a hand-over to that
    worker, and CUT to be sent in segments; ``handed`` says that it came by a hand-over, and only
    then ``chosen`` means something: what workers ask each other about the packet (see
    ipvs/persist.py).
    """

    def __init__(self) -> None:
        self.mem = memoryview(bytearray(BUFFER_LEN))
        if cython.compiled:
            view: cython.uchar[::1] = self.mem
            self.p = cython.address(view[0])
        else:
            self.p = self.mem
        self.iif = NOWHERE
        self.oif: Netif | None = None
        self.mark = 0
        self.chosen = NOT_ASKED
        self.reset(0, 0)

    def reset(self, start: cython.int, end: cython.int) -> None:
        """Forget the previous frame; the new one lies in ``[start, end)``."""
        self.start = start
        self.end = end
        self.l3 = _L3_OFFSET
        self.l4 = 0
        self.ether_type = 0
        self.l2_type = 0
        self.af = 0
        self.proto = 0
        self.ttl = 0
        self.fragment = 0
        self.tcp_flags = 0
        self.icmp_type = 0
        self.saddr_hi = 0
        self.saddr = 0
        self.daddr_hi = 0
        self.daddr = 0
        self.sport = 0
        self.dport = 0
        self.neigh = 0
        self.reason = 0
        self.err_type = -1
        self.owner = -1
        self.csum_start = 0
        self.csum_offset = 0
        self.gso_type = 0
        self.gso_size = 0
        self.data_valid = False
        self.handed = False
        self.mark = 0

    def load(self, frame: bytes, iif: Netif) -> None:
        """Put a frame in as a port of ``iif`` reads it, virtio-net header first."""
        offset = _L3_OFFSET - VNET_LEN if iif.tun else _L3_OFFSET - ETHER_LEN - VNET_LEN
        self.mem[offset : offset + len(frame)] = frame
        self.iif = iif
        self.oif = None
        self.reset(offset + VNET_LEN, offset + len(frame))

    def frame(self) -> bytes:
        """The frame without its virtio-net header."""
        return bytes(self.mem[self.start : self.end])

    def drop(self, reason: cython.int) -> cython.int:
        """DROP (0) for ``reason``: what a hook or a stage returns."""
        self.reason = reason
        return 0

    def drop_with_error(
        self, reason: cython.int, err_type: cython.int, err_code: cython.int, err_info: cython.uint
    ) -> cython.int:
        """DROP, and tell the sender with this ICMP error; ``err_info`` is its second word (an MTU,
        or 0).
        """
        self.reason = reason
        self.err_type = err_type
        self.err_code = err_code
        self.err_info = err_info
        return 0

    def partial(self) -> cython.bint:
        """Is the TCP or UDP checksum still to be finished (CHECKSUM_PARTIAL)?"""
        return self.csum_start != 0 and self.csum_start == self.l4

    def wire_length(self) -> cython.int:
        """IP bytes of the packet, or of the largest segment that the kernel will make of it."""
        if self.gso_type == 0:
            return self.end - self.l3
        header: cython.int = 8 if self.proto == 17 else (self.p[self.l4 + 12] >> 4) * 4
        return self.l4 - self.l3 + header + self.gso_size

    # A pointer to the first byte, then constant indices: so a compiler makes one instruction of the
    # bytes, which it does not of `p[offset + 1]`.

    def be16(self, offset: cython.Py_ssize_t) -> cython.uint:
        if cython.compiled:
            p = self.p + offset
        else:
            p = self.mem[offset:]
        return (p[0] << 8) | p[1]

    def be32(self, offset: cython.Py_ssize_t) -> cython.uint:
        if cython.compiled:
            p = self.p + offset
        else:
            p = self.mem[offset:]
        high: cython.uint = p[0]
        return (high << 24) | (p[1] << 16) | (p[2] << 8) | p[3]

    def be64(self, offset: cython.Py_ssize_t) -> cython.ulonglong:
        high: cython.ulonglong = self.be32(offset)
        low: cython.ulonglong = self.be32(offset + 4)
        return (high << 32) | low

    def put16(self, offset: cython.Py_ssize_t, value: cython.uint) -> None:
        if cython.compiled:
            p = self.p + offset
        else:
            p = self.mem[offset:]
        p[0] = (value >> 8) & 0xFF
        p[1] = value & 0xFF

    def put32(self, offset: cython.Py_ssize_t, value: cython.uint) -> None:
        if cython.compiled:
            p = self.p + offset
        else:
            p = self.mem[offset:]
        p[0] = (value >> 24) & 0xFF
        p[1] = (value >> 16) & 0xFF
        p[2] = (value >> 8) & 0xFF
        p[3] = value & 0xFF

    def put64(self, offset: cython.Py_ssize_t, value: cython.ulonglong) -> None:
        self.put32(offset, value >> 32)
        self.put32(offset + 4, value & _MASK32)
