cimport cython
from tunlb.ipvs.match cimport Prefixes

@cython.final
cdef class Telling:
    cdef readonly int what
    cdef readonly Prefixes trusted

    cpdef int of(self, unsigned long long hi, unsigned long long lo) except -1
