cimport cython
from tunlb.hook cimport Hook
from tunlb.ipvs.birth cimport Birth
from tunlb.packet cimport Packet

ctypedef unsigned long long* Words

@cython.final
cdef class SourceList:
    cdef list _lengths_v4, _lengths_v6, _added
    cdef object _mem
    cdef Words _t
    cdef long long _mask

    cpdef bint covers(self, int af) noexcept
    @cython.locals(lengths=list)
    cpdef bint has(self, int af, unsigned long long hi, unsigned long long lo) except -1
    @cython.locals(t=Words)
    cdef void _enter(self, unsigned long long hi, unsigned long long lo, unsigned long long tag) noexcept
    @cython.locals(t=Words)
    cdef long long _find(self, unsigned long long hi, unsigned long long lo, unsigned long long tag) noexcept

cdef unsigned int tag_of(int af, int length) noexcept

@cython.final
cdef class Acl:
    cdef public SourceList deny, allow

cdef class AclFilter(Hook):
    cdef public Birth birth
    cdef public Acl every
    cdef public dict own

    @cython.locals(every=Acl)
    cpdef int run(self, Packet pkt, long long now) except? -1
