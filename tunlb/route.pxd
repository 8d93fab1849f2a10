cimport cython
from tunlb.netif cimport Netif

@cython.final
cdef class Route:
    cdef public Netif netif
    cdef public bint on_link
    cdef public unsigned long long via_hi, via
    cdef public int mtu

@cython.final
cdef class RouteTable:
    cdef dict _by_length
    cdef list _lengths
    cdef set _broadcasts

    cpdef bint is_broadcast(self, unsigned long long lo) except -1
    @cython.locals(prefixes=dict)
    cpdef Route lookup(self, unsigned long long hi, unsigned long long lo)
