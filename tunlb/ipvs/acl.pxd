cimport cython
from tunlb.hook cimport Hook
from tunlb.ipvs.birth cimport Birth
from tunlb.packet cimport Packet

@cython.final
cdef class SourceList:
    cdef dict _by_length
    cdef list _lengths_v4, _lengths_v6

    cpdef bint covers(self, int af) noexcept
    @cython.locals(lengths=list, prefixes=set)
    cpdef bint has(self, int af, unsigned long long hi, unsigned long long lo) except -1

@cython.final
cdef class Acl:
    cdef public SourceList deny, allow

cdef class AclFilter(Hook):
    cdef public Birth birth
    cdef public Acl every
    cdef public dict own

    @cython.locals(every=Acl)
    cpdef int run(self, Packet pkt, long long now) except? -1
