cimport cython
from tunlb.netif cimport Addresses

@cython.final
cdef class Sharding:
    cdef readonly unsigned int workers
    cdef readonly int worker
    cdef unsigned long long _k0, _k1, _k2, _k3, _k4, _k5

    cpdef int by_endpoint(
        self, unsigned long long hi, unsigned long long lo, unsigned long long port) noexcept
    cpdef int owner(
        self, Addresses addresses, unsigned long long saddr_hi, unsigned long long saddr,
        unsigned int sport, unsigned long long daddr_hi, unsigned long long daddr,
        unsigned int dport) except -1
