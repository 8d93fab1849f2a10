cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

@cython.locals(dest=Dest, found=Dest)
cpdef Dest soonest(list[Dest] dests)

cdef class ShortestExpectedDelay(Scheduler):
    cpdef Dest schedule(self, Packet pkt, long long now)
