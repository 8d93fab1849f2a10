"""ICMP echo: a ping is a flow of its own, from the first request to the last answer (RFC 5508).

A request's identifier stands for its source port, a reply's for its destination port, and the
other port is 0 (wire/icmp.py). So both keys of a conn are like those of UDP, and full NAT maps an
identifier like a port. Other messages open nothing; errors are ipvs/related.py's.
"""

from __future__ import annotations

from collections.abc import Mapping

import cython

from tunlb.counters import DropReason
from tunlb.ipvs.conn import ECHO
from tunlb.ipvs.protocol import DIR_OUTPUT, IDLE, Protocol
from tunlb.ipvs.timeouts import Timeouts
from tunlb.packet import IPPROTO_ICMP, IPPROTO_ICMPV6, Packet

STATES = ("NONE", "ONEWAY", "NORMAL")

_ONEWAY = cython.declare(cython.int, 1)
_NORMAL = cython.declare(cython.int, 2)
_OUTPUT = cython.declare(cython.int, DIR_OUTPUT)
_IDLE = cython.declare(cython.int, IDLE)
_REQUEST = cython.declare(cython.int, 8)
_V6_REQUEST = cython.declare(cython.int, 128)


class Icmp(Protocol):
    number = IPPROTO_ICMP
    name = "icmp"
    states = STATES

    def __init__(self) -> None:
        super().__init__()
        self.flags = ECHO
        self.refusal = DropReason.ECHO_UNKNOWN

    def opens(self, pkt: Packet) -> cython.bint:
        """A request does."""
        return pkt.icmp_type == (_REQUEST if pkt.af == 4 else _V6_REQUEST)

    def reopens(self, pkt: Packet, state: cython.int) -> cython.bint:
        return False

    def next_state(self, pkt: Packet, state: cython.int, direction: cython.int) -> cython.int:
        if direction == _OUTPUT or state == _NORMAL:
            return _NORMAL
        return _ONEWAY

    def kind(self, state: cython.int) -> cython.int:
        return _IDLE

    def timeouts(self, milliseconds: Mapping[str, int]) -> Timeouts:
        """Those of `icmp`, for both families."""
        return Timeouts(
            {i: milliseconds[f"icmp_{state.lower()}"] for i, state in enumerate(STATES)}
        )


class Icmpv6(Icmp):
    number = IPPROTO_ICMPV6
    name = "icmpv6"


PROTOCOL = Icmp
PROTOCOL_V6 = Icmpv6
