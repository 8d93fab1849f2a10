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
    cdef public long long actconns, inactconns
    cdef public unsigned long long conns, in_packets, out_packets, in_bytes, out_bytes

    cpdef bint valid(self) noexcept
    cpdef long long overhead(self) noexcept
