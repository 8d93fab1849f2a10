from tunlb.ipvs.timeouts cimport Timeouts

cdef class Dest:
    cdef public int id, af
    cdef public unsigned long long daddr_hi, daddr
    cdef public int dport, weight, fwdmode
    cdef public long long max_conn
    cdef public bint available
    cdef public Timeouts timeouts
    cdef public str service_name
    cdef public long long drain_until
    cdef readonly object stats
    cdef unsigned long long* v

    cpdef bint valid(self) noexcept
    cpdef long long load(self) noexcept
    cpdef long long overhead(self) noexcept
