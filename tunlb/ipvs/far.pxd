from tunlb.netif cimport Addresses

cdef class FarEnd:
    cdef public int kind, af, inner_af, port, overhead, reason
    cdef public bint csum, narrow
    cdef public tuple wanted
    cdef public unsigned long long src_hi, src
    cdef public Addresses known

    cpdef int room(self, int mtu) noexcept
    cpdef bint leaves_df_out(self, int mtu) noexcept
    cdef int _least(self) noexcept

cdef class Paths:
    cdef public dict known
