cimport cython
from tunlb.counters cimport Counters
from tunlb.hook cimport Hook
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.neigh cimport NeighEntry, NeighTable
from tunlb.netif cimport Netif
from tunlb.outbox cimport Outbox
from tunlb.packet cimport Packet

@cython.final
cdef class TcClass:
    cdef public str service
    cdef public long long rate, burst, limit, level, updated, queued
    cdef public int priority
    cdef public object frames

    cpdef refill(self, long long now, bint waited)
    cpdef bint ready(self) noexcept
    cpdef int delay(self) except? -1
    cpdef charge(self, long long length)

@cython.final
cdef class TcPort:
    cdef public Netif netif
    cdef public list classes
    cdef public dict named
    cdef public TcClass whole
    cdef public int turn
    cdef public long long waiting

    cpdef refill(self, TcClass one, long long now)
    cpdef bint waits(self, int priority, long long now) except -1
    cpdef TcClass next(self)
    cpdef int delay(self) except? -1

cdef class TrafficControl(Hook):
    cdef public Counters counters
    cdef public ConnTable conns
    cdef public list dests
    cdef public NeighTable neighs
    cdef public Outbox outbox
    cdef public dict ports
    cdef public long long waiting

    cpdef int run(self, Packet pkt, long long now) except? -1
    cdef TcClass _class_of(self, Packet pkt, TcPort port)
    @cython.locals(conns=ConnTable)
    cdef Dest _dest_of(self, Packet pkt)
    cdef int _charge(self, TcClass mine, TcClass whole, long long length) except -1
    cdef int _queue(self, Packet pkt, TcClass mine, TcPort port, long long length, long long now) except -1
    cpdef advance(self, long long now)
    @cython.locals(length=cython.longlong)
    cdef _send(self, TcClass mine, TcPort port)
    cdef _wake(self, TcPort port, long long now)

cpdef long long wire_bytes(Packet pkt, Netif netif) noexcept
