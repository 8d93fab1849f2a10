cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.service cimport Service
from tunlb.packet cimport Packet

@cython.final
cdef class ConnRates:
    cdef public Counters counters
    cdef public ConnTable conns
    cdef public object mem
    cdef unsigned long long* v

    @cython.locals(v="unsigned long long*")
    cpdef bint take(self, Packet pkt, Service service, long long now) except -1
    @cython.locals(v="unsigned long long*")
    cdef long long _find(
        self, unsigned long long saddr_hi, unsigned long long saddr, unsigned long long vaddr_hi,
        unsigned long long vaddr, unsigned long long endpoint, long long now) noexcept
