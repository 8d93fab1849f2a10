cimport cython

@cython.final
cdef class Counters:
    cdef public object mem
    cdef unsigned long long* v

    cpdef void drop(self, int reason) noexcept
    cpdef void add(self, int event, unsigned long long n) noexcept
    cpdef void set(self, int gauge, unsigned long long value) noexcept
