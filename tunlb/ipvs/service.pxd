cimport cython
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.ipvs.timeouts cimport Timeouts

@cython.final
cdef class Service:
    cdef public str name
    cdef public int af, proto, first_port, last_port
    cdef public tuple vaddr
    cdef public Scheduler scheduler
    cdef public Timeouts timeouts
    cdef public tuple laddrs
    cdef public long long drain_ms
    cdef public list dests
    cdef public int next_laddr

@cython.final
cdef class ServiceTable:
    cdef dict _exact, _ranges, _any, _protos

    cpdef Service lookup(self, int proto, unsigned long long hi, unsigned long long lo, int port)
    cpdef bint vip_has(self, int proto, unsigned long long hi, unsigned long long lo) except -1
