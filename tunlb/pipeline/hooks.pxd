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
    cdef public Hook before
    cdef public Chain rest

    cpdef Chain behind(self, Hook hook)
    @cython.locals(rest=Chain)
    cdef Chain _behind(self, Hook hook)
    cpdef int run(self, Packet pkt, long long now) except -1
