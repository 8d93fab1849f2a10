"""Sequence numbers of a TCP conn whose two sides do not count alike (DPVS: fnat_seq_adj, and the
delta of its SYN proxy; Linux: nf_conntrack_seqadj).

Heads up: read RFC 9293 section 3.4 and RFC 2018 first. A row with the flag SEQUENCE has two
differences, either of which may be nothing:

- *the step*: bytes that we put into the client's stream, at one place (a PROXY header before the
  first byte). What the client counts as ``X_STEP_AT`` and on, the dest counts ``X_STEP`` higher;
  what comes before is the same to both.
- *the shift*: the dest's initial sequence number is not the one that the client was told (a SYN
  proxy answered before it knew). What the dest counts, the client counts ``X_SHIFT`` higher.

::

    INBOUND    seq: the step      ack, SACK: less the shift
    OUTBOUND   seq: and the shift ack, SACK: the step, undone

Numbers are modulo 2**32, so "before the step" can only be told while the step is near. Once the
dest has acknowledged all of it (``ACKED``), everything is behind it, for as long as the conn lives.

All of it is words of the row's extra, in shared memory: a successor goes on where a worker died. A
packet changes them in an order in which each state between is one that a lost packet may leave.
"""

from __future__ import annotations

import cython

from tunlb.ipvs.conn import H_FLAGS, SEQUENCE, X_SEQUENCE, ConnTable
from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.wire import checksum

# Words of the extra, for rows with SEQUENCE. Those behind are the SYN proxy's.
X_STATE = X_SEQUENCE  #: the bits below; AHEAD: the client's window as it wrote it, in the high half
X_SHIFT = X_SEQUENCE + 1  #: added to what the dest counts
X_STEP_AT = X_SEQUENCE + 2  #: READY: the client's first byte
X_STEP = X_SEQUENCE + 3  #: bytes put in before it; 0: none
X_SYN = X_SEQUENCE + 4  #: sequence number of the client's last SYN
X_FIRST_ACK = X_SEQUENCE + 5  #: READY: the dest's first byte, as the client counts
X_SENT_AT = X_SEQUENCE + 6  #: SENT: when the step last left, ms, low 32 bits
X_SYNPROXY = X_SEQUENCE + 7  #: 6 words

# Bits of X_STATE. The lower ones say how the client's address is told, see client_address.py.
TOA = 1
PROXY_V1 = 2
PROXY_V2 = 4
EVERY = 8  #: UDP: with every datagram
READY = 16  #: both initial numbers are known
SENT = 32  #: the step has left
ACKED = 64  #: the dest has acknowledged it
AHEAD = 128  #: data left without the step, which went in a segment of its own
KEEP = 256  #: SEQUENCE stays when the client's address has been told
SPOKEN = 512  #: TOA: the dest has sent what only an open connection has to send

_X_STATE = cython.declare(cython.longlong, X_STATE)
_X_SHIFT = cython.declare(cython.longlong, X_SHIFT)
_X_STEP_AT = cython.declare(cython.longlong, X_STEP_AT)
_X_STEP = cython.declare(cython.longlong, X_STEP)
_X_FIRST_ACK = cython.declare(cython.longlong, X_FIRST_ACK)
_H_FLAGS = cython.declare(cython.longlong, H_FLAGS)
_SEQUENCE = cython.declare(cython.int, SEQUENCE)
_READY = cython.declare(cython.uint, READY)
_SENT = cython.declare(cython.uint, SENT)
_ACKED = cython.declare(cython.uint, ACKED)
_AHEAD = cython.declare(cython.uint, AHEAD)
_KEEP = cython.declare(cython.uint, KEEP)
_SPOKEN = cython.declare(cython.uint, SPOKEN)
_HALF = cython.declare(cython.longlong, 0x8000_0000)
_MASK32 = cython.declare(cython.longlong, 0xFFFFFFFF)
_PLAIN_STAMPS = cython.declare(cython.uint, 0x0101080A)

# -- the numbers


