cimport cython
from tunlb.packet cimport Packet

@cython.final
cdef class LoopGuard:
    cdef object prints_mem, times_mem
    cdef unsigned long long* prints
    cdef long long* times

    cpdef unsigned long long fingerprint(self, Packet pkt, int ttl) noexcept
    cpdef void wrote(self, Packet pkt, long long now) noexcept
    cpdef bint seen(self, Packet pkt, long long now) noexcept
