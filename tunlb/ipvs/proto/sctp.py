"""SCTP states, as IPVS and DPVS follow them (net/netfilter/ipvs/ip_vs_proto_sctp.c, RFC 9260
section 4).

One chunk of a packet counts: the first, or an ABORT that is bundled behind COOKIE ECHO or COOKIE
ACK. As for TCP, states decide timeouts and who is evicted, not where packets go. An association is
known by one pair of endpoints: packets of a multi-homed peer's other addresses belong to no conn.
"""

from __future__ import annotations

import cython

from tunlb.counters import DropReason
from tunlb.ipvs.conn import CRC32C
from tunlb.ipvs.protocol import CLOSING, ESTABLISHED, HALF_OPEN, Protocol
from tunlb.packet import IPPROTO_SCTP, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import sctp
else:
    from tunlb.wire import sctp

STATES = (
    "NONE",
    "INIT1",
    "INIT",
    "COOKIE_SENT",
    "COOKIE_REPLIED",
    "COOKIE_WAIT",
    "COOKIE",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECEIVED",
    "SHUTDOWN_ACK_SENT",
    "REJECTED",
    "CLOSED",
    "LAST",
)

_SHORT = ("NO", "I1", "IN", "CS", "CR", "CW", "CO", "CE", "ES", "SS", "SR", "SA", "RJ", "CL")

#: INPUT, OUTPUT, INPUT-ONLY; rows by chunk: any other, INIT, INIT ACK, COOKIE ECHO, COOKIE ACK,
#: SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE, ERROR, ABORT; columns as _SHORT; `..` as it was.
_TABLES = """
ES .. .. .. .. .. .. .. .. .. .. .. .. ..
I1 IN .. .. .. .. .. .. .. .. .. .. IN IN
CW CW CW .. .. CO .. .. .. .. .. .. .. ..
CR IN .. CR .. .. .. .. .. .. .. .. .. ..
ES .. .. .. .. .. .. ES .. .. .. .. .. ..
SR .. .. .. .. .. .. .. SR .. .. .. .. ..
CL IN .. .. .. .. .. .. .. CL .. CL .. ..
CL CL CL .. .. .. .. .. .. .. .. CL .. ..
CL .. .. .. .. .. .. CL .. .. .. .. .. ..
CL CL CL CL CL RJ CL CL CL CL CL CL CL ..

ES .. .. .. .. .. .. .. .. .. .. .. .. ..
CW CW CW CW CW .. CW CW .. CW CW CW CW CW
CS CS CS .. .. .. .. .. .. .. .. .. .. ..
CE CE CE CE CE CE CE .. .. .. .. .. .. ..
ES ES ES ES ES ES ES ES .. .. .. .. .. ..
SS SS SS SS SS SS SS SS SS .. .. .. .. ..
SA SA SA SA SA .. .. .. .. SA SA .. .. ..
CL .. .. .. .. .. .. .. .. .. .. .. .. ..
CL CL CL CL CL .. .. .. .. .. .. .. .. ..
CL RJ CL CL CL CL CL CL CL CL CL CL CL ..

ES .. .. .. .. ES .. .. .. .. .. .. .. ..
I1 IN .. IN IN IN .. .. .. .. .. .. IN IN
CE CE CE CE CE CE .. .. .. .. .. .. .. ..
ES ES ES ES ES ES .. .. .. .. .. .. .. ..
ES .. .. ES ES .. ES ES .. .. .. .. .. ..
SR .. .. .. .. .. .. .. SR .. .. .. .. ..
CL IN .. .. .. .. .. .. CL CL .. CL .. ..
CL CL CL CL CL .. .. .. .. .. CL CL .. ..
CL .. .. .. .. .. .. .. .. .. .. .. .. ..
CL CL CL CL CL RJ CL CL CL CL CL CL CL ..
"""

#: The row of each chunk type below 16.
_EVENTS = bytes((0, 1, 2, 0, 0, 0, 9, 5, 6, 8, 3, 4, 0, 0, 7, 0))
_COLUMNS = cython.declare(cython.int, len(_SHORT))
_ROWS = cython.declare(cython.int, 10)
_LAST = cython.declare(cython.int, len(_SHORT))
_REJECTED = cython.declare(cython.int, 12)
_CLOSED = cython.declare(cython.int, 13)
_KINDS = bytes(
    ESTABLISHED if name == "ESTABLISHED" else HALF_OPEN if i < 8 else CLOSING
    for i, name in enumerate(STATES)
)


def _compiled_tables() -> bytes:
    """The tables with `..` written out."""
    words = _TABLES.split()
    columns = len(_SHORT)
    return bytes(
        i % columns if word == ".." else _SHORT.index(word) for i, word in enumerate(words)
    )


class Sctp(Protocol):
    number = IPPROTO_SCTP
    name = "sctp"
    states = STATES

    def __init__(self) -> None:
        super().__init__()
        self.flags = CRC32C
        self.refusal = DropReason.SCTP_NOT_INIT
        self.table = _compiled_tables()
        self.kinds = _KINDS
        self.events = _EVENTS

    def opens(self, pkt: Packet) -> cython.bint:
        """An INIT."""
        return sctp.is_init(pkt)

    def reopens(self, pkt: Packet, state: cython.int) -> cython.bint:
        """An INIT on a conn that has ended reuses its ports. On an established one it restarts the
        association (RFC 9260 section 5.2.2), which has to happen where it is.
        """
        return (state == _CLOSED or state == _REJECTED) and sctp.is_init(pkt)

    def next_state(self, pkt: Packet, state: cython.int, direction: cython.int) -> cython.int:
        kind: cython.int = sctp.event(pkt)
        event: cython.int = self.events[kind] if kind < 16 else 0
        if state >= _LAST:
            return _CLOSED
        return self.table[(direction * _ROWS + event) * _COLUMNS + state]

    def kind(self, state: cython.int) -> cython.int:
        return self.kinds[state]


PROTOCOL = Sctp
