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

FREED = 512  #: prefixes freed in one piece of work

_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_HOST = cython.declare(cython.int, HOST)
_ICMP = cython.declare(cython.int, IPPROTO_ICMP)
_ICMPV6 = cython.declare(cython.int, IPPROTO_ICMPV6)
_DENIED = cython.declare(cython.int, DropReason.ACL_DENIED)
_NOT_ALLOWED = cython.declare(cython.int, DropReason.ACL_NOT_ALLOWED)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


class SourceList:
    """Prefixes over 128 bits, an IPv4 one of length n as one of 96 + n (see tunlb/route.py): one
    set for each length, so that a look-up costs as many steps as there are lengths.
    """

    def __init__(self) -> None:
        self._by_length: dict[int, set[tuple[int, int]]] = {}
        self._lengths_v4: list[int] = []
        self._lengths_v6: list[int] = []

    def add(self, hi: int, lo: int, length: int, af: int) -> None:
        """``length`` counts from the left of the 128 bits."""
        network = (hi << 64 | lo) >> (128 - length) << (128 - length)
        lengths = self._lengths_v4 if af == 4 else self._lengths_v6
        if length not in lengths:
            lengths.append(length)
        prefixes = self._by_length.setdefault(length if af == 6 else -length, set())
        prefixes.add((network >> 64, network & 0xFFFFFFFFFFFFFFFF))

    def drain(self) -> Iterator[None]:
        """Empty it, in pieces: freed at once, many prefixes take longer than a burst may wait."""
        for prefixes in self._by_length.values():
            while prefixes:
                for _ in range(min(FREED, len(prefixes))):
                    prefixes.pop()
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
            prefixes = self._by_length[length if af == 6 else -length]
            if (high, low) in prefixes:
                return True
        return False


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
        own: Acl | None = self.own.get(service.name)
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
