cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.final
cdef class Segments:
    cdef object mem
    cdef Bytes h
    cdef int header, l4, size, at, end, count, af, proto, ttl, csum_offset
    cdef public int left
    cdef unsigned long long saddr_hi, saddr, daddr_hi, daddr
    cdef unsigned int sport, dport, whole

    cpdef int begin(self, Packet pkt) noexcept
    cpdef bint next(self, Packet pkt) noexcept
    cdef void _network(self, Packet pkt) noexcept
    @cython.locals(p=Bytes)
    cdef void _transport(self, Packet pkt) noexcept
