"""Outbox: frames that we originate (ARP, ND, ICMP, released packets), written after the burst, and
Sender: what takes a packet of our own there.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason
from tunlb.netif import Netif
from tunlb.packet import VNET_LEN, Packet

OUTBOX_MAX = 1024  #: frames per burst; more are dropped as OUTBOX_FULL

PLAIN_VNET = bytes(VNET_LEN)  #: the virtio-net header of a frame that asks for no offload

_MAX = cython.declare(cython.int, OUTBOX_MAX)
_VNET_LEN = cython.declare(cython.int, VNET_LEN)
_OUTBOX_FULL = cython.declare(cython.int, DropReason.OUTBOX_FULL)


Resumed = tuple[Netif, bytes, int, bool]  #: where it came in, as copy_of has it, mark, handed


class Outbox:
    """A bounded list of (interface, virtio-net header + frame).

    Also what else there is to do after a burst: ``resumed`` are fragments that waited and go on now
    (see Director.resume), ``wake_at`` is when the director wants to be woken (ms, -1: not before
    its next tick). ``waiting``: there is any of these.
    """

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.frames: list[tuple[Netif, bytes]] = []
        self.resumed: list[Resumed] = []
        self.wake_at = -1
        self.waiting = False

    def put(self, netif: Netif, frame: bytes) -> bool:
        """Queue ``frame``, which starts with its virtio-net header."""
        if len(self.frames) >= _MAX:
            self.counters.drop(_OUTBOX_FULL)
            return False
        self.frames.append((netif, frame))
        self.waiting = True
        return True

    def take(self) -> list[tuple[Netif, bytes]]:
        frames = self.frames
        self.frames = []
        self.waiting = self.wake_at >= 0 or bool(self.resumed)
        return frames

    def resume(self, fragments: list[Resumed]) -> None:
        self.resumed += fragments
        self.waiting = True

    def take_resumed(self) -> list[Resumed]:
        resumed = self.resumed
        self.resumed = []
        return resumed

    def wake(self, at: int) -> None:
        """Wake the director at ``at`` (ms), or earlier."""
        if self.wake_at < 0 or at < self.wake_at:
            self.wake_at = at
        self.waiting = True

    def take_wake(self) -> int:
        at = self.wake_at
        self.wake_at = -1
        return at


class Sender:
    """Sends packets of our own. Whoever makes one below the pipeline is given the pipeline's way
    out (pipeline.originate) as this.
    """

    def fresh(self, iif: Netif) -> Packet:
        """An empty Packet to build into, one for all: build, :meth:`send`, forget. ``iif`` is where
        that came in by which it answers; users' hooks may look.
        """
        raise NotImplementedError

    def reply(self, pkt: Packet, now: cython.longlong) -> cython.bint:
        """Send a packet that came in and was turned into its answer, addresses and headers in
        place, back to the station that it came from; False when it was dropped, which is counted.
        No route and no neighbour is asked for, so it costs nothing that a flood could use up.
        """
        raise NotImplementedError

    def send(self, pkt: Packet, now: cython.longlong) -> cython.bint:
        """Send what was built into :meth:`fresh`'s packet, addresses and headers in place, by
        LOCAL_OUT and its route; False when it was dropped, which is counted.
        """
        raise NotImplementedError


def copy_of(pkt: Packet) -> bytes:
    """The packet as a port would write it, virtio-net header included (see wire.vnet.emit)."""
    if cython.compiled:
        frame = pkt.p[pkt.start - _VNET_LEN : pkt.end]
    else:
        frame = bytes(pkt.mem[pkt.start - VNET_LEN : pkt.end])
    return frame
