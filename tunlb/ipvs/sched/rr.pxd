cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

cdef class RoundRobin(Scheduler):
    cdef public int place

    @cython.locals(dests=list, dest=Dest)
    cpdef Dest schedule(self, Packet pkt, long long now)
