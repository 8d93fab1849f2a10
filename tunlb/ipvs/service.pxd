cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.match cimport Match
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.ipvs.synpolicy cimport SynPolicy
from tunlb.ipvs.tally cimport Tally
from tunlb.ipvs.telling cimport Telling
from tunlb.ipvs.timeouts cimport Timeouts

@cython.final
cdef class Service:
    cdef public str name
    cdef public int af, proto, first_port, last_port
    cdef public Telling telling
    cdef public tuple vaddr
    cdef public Scheduler scheduler
    cdef public Timeouts timeouts
    cdef public tuple laddrs
    cdef public long long drain_ms
    cdef public list dests
    cdef public int next_laddr, mss_clamp, expire_nodest, expire_quiescent
    cdef public bint fallback
    cdef public Match match
    cdef public Dest bypass
    cdef public bint snat
    cdef public Tally half_open
    cdef public SynPolicy synproxy
    cdef public long long persistence_ms, max_conn, slow_start_ms
    cdef public unsigned long long mask_hi, mask
    cdef public bint ops, reset_on_expire, remembers
    cdef public Tally carried
    cdef public int conn_rate, conn_burst
    cdef tuple _laddrs_v4, _laddrs_v6

    cpdef tuple laddrs_of(self, int af)

cpdef object service_key(
    unsigned long long proto, unsigned long long hi, unsigned long long lo, unsigned long long port)

@cython.final
cdef class ServiceTable:
    cdef dict _exact, _ranges, _any, _protos, _by_dest
    cdef public bint any_fallback

    cpdef Service lookup(self, int proto, unsigned long long hi, unsigned long long lo, int port)
    cpdef bint vip_has(self, int proto, unsigned long long hi, unsigned long long lo) except -1
