cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.sched.rr cimport RoundRobin
from tunlb.packet cimport Packet

cdef class WeightedRoundRobin(RoundRobin):
    cdef public int level, gcd

    @cython.locals(dests=list, dest=Dest)
    cpdef Dest schedule(self, Packet pkt, long long now)
    @cython.locals(dest=Dest)
    cdef int highest(self) except -1
