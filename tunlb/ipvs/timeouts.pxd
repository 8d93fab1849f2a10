cimport cython

@cython.final
cdef class Timeouts:
    cdef object mem
    cdef unsigned int* v

    cpdef unsigned int of(self, int state) noexcept
