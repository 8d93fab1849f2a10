cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

ctypedef unsigned long long* Words

cdef class ConsistentHash(Scheduler):
    cdef public list order
    cdef public object recipe, ring
    cdef object _prepared
    cdef int _size
    cdef Words _w

    @cython.locals(view=cython.ulonglong[::1])
    cdef _use(self, object ring)
    @cython.locals(dest=Dest, order=list, w=Words)
    cpdef Dest schedule(self, Packet pkt, long long now)
    @cython.locals(w=Words)
    cdef int after(self, unsigned long long wanted) noexcept
