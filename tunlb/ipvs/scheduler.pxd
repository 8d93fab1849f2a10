from tunlb.ipvs.dest cimport Dest
from tunlb.packet cimport Packet

cdef class Scheduler:
    cdef public unsigned long long seed
    cdef public int table_size
    cdef public list dests

    cpdef Dest schedule(self, Packet pkt, long long now)
