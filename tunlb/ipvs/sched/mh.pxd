cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

ctypedef unsigned short* Slots
ctypedef unsigned int* Words

cdef class MaglevHash(Scheduler):
    cdef public list order
    cdef public object table
    cdef Slots t

    @cython.locals(t=Slots, w=Words, view=cython.uint[::1])
    cdef int fill(self, object work, int n) except -1
    @cython.locals(dest=Dest, order=list)
    cpdef Dest schedule(self, Packet pkt, long long now)