def start(conns: ConnTable, row: cython.longlong) -> None:
    """The row's numbers may come to differ; they do not yet. Call it before the first packet."""
    i: cython.longlong
    for i in range(row * 16 + _X_STATE, row * 16 + 16):
        conns.x[i] = 0
    conns.h[row * 64 + _H_FLAGS] |= _SEQUENCE


def shift(conns: ConnTable, row: cython.longlong, difference: cython.uint) -> None:
    """From now on the client counts what the dest sends ``difference`` (mod 2**32) higher."""
    conns.x[row * 16 + _X_SHIFT] = difference
    conns.x[row * 16 + _X_STATE] |= _KEEP


def ready(
    conns: ConnTable, row: cython.longlong, first: cython.uint, first_ack: cython.uint
) -> None:
    """The handshake told both numbers: ``first``, of the client's first byte, and ``first_ack``, of
    the dest's as the client counts. Nothing was put in or acknowledged yet.
    """
    x = conns.x
    at: cython.longlong = row * 16
    x[at + _X_STATE] &= ~(_SENT | _ACKED | _AHEAD | _SPOKEN)
    x[at + _X_STEP_AT] = first
    x[at + _X_FIRST_ACK] = first_ack
    x[at + _X_STATE] |= _READY


def inserted(conns: ConnTable, row: cython.longlong, n: cython.uint) -> None:
    """``n`` bytes are put in before the client's first byte."""
    conns.x[row * 16 + _X_STEP] = n


def to_dest(conns: ConnTable, row: cython.longlong, number: cython.uint) -> cython.uint:
    """A sequence number of the client's as the dest counts it."""
    x = conns.x
    at: cython.longlong = row * 16
    step: cython.longlong = x[at + _X_STEP]
    state: cython.uint = x[at + _X_STATE]
    if step == 0 or not state & _READY:
        return number
    wide: cython.longlong = number
    beyond: cython.longlong = (wide - x[at + _X_STEP_AT]) & _MASK32
    # What starts at the place itself starts behind what was put in, once that is under way.
    if not state & _ACKED and (beyond >= _HALF or (beyond == 0 and not state & _SENT)):
        return number
    return (wide + step) & _MASK32


def to_client(conns: ConnTable, row: cython.longlong, number: cython.uint) -> cython.uint:
    """What the dest acknowledges of the client's stream, as the client counts it."""
    x = conns.x
    at: cython.longlong = row * 16
    step: cython.longlong = x[at + _X_STEP]
    state: cython.uint = x[at + _X_STATE]
    if step == 0 or not state & _READY:
        return number
    wide: cython.longlong = number
    if state & _ACKED:
        return (wide - step) & _MASK32
    beyond: cython.longlong = (wide - x[at + _X_STEP_AT]) & _MASK32
    if beyond >= _HALF:
        return number
    if beyond <= step:
        return x[at + _X_STEP_AT]
    return (wide - step) & _MASK32


def acknowledged(conns: ConnTable, row: cython.longlong, number: cython.uint) -> cython.bint:
    """Does the dest's ``number`` acknowledge all that was put in?"""
    at: cython.longlong = row * 16
    wide: cython.longlong = number
    beyond: cython.longlong = (wide - conns.x[at + _X_STEP_AT]) & _MASK32
    return conns.x[at + _X_STEP] <= beyond < _HALF


# -- the packets


def inbound(pkt: Packet, conns: ConnTable, row: cython.longlong) -> None:
    """Adjust a TCP packet of the client's, in place."""
    # A SYN opens, or opens anew: it is counted from nothing.
    if pkt.tcp_flags & 0x02:
        return
    change: cython.uint = 0
    shifted: cython.longlong = conns.x[row * 16 + _X_SHIFT]
    number: cython.uint = pkt.be32(pkt.l4 + 4)
    mapped: cython.uint = to_dest(conns, row, number)
    if mapped != number:
        change = exchange32(pkt, pkt.l4 + 4, mapped)
    if shifted != 0 and pkt.tcp_flags & 0x10:
        number = pkt.be32(pkt.l4 + 8)
        mapped = (number - shifted) & _MASK32
        change = checksum.fold(change + exchange32(pkt, pkt.l4 + 8, mapped))
        change = checksum.fold(change + _sack(pkt, conns, row, 0))
    if change != 0:
        checksum.fix_l4(pkt, pkt.l4 + 16, 0, change)


