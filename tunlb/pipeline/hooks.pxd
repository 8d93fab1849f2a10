cimport cython
from tunlb.counters cimport Counters
from tunlb.hook cimport Hook
from tunlb.packet cimport Packet

@cython.final
cdef class Chain:
    cdef public Counters counters
    cdef public object on_error
    cdef public list hooks
    cdef public int n

    cpdef int run(self, Packet pkt, long long now) except -1
