cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

cdef class Overflow(Scheduler):
    @cython.locals(dest=Dest, highest=Dest)
    cpdef Dest schedule(self, Packet pkt, long long now)
