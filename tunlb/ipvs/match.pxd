cimport cython

@cython.final
cdef class Prefix:
    cdef readonly unsigned long long hi, lo, mask_hi, mask

@cython.final
cdef class Prefixes:
    cdef readonly list prefixes

    cpdef bint hold(self, unsigned long long hi, unsigned long long lo) noexcept

@cython.final
cdef class Match:
    cdef readonly Prefixes src, dst
    cdef readonly int first_sport, last_sport, first_dport, last_dport
    cdef readonly str iport, oport

    cpdef bint ports(self, int sport, int dport) noexcept
