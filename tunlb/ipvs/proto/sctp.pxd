from tunlb.ipvs.protocol cimport Protocol
from tunlb.packet cimport Packet

cdef class Sctp(Protocol):
    cdef bytes table, kinds, events

    cpdef bint opens(self, Packet pkt) noexcept
    cpdef bint reopens(self, Packet pkt, int state) noexcept
    cpdef int next_state(self, Packet pkt, int state, int direction) noexcept
    cpdef int kind(self, int state) noexcept
