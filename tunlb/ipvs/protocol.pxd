from tunlb.ipvs.timeouts cimport Timeouts
from tunlb.packet cimport Packet

cdef class Protocol:
    cdef public int flags, refusal

    cpdef bint opens(self, Packet pkt) noexcept
    cpdef bint resumes(self, Packet pkt) noexcept
    cpdef bint reopens(self, Packet pkt, int state) noexcept
    cpdef int next_state(self, Packet pkt, int state, int direction) noexcept
    cpdef int kind(self, int state) noexcept
