cimport cython
from tunlb.counters cimport Counters
from tunlb.netif cimport Addresses, Netif
from tunlb.outbox cimport Outbox
from tunlb.packet cimport Packet
from tunlb.peers cimport Peers
from tunlb.timers cimport Wheel

@cython.final
cdef class NeighEntry:
    cdef public int index
    cdef public Netif netif
    cdef public unsigned long long hi, lo
    cdef public int state
    cdef public bytes mac, prefix
    cdef public long long confirmed, requested
    cdef public bint pinned, asking
    cdef public list queue

cdef class NeighTable(Wheel):
    cdef public Counters counters
    cdef public Addresses addresses
    cdef public Outbox outbox
    cdef public Peers peers
    cdef public object rows
    cdef public dict netifs
    cdef public list entries
    cdef public unsigned int epoch
    cdef dict _by_key
    cdef list _free
    cdef NeighEntry _nobody

    @cython.locals(entry=NeighEntry)
    cpdef int resolve(self, Netif netif, unsigned long long hi, unsigned long long lo, long long now) except -1
    cpdef int output(self, Packet pkt, long long now) except -1
    cdef int _queue(self, NeighEntry entry, Packet pkt, long long now) except -1
    cdef _request(self, NeighEntry entry, long long now, bytes known)
    cpdef long long fire(self, int index, long long now) except? -1
    cpdef int arp_input(self, Packet pkt, long long now) except -1
    cpdef int nd_input(self, Packet pkt, long long now) except -1
    cdef bint _speaks(self) except -1
