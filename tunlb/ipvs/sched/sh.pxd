cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

cpdef unsigned long long address_hash(unsigned long long seed, unsigned long long hi, unsigned long long lo, unsigned int offset) noexcept
cpdef unsigned long long source_hash(unsigned long long seed, Packet pkt, unsigned int offset) noexcept

cdef class SourceHash(Scheduler):
    cdef public list table

    @cython.locals(dest=Dest, table=list)
    cpdef Dest schedule(self, Packet pkt, long long now)
