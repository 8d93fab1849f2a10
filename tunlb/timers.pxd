cimport cython

ctypedef unsigned int* Links

cdef class Wheel:
    cdef public int capacity, slots, count
    cdef public long long tick_ms
    cdef public unsigned long long fired
    cdef readonly object mem
    cdef Links p
    cdef unsigned int due, base
    cdef long long tick
    cdef bint started

    cpdef void schedule(self, int index, long long now, long long delay_ms) noexcept
    @cython.locals(p=Links)
    cpdef void cancel(self, int index) noexcept
    @cython.locals(p=Links)
    cpdef bint scheduled(self, int index) noexcept
    cpdef int advance(self, long long now, int budget) except -1
    cpdef long long fire(self, int index, long long now) except? -1

    cdef long long ticks(self, long long time) noexcept
    cdef void collect(self, long long tick) noexcept
    @cython.locals(p=Links)
    cdef void splice(self, unsigned int slot) noexcept
    @cython.locals(p=Links)
    cdef void link(self, unsigned int node, unsigned int head) noexcept
    @cython.locals(p=Links)
    cdef void unlink(self, unsigned int node) noexcept
