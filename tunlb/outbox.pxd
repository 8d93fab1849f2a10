from tunlb.counters cimport Counters
from tunlb.netif cimport Netif

cdef class Outbox:
    cdef public Counters counters
    cdef public list frames
