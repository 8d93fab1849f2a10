cimport cython

@cython.final
cdef class Others:
    cdef readonly list rows
    cdef readonly int workers
    cdef unsigned long long* v[63]

    cpdef long long sum(self, long long word) noexcept

@cython.final
cdef class Tally:
    cdef public long long count
    cdef readonly long long word
    cdef readonly Others others
    cdef readonly object part
    cdef unsigned long long* v

    cpdef void add(self, int n) noexcept
    cpdef void publish(self) noexcept
    @cython.locals(others=Others)
    cpdef long long total(self) noexcept
