"""Black and white lists of services (DPVS: ip_vs_blklst.c, ip_vs_whtlst.c).

They are asked before the connection table, so a source that is put on a list loses its conns at
their next packet. Only packets that find a service are asked about: those of clients. What dests
answer is not, and neither are ICMP errors, which a router on an honest client's path may send.

A source is refused when any deny line has it. A service that has allow lines of the source's family
refuses every source that none of them has. Lines without a service count for each.
"""

from __future__ import annotations

from collections.abc import Iterator

import cython

from tunlb.counters import DropReason
from tunlb.hook import Hook, Point, Verdict
from tunlb.ipvs.birth import Birth
from tunlb.ipvs.service import Service
from tunlb.packet import HOST, IPPROTO_ICMP, IPPROTO_ICMPV6, Packet

if cython.compiled:
    from cython.cimports.tunlb.wire import icmp
else:
    from tunlb.wire import icmp

PIECE = 256  #: prefixes entered in one piece of work
SLOT_WORDS = 3  #: 64-bit words of a slot of a SourceList

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_HOST = cython.declare(cython.int, HOST)
_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)
_DENIED = cython.declare(cython.int, DropReason.ACL_DENIED)
_NOT_ALLOWED = cython.declare(cython.int, DropReason.ACL_NOT_ALLOWED)
_SLOT_WORDS = cython.declare(cython.longlong, SLOT_WORDS)
_MIX1 = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)
_MIX2 = cython.declare(cython.ulonglong, 0xC2B2AE3D27D4EB4F)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


class SourceList:
    """Prefixes over 128 bits, an IPv4 one of length n as one of 96 + n (see tunlb/route.py): one
    table for all, so that a look-up costs one probe for each length that there is.

    :meth:`add` all of them, then :meth:`seal`.
    """

    def __init__(self) -> None:
        self._lengths_v4: list[int] = []
        self._lengths_v6: list[int] = []
        self._added: list[tuple[int, int, int]] = []
        self._use(1)

    def _use(self, size: int) -> None:
        """An empty table of ``size`` slots, a power of two: hi, lo and tag; a tag of 0 is none."""
        self._mem = memoryview(bytearray(8 * SLOT_WORDS * size)).cast("Q")
        self._mask = size - 1
        if cython.compiled:
            view: cython.ulonglong[::1] = self._mem
            self._t = cython.address(view[0])
        else:
            self._t = self._mem

    def add(self, hi: int, lo: int, length: int, af: int) -> None:
        """``length`` counts from the left of the 128 bits."""
        network = (hi << 64 | lo) >> (128 - length) << (128 - length)
        lengths = self._lengths_v4 if af == 4 else self._lengths_v6
        if length not in lengths:
            lengths.append(length)
        self._added.append((network >> 64, network & 0xFFFFFFFFFFFFFFFF, tag_of(af, length)))

    def seal(self) -> Iterator[None]:
        """Have :meth:`has` find what was added, in pieces."""
        self._use(1 << (2 * len(self._added)).bit_length())
        while self._added:
            for hi, lo, tag in self._added[-PIECE:]:
                self._enter(hi, lo, tag)
            del self._added[-PIECE:]
            yield

    def covers(self, af: cython.int) -> cython.bint:
        """Are there prefixes of this family?"""
        if af == 4:
            return len(self._lengths_v4) != 0
        return len(self._lengths_v6) != 0

    def has(self, af: cython.int, hi: cython.ulonglong, lo: cython.ulonglong) -> cython.bint:
        """Is an address in any of the prefixes?"""
        length: cython.int
        high: cython.ulonglong
        low: cython.ulonglong
        lengths = self._lengths_v4 if af == 4 else self._lengths_v6
        for length in lengths:
            if length > 64:
                high = hi
                low = lo & (_MASK64 << (128 - length)) & _MASK64
            else:
                high = 0 if length == 0 else hi & (_MASK64 << (64 - length)) & _MASK64
                low = 0
            if self._t[self._find(high, low, tag_of(af, length)) + 2] != 0:
                return True
        return False

    def _enter(self, hi: cython.ulonglong, lo: cython.ulonglong, tag: cython.ulonglong) -> None:
        t = self._t
        at: cython.longlong = self._find(hi, lo, tag)
        t[at] = hi
        t[at + 1] = lo
        t[at + 2] = tag

    def _find(
        self, hi: cython.ulonglong, lo: cython.ulonglong, tag: cython.ulonglong
    ) -> cython.longlong:
        """The word where a prefix is, or would be. Who sends packets cannot choose what is in the
        table, so its hash needs no secret.
        """
        t = self._t
        mixed: cython.ulonglong = (((hi ^ (hi >> 32)) + tag) * _MIX1) & _MASK64
        mixed = ((mixed ^ lo ^ (lo >> 32)) * _MIX2) & _MASK64
        slot: cython.longlong = (mixed >> 32) & self._mask
        at: cython.longlong
        while True:
            at = slot * _SLOT_WORDS
            if t[at + 2] == 0 or (t[at] == hi and t[at + 1] == lo and t[at + 2] == tag):
                return at
            slot = (slot + 1) & self._mask


def tag_of(af: cython.int, length: cython.int) -> cython.uint:
    """Family and length of a prefix; never 0."""
    return (af << 8) | length


class Acl:
    """Both lists of one service, or of all of them."""

    def __init__(self) -> None:
        self.deny = SourceList()
        self.allow = SourceList()


class AclFilter(Hook):
    """Asks about every packet that finds a service; registered only while there are lines."""

    point = Point.PRE_ROUTING
    priority = 99  # registered behind Defence, which knows the ports of fragments

    def __init__(self, birth: Birth, every: Acl, own: dict[str, Acl]) -> None:
        self.birth = birth
        self.every = every
        self.own = own

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        if pkt.l2_type != _HOST:
            return _ACCEPT
        service: Service | None = self.birth.services.lookup(
            pkt.proto, pkt.daddr_hi, pkt.daddr, pkt.dport
        )
        if service is None:
            return _ACCEPT
        if pkt.proto == (_ICMP if pkt.af == 4 else _ICMPV6) and icmp.is_error(pkt):
            return _ACCEPT
        every = self.every
        own: Acl | None = self.own.get(service.name) if self.own else None
        if every.deny.has(pkt.af, pkt.saddr_hi, pkt.saddr):
            return pkt.drop(_DENIED)
        if own is None:
            if every.allow.covers(pkt.af) and not every.allow.has(pkt.af, pkt.saddr_hi, pkt.saddr):
                return pkt.drop(_NOT_ALLOWED)
            return _ACCEPT
        if own.deny.has(pkt.af, pkt.saddr_hi, pkt.saddr):
            return pkt.drop(_DENIED)
        if not every.allow.covers(pkt.af) and not own.allow.covers(pkt.af):
            return _ACCEPT
        if every.allow.has(pkt.af, pkt.saddr_hi, pkt.saddr):
            return _ACCEPT
        if own.allow.has(pkt.af, pkt.saddr_hi, pkt.saddr):
            return _ACCEPT
        return pkt.drop(_NOT_ALLOWED)
