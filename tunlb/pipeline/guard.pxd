cimport cython
from tunlb.packet cimport Packet

@cython.final
cdef class LoopGuard:
    cdef object mem
    cdef unsigned long long* slots

    cpdef unsigned long long fingerprint(self, Packet pkt, int ttl) noexcept
    cpdef void wrote(self, Packet pkt, long long now) noexcept
    cpdef bint seen(self, Packet pkt, long long now) noexcept
