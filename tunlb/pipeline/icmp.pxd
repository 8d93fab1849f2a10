cimport cython
from tunlb.counters cimport Counters
from tunlb.netif cimport Addresses
from tunlb.outbox cimport Sender
from tunlb.packet cimport Packet

@cython.final
cdef class IcmpErrors:
    cdef public Counters counters
    cdef public Addresses addresses
    cdef public Sender sender
    cdef public object bucket

    cpdef send(self, Packet pkt, long long now)
