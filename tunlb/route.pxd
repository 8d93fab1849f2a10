cimport cython
from tunlb.netif cimport Netif

@cython.final
cdef class Route:
    cdef public Netif netif
    cdef public bint on_link
    cdef public unsigned long long via_hi, via
    cdef public int mtu
    cdef public bint mtu_known

@cython.final
cdef class Prefixes:
    cdef public int length
    cdef public unsigned long long mask_hi, mask
    cdef public dict routes

@cython.final
cdef class RouteTable:
    cdef list _lengths, _lengths_v4
    cdef set _broadcasts

    cpdef bint is_broadcast(self, unsigned long long lo) except -1
    @cython.locals(lengths=list)
    cpdef Route lookup(self, unsigned long long hi, unsigned long long lo)
