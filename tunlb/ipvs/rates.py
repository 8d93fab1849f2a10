"""How many conns a source may open: a token bucket for each source of a service.

Buckets lie in sets of WAYS; a source's set is chosen by the conn table's keyed hash, so nobody
picks whom he pushes out. A set that is full forgets the source that was unseen for longest, which
finds a full bucket when it comes again: a crowd of sources makes the limit softer, never harder.
An IPv6 source is a /64, which is the least that a subscriber has.

Workers have their buckets in common, in memory that all of them write without locks: a source's
conns come to all of them, and are to be counted as one. Two that take a token in the same few
nanoseconds may take the same one, and two that begin a bucket in the same place may leave one of
nobody's: that too only makes the limit softer.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, Event
from tunlb.ipvs.conn import ConnTable
from tunlb.ipvs.service import Service
from tunlb.packet import Packet

SOURCES = 65536  #: buckets
WAYS = 4

#: 64-bit words of a bucket: saddr_hi, saddr, vaddr_hi, vaddr; the service's first port << 8 | proto
#: (0: nobody's); thousandths of a conn << 32 | when that was, ms, low 32 bits.
WORDS = 6
RATES_SIZE = 8 * WORDS * SOURCES  #: bytes of all buckets

_WAYS = cython.declare(cython.int, WAYS)
_WORDS = cython.declare(cython.longlong, WORDS)
_SETS = cython.declare(cython.uint, SOURCES // WAYS)
_EVICTED = cython.declare(cython.int, Event.RATE_EVICTED)
_MASK32 = cython.declare(cython.ulonglong, 0xFFFFFFFF)


class ConnRates:
    """The buckets: 3 MB, which are zero, and so cost nothing, until they are used. ``mem`` is that
    memory, RATES_SIZE bytes, which may be shared.
    """

    def __init__(self, counters: Counters, conns: ConnTable, mem: memoryview | None = None) -> None:
        self.counters = counters
        self.conns = conns
        self.mem = memoryview(bytearray(RATES_SIZE) if mem is None else mem).cast("Q")
        if cython.compiled:
            view: cython.ulonglong[::1] = self.mem
            self.v = cython.address(view[0])
        else:
            self.v = self.mem

    def take(self, pkt: Packet, service: Service, now: cython.longlong) -> cython.bint:
        """May the source of ``pkt`` open a conn of ``service`` now? Takes a token if so."""
        v = self.v
        saddr_hi: cython.ulonglong = pkt.saddr_hi
        saddr: cython.ulonglong = pkt.saddr if pkt.af == 4 else 0
        ports: cython.ulonglong = service.first_port
        at: cython.longlong = self._find(
            saddr_hi, saddr, pkt.daddr_hi, pkt.daddr, (ports << 8) | service.proto, now
        )
        full: cython.longlong = service.conn_burst if service.conn_burst != 0 else service.conn_rate
        full *= 1000
        level: cython.longlong = full
        moment: cython.ulonglong = now & _MASK32
        if v[at + 4] != 0:
            gone: cython.longlong = (moment - v[at + 5]) & _MASK32
            level = v[at + 5] >> 32
            level += gone * service.conn_rate
            if level > full:
                level = full
        else:
            v[at] = saddr_hi
            v[at + 1] = saddr
            v[at + 2] = pkt.daddr_hi
            v[at + 3] = pkt.daddr
            v[at + 4] = (ports << 8) | service.proto
        passes: cython.bint = level >= 1000
        if passes:
            level -= 1000
        v[at + 5] = (cython.cast(cython.ulonglong, level) << 32) | moment
        return passes

    def _find(
        self,
        saddr_hi: cython.ulonglong,
        saddr: cython.ulonglong,
        vaddr_hi: cython.ulonglong,
        vaddr: cython.ulonglong,
        endpoint: cython.ulonglong,
        now: cython.longlong,
    ) -> cython.longlong:
        """Where the source's bucket is; one of nobody when it had none."""
        v = self.v
        bucket: cython.uint = self.conns.hash_tuple(
            saddr_hi, saddr, vaddr_hi, vaddr, endpoint >> 8, endpoint & 0xFF
        )
        base: cython.longlong = (bucket % _SETS) * _WAYS
        base *= _WORDS
        moment: cython.ulonglong = now & _MASK32
        victim: cython.longlong = base
        oldest: cython.ulonglong = 0
        age: cython.ulonglong
        way: cython.int
        at: cython.longlong
        for way in range(_WAYS):
            at = base + way * _WORDS
            if v[at + 4] == 0:
                return at
            if (
                v[at + 1] == saddr
                and v[at] == saddr_hi
                and v[at + 3] == vaddr
                and v[at + 2] == vaddr_hi
                and v[at + 4] == endpoint
            ):
                return at
            age = (moment - v[at + 5]) & _MASK32
            if age >= oldest:
                oldest = age
                victim = at
        v[victim + 4] = 0
        self.counters.add(_EVICTED, 1)
        return victim