def outbound(pkt: Packet, conns: ConnTable, row: cython.longlong) -> None:
    """Adjust a TCP packet of the dest's, in place."""
    change: cython.uint = 0
    x = conns.x
    shifted: cython.longlong = x[row * 16 + _X_SHIFT]
    if shifted != 0:
        change = exchange32(pkt, pkt.l4 + 4, (pkt.be32(pkt.l4 + 4) + shifted) & _MASK32)
    if x[row * 16 + _X_STEP] != 0 and pkt.tcp_flags & 0x12 == 0x10:
        number: cython.uint = pkt.be32(pkt.l4 + 8)
        mapped: cython.uint = to_client(conns, row, number)
        if mapped != number:
            change = checksum.fold(change + exchange32(pkt, pkt.l4 + 8, mapped))
        change = checksum.fold(change + _sack(pkt, conns, row, 1))
    if change != 0:
        checksum.fix_l4(pkt, pkt.l4 + 16, 0, change)


def _sack(
    pkt: Packet, conns: ConnTable, row: cython.longlong, direction: cython.int
) -> cython.uint:
    """Adjust the edges of SACK blocks; by how much the checksum changes.

    A block that lies within the step says nothing to the client, and goes.
    """
    p = pkt.p
    begin: cython.int = pkt.l4 + 20
    end: cython.int = pkt.l4 + (p[pkt.l4 + 12] >> 4) * 4
    # Nothing, or timestamps alone: almost every packet.
    if end == begin or (end == begin + 12 and pkt.be32(begin) == _PLAIN_STAMPS):
        return 0
    at: cython.int = find_option(pkt, 5)
    if at == 0 or p[at + 1] < 10 or p[at + 1] & 7 != 2:
        return 0
    before: cython.uint = checksum.sum16(pkt, begin, end - begin)
    stop: cython.int = at + p[at + 1]
    source: cython.int = at + 2
    target: cython.int = source
    left: cython.uint
    right: cython.uint
    while source + 8 <= stop:
        left = _edge(conns, row, direction, pkt.be32(source))
        right = _edge(conns, row, direction, pkt.be32(source + 4))
        source += 8
        if left != right:
            pkt.put32(target, left)
            pkt.put32(target + 4, right)
            target += 8
    if target == at + 2:
        target = at
    else:
        p[at + 1] = target - at
    while target < stop:
        p[target] = 1
        target += 1
    return checksum.delta(before, checksum.sum16(pkt, begin, end - begin))


def _edge(
    conns: ConnTable, row: cython.longlong, direction: cython.int, number: cython.uint
) -> cython.uint:
    if direction != 0:
        return to_client(conns, row, number)
    shifted: cython.longlong = conns.x[row * 16 + _X_SHIFT]
    return (number - shifted) & _MASK32


def find_option(pkt: Packet, kind: cython.int) -> cython.int:
    """Where the TCP option ``kind`` starts, whole within the header; 0 when there is none."""
    p = pkt.p
    at: cython.int = pkt.l4 + 20
    end: cython.int = pkt.l4 + (p[pkt.l4 + 12] >> 4) * 4
    length: cython.int
    while at < end:
        if p[at] == 0:
            return 0
        if p[at] == 1:
            at += 1
            continue
        if at + 2 > end:
            return 0
        length = p[at + 1]
        if length < 2 or at + length > end:
            return 0
        if p[at] == kind:
            return at
        at += length
    return 0


def exchange32(pkt: Packet, offset: cython.Py_ssize_t, value: cython.uint) -> cython.uint:
    """Write ``value`` at ``offset``, an even one of the segment; by how much the checksum
    changes.
    """
    old: cython.uint = pkt.be32(offset)
    pkt.put32(offset, value)
    return checksum.delta(
        checksum.fold((old >> 16) + (old & 0xFFFF)), checksum.fold((value >> 16) + (value & 0xFFFF))
    )
