from tunlb.counters cimport Counters
from tunlb.netif cimport Netif
from tunlb.packet cimport Packet

cdef class Outbox:
    cdef public Counters counters
    cdef public list frames, resumed
    cdef public long long wake_at
    cdef public bint waiting

cpdef bytes copy_of(Packet pkt)

cdef class Sender:
    cpdef Packet fresh(self, Netif iif)
    cpdef bint reply(self, Packet pkt, long long now) except -1
    cpdef bint send(self, Packet pkt, long long now) except -1
