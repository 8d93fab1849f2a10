"""Routing-loop protection, layer (c): did we write this packet a moment ago?

A packet that we wrote and that comes back through a router differs only in its TTL, which is one
lower. The guard keeps a 64-bit fingerprint of the last packets written, in a direct-mapped table,
and looks each read packet up as it would have looked with a TTL one higher. A retransmission does
not match: it comes with the TTL that the sender gave it, and what we wrote had one less. Layers (a)
own MAC and (b) TTL live in wire.ether and in the stages that forward.
"""

from __future__ import annotations

import cython

from tunlb.packet import Packet

SLOTS = 4096
WINDOW_MS = 50

_MASK = cython.declare(cython.ulonglong, SLOTS - 1)
_WINDOW = cython.declare(cython.longlong, WINDOW_MS)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)
# Odd multipliers without structure (golden ratio and its kin): mixing, not secrecy.
_M1 = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)
_M2 = cython.declare(cython.ulonglong, 0xC2B2AE3D27D4EB4F)
_M3 = cython.declare(cython.ulonglong, 0x165667B19E3779F9)
_M4 = cython.declare(cython.ulonglong, 0x85EBCA77C2B2AE63)
_M5 = cython.declare(cython.ulonglong, 0x27D4EB2F165667C5)


class LoopGuard:
    """The table: SLOTS pairs of a fingerprint and when it was written, side by side in memory."""

    def __init__(self) -> None:
        self.mem = memoryview(bytearray(16 * SLOTS)).cast("Q")
        if cython.compiled:
            view: cython.ulonglong[::1] = self.mem
            self.slots = cython.address(view[0])
        else:
            self.slots = self.mem

    def fingerprint(self, pkt: Packet, ttl: cython.int) -> cython.ulonglong:
        """Addresses, protocol, length, TTL, IPv4 id and 8 bytes of the transport header."""
        rest: cython.ulonglong = pkt.end - pkt.l3
        rest = (rest << 16) | (ttl << 8) | pkt.proto
        if pkt.af == 4:
            rest |= cython.cast(cython.ulonglong, pkt.be16(pkt.l3 + 4)) << 48
        else:
            rest += pkt.saddr_hi * _M4 + pkt.daddr_hi * _M5
        value: cython.ulonglong = pkt.saddr * _M1 + pkt.daddr * _M2 + rest * _M3
        if pkt.end - pkt.l4 >= 8:
            value += pkt.be64(pkt.l4) * _M4
        value &= _MASK64
        value = ((value ^ (value >> 29)) * _M1) & _MASK64
        return value ^ (value >> 32)

    def wrote(self, pkt: Packet, now: cython.longlong) -> None:
        value: cython.ulonglong = self.fingerprint(pkt, pkt.ttl)
        at: cython.ulonglong = 2 * (value & _MASK)
        self.slots[at] = value
        self.slots[at + 1] = now

    def seen(self, pkt: Packet, now: cython.longlong) -> cython.bint:
        """Is this what we wrote within the last 50 ms, after one more hop?"""
        value: cython.ulonglong = self.fingerprint(pkt, pkt.ttl + 1)
        at: cython.ulonglong = 2 * (value & _MASK)
        written: cython.longlong = self.slots[at + 1]
        return self.slots[at] == value and now - written <= _WINDOW
