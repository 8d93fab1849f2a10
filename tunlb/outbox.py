"""Outbox: frames that we originate (ARP, ND, ICMP, released packets), written after the burst."""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason
from tunlb.netif import Netif
from tunlb.packet import VNET_LEN, Packet

OUTBOX_MAX = 1024  #: frames per burst; more are dropped as OUTBOX_FULL

PLAIN_VNET = bytes(VNET_LEN)  #: the virtio-net header of a frame that asks for no offload

_MAX = cython.declare(cython.int, OUTBOX_MAX)
_OUTBOX_FULL = cython.declare(cython.int, DropReason.OUTBOX_FULL)


class Outbox:
    """A bounded list of (interface, virtio-net header + frame)."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.frames: list[tuple[Netif, bytes]] = []

    def put(self, netif: Netif, frame: bytes) -> bool:
        """Queue ``frame``, which starts with its virtio-net header."""
        if len(self.frames) >= _MAX:
            self.counters.drop(_OUTBOX_FULL)
            return False
        self.frames.append((netif, frame))
        return True

    def take(self) -> list[tuple[Netif, bytes]]:
        frames = self.frames
        self.frames = []
        return frames


def copy_of(pkt: Packet) -> bytes:
    """The packet as a port would write it, virtio-net header included (see wire.vnet.emit)."""
    return bytes(pkt.mem[pkt.start - VNET_LEN : pkt.end])
