"""UDP states: nothing was answered yet, or both sides have spoken (DPVS:
src/ipvs/ip_vs_proto_udp.c).
"""

from __future__ import annotations

import cython

from tunlb.ipvs.protocol import DIR_OUTPUT, IDLE, Protocol
from tunlb.packet import IPPROTO_UDP, Packet

STATES = ("NONE", "ONEWAY", "NORMAL", "LAST")

_ONEWAY = cython.declare(cython.int, 1)
_NORMAL = cython.declare(cython.int, 2)
_OUTPUT = cython.declare(cython.int, DIR_OUTPUT)
_IDLE = cython.declare(cython.int, IDLE)


class Udp(Protocol):
    number = IPPROTO_UDP
    name = "udp"
    states = STATES

    def opens(self, pkt: Packet) -> cython.bint:
        return True

    def reopens(self, pkt: Packet, state: cython.int) -> cython.bint:
        return False

    def next_state(self, pkt: Packet, state: cython.int, direction: cython.int) -> cython.int:
        if direction == _OUTPUT or state == _NORMAL:
            return _NORMAL
        return _ONEWAY

    def kind(self, state: cython.int) -> cython.int:
        return _IDLE


PROTOCOL = Udp
