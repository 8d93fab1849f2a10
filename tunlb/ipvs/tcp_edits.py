"""Changes to one TCP segment, each with its checksum kept as right, or as wrong, as it was."""

from __future__ import annotations

import cython

from tunlb.packet import Packet

if cython.compiled:
    from cython.cimports.tunlb.ipvs import sequence
    from cython.cimports.tunlb.wire import checksum, splice
else:
    from tunlb.ipvs import sequence
    from tunlb.wire import checksum, splice


def put_seq(pkt: Packet, number: cython.uint) -> None:
    checksum.fix_l4(pkt, pkt.l4 + 16, 0, sequence.exchange32(pkt, pkt.l4 + 4, number))


def put_flags(pkt: Packet, header: cython.int, flags: cython.int) -> None:
    """A header of so many bytes with these flags (and with all the reserved bits as they were)."""
    old: cython.uint = pkt.be16(pkt.l4 + 12)
    new: cython.uint = (header << 10) | (old & 0x0F00) | flags
    pkt.put16(pkt.l4 + 12, new)
    pkt.tcp_flags = flags
    checksum.fix_l4(pkt, pkt.l4 + 16, 0, checksum.delta(old, new))


def move_urgent(pkt: Packet, n: cython.int) -> None:
    """Urgent data lies ``n`` bytes further from the segment's start."""
    old: cython.uint = pkt.be16(pkt.l4 + 18)
    new: cython.uint = min(old + n, 0xFFFF)
    pkt.put16(pkt.l4 + 18, new)
    checksum.fix_l4(pkt, pkt.l4 + 16, 0, checksum.delta(old, new))


def blank(pkt: Packet, kind: cython.int) -> None:
    """NOPs over every option of this kind. TOA's: nobody but us says who the client is."""
    at: cython.int = sequence.find_option(pkt, kind)
    while at != 0:
        _blank_one(pkt, at)
        at = sequence.find_option(pkt, kind)


def _blank_one(pkt: Packet, at: cython.int) -> None:
    p = pkt.p
    begin: cython.int = pkt.l4 + 20
    size: cython.int = (p[pkt.l4 + 12] >> 4) * 4 - 20
    before: cython.uint = checksum.sum16(pkt, begin, size)
    end: cython.int = at + p[at + 1]
    while at < end:
        p[at] = 1
        at += 1
    checksum.fix_l4(pkt, pkt.l4 + 16, 0, checksum.delta(before, checksum.sum16(pkt, begin, size)))


def cut_payload(pkt: Packet) -> None:
    """Data of a SYN (RFC 7413) would come before the header, or open a connection without TOA. Not
    acknowledged, it comes again.
    """
    begin: cython.int = pkt.l4 + (pkt.p[pkt.l4 + 12] >> 4) * 4
    if pkt.end > begin:
        splice.replace(pkt, begin, pkt.end - begin, b"")
        pkt.gso_type = 0


def lower_mss(pkt: Packet, n: cython.int) -> None:
    """Have the client leave room for ``n`` bytes of options in each segment."""
    at: cython.int = sequence.find_option(pkt, 2)
    p = pkt.p
    if at == 0 or p[at + 1] != 4:
        return
    mss: cython.int = pkt.be16(at + 2) - n
    if mss < 64:
        return
    begin: cython.int = pkt.l4 + 20
    size: cython.int = (p[pkt.l4 + 12] >> 4) * 4 - 20
    before: cython.uint = checksum.sum16(pkt, begin, size)
    pkt.put16(at + 2, mss)
    checksum.fix_l4(pkt, pkt.l4 + 16, 0, checksum.delta(before, checksum.sum16(pkt, begin, size)))


def lower_window(pkt: Packet, n: cython.int) -> None:
    """Of the room that the dest's SYN-ACK tells of, which is never scaled, the header takes so much
    before the client's first byte.
    """
    old: cython.int = pkt.be16(pkt.l4 + 14)
    new: cython.int = old - n if old > n else 0
    pkt.put16(pkt.l4 + 14, new)
    checksum.fix_l4(pkt, pkt.l4 + 16, 0, checksum.delta(old, new))
