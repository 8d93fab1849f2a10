cimport cython
from tunlb.netif cimport Netif
from tunlb.packet cimport Packet

@cython.final
cdef class Segment:
    cdef public Netif iif
    cdef public bytes data
    cdef public int af, proto, ttl, l4, tcp_flags, csum_start, csum_offset, gso_type, gso_size
    cdef public unsigned long long saddr_hi, saddr, daddr_hi, daddr
    cdef public unsigned int sport, dport

    cpdef unload(self, Packet pkt)
    cpdef load(self, Packet pkt)

@cython.final
cdef class Held:
    cdef public long long count, bytes
    cdef dict _rows

    cpdef bint put(self, long long row, Packet pkt) except -1
    cpdef list take(self, long long row)
