cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

cdef class DestinationHash(Scheduler):
    cdef public list table

    @cython.locals(dest=Dest, table=list)
    cpdef Dest schedule(self, Packet pkt, long long now)
