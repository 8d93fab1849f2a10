cimport cython

@cython.final
cdef class SynPolicy:
    cdef public long long above, until
    cdef public int mss, most, less, wscale
    cdef public bint sack, stamps, on

    cpdef bint engaged(self, long long half_open) noexcept
    cpdef bint accepts(self, long long now) noexcept
    cpdef retire(self, long long now)
