cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

cdef class PowerOfTwo(Scheduler):
    cdef public unsigned long long state

    cpdef unsigned long long draw(self) noexcept
    @cython.locals(dest=Dest, first=Dest, second=Dest)
    cpdef Dest schedule(self, Packet pkt, long long now)
    @cython.locals(dest=Dest, last=Dest)
    cdef Dest at(self, long long place)
