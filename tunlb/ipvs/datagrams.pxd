cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest

@cython.final
cdef class Datagram:
    cdef public unsigned long long saddr_hi, saddr, daddr_hi, daddr
    cdef public unsigned int ident, ports
    cdef public int key_proto, proto, whole, furthest, done
    cdef public long long born
    cdef public bint contradicted
    cdef public Dest dest
    cdef list _beyond

    cpdef begin(self, int proto, unsigned int ports, long long now)
    cpdef bint complete(self) noexcept
    cpdef int see(self, int start, int end, bint more) except -1
    @cython.locals(spans=list)
    cdef int _place(self, int start, int end) except -1

@cython.final
cdef class Datagrams:
    cdef public Counters counters
    cdef public ConnTable conns
    cdef public Datagram current
    cdef list _sets

    @cython.locals(members=list)
    cpdef Datagram find(
        self, unsigned long long saddr_hi, unsigned long long saddr, unsigned long long daddr_hi,
        unsigned long long daddr, unsigned int ident, int key_proto, long long now)
    @cython.locals(members=list)
    cpdef Datagram enter(
        self, unsigned long long saddr_hi, unsigned long long saddr, unsigned long long daddr_hi,
        unsigned long long daddr, unsigned int ident, int key_proto, long long now)
