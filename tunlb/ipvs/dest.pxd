cimport cython
from tunlb.ipvs.far cimport FarEnd
from tunlb.ipvs.tally cimport Others, Tally
from tunlb.ipvs.telling cimport Telling
from tunlb.ipvs.timeouts cimport Timeouts

cdef class Dest:
    cdef public int id, af
    cdef public unsigned long long daddr_hi, daddr
    cdef public int dport, weight, fwdmode
    cdef public long long max_conn, min_conn
    cdef public bint available, limited, reset_on_expire
    cdef public int full_weight, policy
    cdef public long long ramp_from
    cdef public Tally carried
    cdef public Timeouts timeouts
    cdef public str service_name
    cdef public long long counted_active, counted_inactive, counted_templates
    cdef public long long half_open
    cdef public Tally half_opens
    cdef public long long drain_until
    cdef public int mss_clamp
    cdef public Telling telling
    cdef public FarEnd far
    cdef readonly Others others
    cdef readonly object stats
    cdef object _filled
    cdef unsigned long long* v
    cdef unsigned long long* f

    cpdef bint valid(self) noexcept
    cpdef void half_opened(self, int n) noexcept
    cpdef bint weigh(self) noexcept
    cpdef void count(self, int change) noexcept
    cpdef long long load(self) noexcept
    @cython.locals(others=Others)
    cpdef long long active(self) noexcept
    @cython.locals(others=Others)
    cpdef long long inactive(self) noexcept
    cpdef long long total(self) noexcept
    cpdef long long overhead(self) noexcept
