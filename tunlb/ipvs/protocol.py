"""The Protocol type: which packets open a conn, and how a conn's state follows its packets."""

from __future__ import annotations

from collections.abc import Mapping

import cython

from tunlb.counters import DropReason
from tunlb.ipvs.timeouts import Timeouts
from tunlb.packet import Packet

# Which packets of the conn pass us; the first index of every state table.
DIR_INPUT = 0  #: from the client, replies pass too
DIR_OUTPUT = 1  #: from the dest
DIR_INPUT_ONLY = 2  #: from the client, replies do not pass (DR)

# What a state means to the rest of tunlb.
HALF_OPEN = 0  #: evicted first when the table is full
CLOSING = 1  #: evicted next; a new SYN may take its place
IDLE = 2  #: evicted last (UDP)
ESTABLISHED = 3  #: never evicted


class Protocol:
    """One balanced protocol; a subclass per file of ipvs/proto/.

    ``flags`` are what its conns have in their rows (see ipvs/conn.py). ``refusal`` is the
    DropReason of a packet to a service that may not open a conn.
    """

    number = 0
    name = ""
    states: tuple[str, ...] = ()
    resumed = 0  #: the state of a conn that we go on with in its middle

    def __init__(self) -> None:
        self.flags = 0
        self.refusal: int = DropReason.TCP_NOT_SYN

    def opens(self, pkt: Packet) -> cython.bint:
        """May this packet open a conn?"""
        raise NotImplementedError

    def resumes(self, pkt: Packet) -> cython.bint:
        """Is this packet the middle of a conn that another director may have known?"""
        return False

    def reopens(self, pkt: Packet, state: cython.int) -> cython.bint:
        """Is this packet, on a conn in ``state``, the start of another conn on the same ports?"""
        raise NotImplementedError

    def next_state(self, pkt: Packet, state: cython.int, direction: cython.int) -> cython.int:
        """The state after this packet; ``direction`` is one of DIR_*."""
        raise NotImplementedError

    def kind(self, state: cython.int) -> cython.int:
        """HALF_OPEN, CLOSING, IDLE or ESTABLISHED."""
        raise NotImplementedError

    def timeouts(self, milliseconds: Mapping[str, int]) -> Timeouts:
        """From a mapping of ``<protocol>_<state>`` to ms, all states of this protocol."""
        return Timeouts(
            {i: milliseconds[f"{self.name}_{state.lower()}"] for i, state in enumerate(self.states)}
        )
