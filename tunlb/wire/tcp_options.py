"""The options of a TCP header that a handshake agrees on (RFC 9293 section 3.2, RFC 7323, RFC
2018): read, and written for segments of our own.
"""

from __future__ import annotations

import cython

from tunlb.packet import Packet

MSS_LEN = 4
DEFAULT_MSS = 536  #: where a SYN has no MSS option (RFC 9293 section 3.7.1)
WSCALE_MAX = 14  #: RFC 7323 section 2.3
NO_WSCALE = 15

_END = cython.declare(cython.int, 0)
_NOP = cython.declare(cython.int, 1)
_MSS = cython.declare(cython.int, 2)
_WSCALE = cython.declare(cython.int, 3)
_SACK_PERMITTED = cython.declare(cython.int, 4)
_TIMESTAMPS = cython.declare(cython.int, 8)
_WSCALE_MAX = cython.declare(cython.int, WSCALE_MAX)
_NO_WSCALE = cython.declare(cython.int, NO_WSCALE)
_DEFAULT_MSS = cython.declare(cython.int, DEFAULT_MSS)


class TcpOptions:
    """What :meth:`parse` found: ``wscale`` NO_WSCALE where there is none; ``timestamps`` says
    whether ``tsval`` and ``tsecr`` are there.
    """

    def __init__(self) -> None:
        self.mss = DEFAULT_MSS
        self.wscale = NO_WSCALE
        self.sack = False
        self.timestamps = False
        self.tsval = 0
        self.tsecr = 0

    def parse(self, pkt: Packet) -> None:
        """Read the options of a checked header at ``l4``. What is malformed ends them, as RFC 9293
        leaves it to us: nothing behind it can be found.
        """
        self.mss = _DEFAULT_MSS
        self.wscale = _NO_WSCALE
        self.sack = False
        self.timestamps = False
        self.tsval = 0
        self.tsecr = 0
        p = pkt.p
        at: cython.int = pkt.l4 + 20
        end: cython.int = pkt.l4 + (p[pkt.l4 + 12] >> 4) * 4
        kind: cython.int
        length: cython.int
        while at < end:
            kind = p[at]
            if kind == _END:
                return
            if kind == _NOP:
                at += 1
                continue
            if at + 1 >= end:
                return
            length = p[at + 1]
            if length < 2 or at + length > end:
                return
            if kind == _MSS and length == 4:
                self.mss = pkt.be16(at + 2)
            elif kind == _WSCALE and length == 3:
                # More than 14 is taken for 14 (RFC 7323 section 2.3).
                self.wscale = p[at + 2] if p[at + 2] < _WSCALE_MAX else _WSCALE_MAX
            elif kind == _SACK_PERMITTED and length == 2:
                self.sack = True
            elif kind == _TIMESTAMPS and length == 10:
                self.timestamps = True
                self.tsval = pkt.be32(at + 2)
                self.tsecr = pkt.be32(at + 6)
            at += length


def find_timestamps(pkt: Packet) -> cython.int:
    """Where TSval lies, TSecr 4 bytes behind it; 0 where there are no timestamps."""
    p = pkt.p
    at: cython.int = pkt.l4 + 20
    end: cython.int = pkt.l4 + (p[pkt.l4 + 12] >> 4) * 4
    # The layout that RFC 7323 recommends (appendix A), which nearly all segments have.
    if end >= at + 12 and p[at] == 1 and p[at + 1] == 1 and p[at + 2] == 8 and p[at + 3] == 10:
        return at + 4
    kind: cython.int
    length: cython.int
    while at < end:
        kind = p[at]
        if kind == _END:
            return 0
        if kind == _NOP:
            at += 1
            continue
        if at + 1 >= end:
            return 0
        length = p[at + 1]
        if length < 2 or at + length > end:
            return 0
        if kind == _TIMESTAMPS and length == 10:
            return at + 2
        at += length
    return 0


def length_of(
    mss: cython.bint, wscale: cython.bint, sack: cython.bint, timestamps: cython.bint
) -> cython.int:
    """Bytes that :func:`write` takes, a multiple of 4."""
    length: cython.int = 4 if mss else 0
    if timestamps:
        length += 12
    elif sack:
        length += 4
    if wscale:
        length += 4
    return length


def write(
    pkt: Packet,
    mss: cython.int,
    wscale: cython.int,
    sack: cython.bint,
    timestamps: cython.bint,
    tsval: cython.uint,
    tsecr: cython.uint,
) -> None:
    """Options behind the header at ``l4``, in the order and alignment of Linux; no MSS for 0, no
    window scale for NO_WSCALE.
    """
    p = pkt.p
    at: cython.int = pkt.l4 + 20
    if mss != 0:
        p[at] = 2
        p[at + 1] = 4
        pkt.put16(at + 2, mss)
        at += 4
    if timestamps or sack:
        p[at] = 4 if sack else 1
        p[at + 1] = 2 if sack else 1
        if timestamps:
            p[at + 2] = 8
            p[at + 3] = 10
            pkt.put32(at + 4, tsval)
            pkt.put32(at + 8, tsecr)
            at += 12
        else:
            p[at + 2] = 1
            p[at + 3] = 1
            at += 4
    if wscale != _NO_WSCALE:
        p[at] = 1
        p[at + 1] = 3
        p[at + 2] = 3
        p[at + 3] = wscale
