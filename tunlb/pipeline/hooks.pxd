cimport cython
from tunlb.counters cimport Counters
from tunlb.hook cimport Hook
from tunlb.packet cimport Packet

@cython.final
cdef class Link:
    cdef public Hook hook
    cdef public Link then

@cython.final
cdef class Chain:
    cdef public Counters counters
    cdef public object on_error
    cdef public list hooks
    cdef public Link first

    cpdef int run(self, Packet pkt, long long now) except -1
    @cython.locals(rest=Chain)
    cpdef Chain behind(self, Hook hook)
