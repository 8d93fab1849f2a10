"""The Scheduler type: how a service picks the dest of a new conn."""

from __future__ import annotations

from collections.abc import Iterator

import cython

from tunlb.ipvs.dest import Dest
from tunlb.packet import Packet


class Scheduler:
    """Picks a dest for a new conn; one object a service.

    A subclass, compiled or plain Python, overrides :meth:`schedule` and, when it keeps something
    computed from the list, :meth:`update`. ``seed`` is the configured 64-bit seed: two directors
    with the same seed and the same dests pick the same dest.
    """

    def __init__(self, seed: int = 0, table_size: int = 65537) -> None:
        self.seed = seed
        self.table_size = table_size
        self.dests: list[Dest] = []

    def prepare(self, dests: list[Dest], weights: list[int]) -> Iterator[None]:
        """Compute in pieces, between packets, what :meth:`update` will need when it gets this very
        list and its dests have ``weights``. What takes less than some 100 us need not be prepared.

        Until then packets are scheduled as before; it may never come.
        """
        return iter(())

    def update(self, dests: list[Dest]) -> None:
        """The list of dests, or a weight in it, changed. Keep the place in a rotation where that
        makes sense.
        """
        self.dests = dests

    def schedule(self, pkt: Packet, now: cython.longlong) -> Dest | None:
        """The dest for the conn that ``pkt`` opens, or None when no dest is valid."""
        raise NotImplementedError
