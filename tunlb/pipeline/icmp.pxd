cimport cython
from tunlb.counters cimport Counters
from tunlb.netif cimport Addresses
from tunlb.outbox cimport Outbox
from tunlb.packet cimport Packet
from tunlb.pipeline.ip cimport Ip

@cython.final
cdef class IcmpErrors:
    cdef public Counters counters
    cdef public Addresses addresses
    cdef public Ip ip
    cdef public Outbox outbox
    cdef public object bucket
    cdef public Packet packet

    cpdef send(self, Packet pkt, long long now)
