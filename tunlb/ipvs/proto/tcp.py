"""TCP states, as IPVS and DPVS follow them (net/netfilter/ipvs/ip_vs_proto_tcp.c, RFC 9293 section
3.3.2).

A balancer is no endpoint: it sees segments pass and guesses what both ends believe. It looks at one
flag only, in the order RST, SYN, FIN, ACK; a segment without any closes. INPUT is what clients
send, OUTPUT what dests send; INPUT-ONLY is for DR, where replies do not pass and the client's ACK
is all the proof of a handshake there is.

The states are those of the dest's side: SYN_RECV until the client's ACK proves the handshake,
ESTABLISHED from then on, FIN_WAIT when the dest closed first, CLOSE_WAIT when the client did,
TIME_WAIT once both have. A lost or reordered segment may leave a conn in a state for too long,
never in a wrong service: states decide timeouts and who is evicted, not where packets go.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.protocol import CLOSING, ESTABLISHED, HALF_OPEN, Protocol
from tunlb.packet import IPPROTO_TCP, Packet

STATES = (
    "NONE",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "SYNACK",
    "LAST",
)

_SHORT = ("NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA")

#: INPUT, OUTPUT, INPUT-ONLY; rows syn, fin, ack, rst; columns NO ES SS SR FW TW CL CW LA LI SA.
#: Without sloppy_tcp: a conn is only ever born by a SYN.
_TABLES = """
SR ES ES SR SR SR SR SR SR SR SR
CL CW SS TW TW TW CL CW LA LI TW
CL ES SS ES FW TW CL CW CL LI ES
CL CL CL SR CL CL CL CL LA LI SR

SS ES SS SR SS SS SS SS SS LI SR
TW FW SS TW FW TW CL TW LA LI TW
ES ES SS ES FW TW CL CW LA ES ES
CL CL SS CL CL TW CL CL CL CL CL

SR ES ES SR SR SR SR SR SR SR SR
CL FW SS TW FW TW CL CW LA LI TW
CL ES SS ES FW TW CL CW CL LI ES
CL CL CL SR CL CL CL CL LA LI CL
"""

_COLUMNS = cython.declare(cython.int, 11)
_ROWS = cython.declare(cython.int, 4)
_LAST = cython.declare(cython.int, 11)
CLOSE = STATES.index("CLOSE")
_CLOSE = cython.declare(cython.int, CLOSE)
_KINDS = bytes(
    HALF_OPEN
    if name in ("NONE", "SYN_SENT", "SYN_RECV", "SYNACK")
    else ESTABLISHED
    if name == "ESTABLISHED"
    else CLOSING
    for name in STATES
)


class Tcp(Protocol):
    number = IPPROTO_TCP
    name = "tcp"
    states = STATES
    resumed = 1  # ESTABLISHED

    def __init__(self) -> None:
        super().__init__()
        self.table = bytes(_SHORT.index(word) for word in _TABLES.split())
        self.kinds = _KINDS

    def opens(self, pkt: Packet) -> cython.bint:
        """A SYN without ACK, FIN or RST."""
        return pkt.tcp_flags & 0x17 == 0x02

    def resumes(self, pkt: Packet) -> cython.bint:
        """Any segment with ACK, but a SYN-ACK or a RST."""
        return pkt.tcp_flags & 0x16 == 0x10

    def reopens(self, pkt: Packet, state: cython.int) -> cython.bint:
        """A bare SYN on a conn that both ends have closed (TIME_WAIT, CLOSE) reuses its ports."""
        return pkt.tcp_flags & 0x17 == 0x02 and (state == 5 or state == 6)

    def next_state(self, pkt: Packet, state: cython.int, direction: cython.int) -> cython.int:
        flags: cython.int = pkt.tcp_flags
        event: cython.int
        if flags & 0x04:
            event = 3
        elif flags & 0x02:
            event = 0
        elif flags & 0x01:
            event = 1
        elif flags & 0x10:
            event = 2
        else:
            return _CLOSE
        if state >= _LAST:
            return _CLOSE
        return self.table[(direction * _ROWS + event) * _COLUMNS + state]

    def kind(self, state: cython.int) -> cython.int:
        return self.kinds[state]


PROTOCOL = Tcp
