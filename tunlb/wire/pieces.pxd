cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.final
cdef class Pieces:
    cdef object mem
    cdef Bytes h
    cdef int header, size, at, end, proto, ttl
    cdef public int left
    cdef unsigned int word, sport, dport
    cdef unsigned long long saddr_hi, saddr, daddr_hi, daddr

    cpdef int begin(self, Packet pkt, int room) noexcept
    cpdef bint next(self, Packet pkt) noexcept
    @cython.locals(h=Bytes)
    cdef void _keep_copied(self) noexcept

cpdef void finish(Packet pkt) noexcept
