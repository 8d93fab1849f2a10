cimport cython

@cython.final
cdef class LportPool:
    cdef public int step, first, size, used
    cdef bytearray mem
    cdef int _rover

    cpdef int take(self) except -1
    cpdef int next_victim(self) noexcept
    cpdef bint claim(self, int port) except -1
    cpdef give(self, int port)
    cdef int _index(self, int port) noexcept

@cython.final
cdef class LportPools:
    cdef public int step, residue
    cdef dict _pools

    cpdef LportPool pool(
        self, unsigned long long laddr_hi, unsigned long long laddr, unsigned long long daddr_hi,
        unsigned long long daddr, unsigned int dport_proto)
