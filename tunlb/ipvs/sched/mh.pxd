cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

ctypedef unsigned short* Slots
ctypedef unsigned int* Words

@cython.final
cdef class Population:
    cdef public list order
    cdef public int size
    cdef public object table
    cdef Slots t
    cdef object _words
    cdef Words _w
    cdef unsigned int _left
    cdef int _dest

    @cython.locals(t=Slots, w=Words)
    cpdef bint grow(self) except -1

cdef class MaglevHash(Scheduler):
    cdef public list order
    cdef public object table
    cdef public bytes recipe
    cdef object _prepared
    cdef Slots t

    @cython.locals(dest=Dest, order=list)
    cpdef Dest schedule(self, Packet pkt, long long now)
