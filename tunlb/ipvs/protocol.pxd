from tunlb.ipvs.timeouts cimport Timeouts
from tunlb.packet cimport Packet

cdef class Protocol:
    cpdef bint opens(self, Packet pkt) noexcept
    cpdef bint reopens(self, Packet pkt, int state) noexcept
    cpdef int next_state(self, Packet pkt, int state, int direction) noexcept
    cpdef int kind(self, int state) noexcept
