cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

cdef class NeverQueue(Scheduler):
    @cython.locals(dest=Dest)
    cpdef Dest schedule(self, Packet pkt, long long now)
