"""What Life and Transmit ask about a row with the flag SYNPROXY; ipvs/synproxy.py answers."""

from __future__ import annotations

import cython

from tunlb.ipvs.dest import Dest
from tunlb.packet import Packet


class Proxying:
    """Asked for rows with SYNPROXY only."""

    def handle(
        self,
        pkt: Packet,
        row: cython.longlong,
        direction: cython.int,
        dest: Dest,
        now: cython.longlong,
    ) -> cython.int:
        """A packet of the conn, before its rewrite: ACCEPT to go on with it, else its verdict."""
        raise NotImplementedError

    def fire(self, row: cython.longlong, dest: Dest, now: cython.longlong) -> cython.longlong:
        """The row's timer: ms until the next look, 0 when the conn ended here, -1 when its
        handshakes are over and it expires like any other.
        """
        raise NotImplementedError

    def forget(self, row: cython.longlong) -> None:
        """The conn ends."""
        raise NotImplementedError
