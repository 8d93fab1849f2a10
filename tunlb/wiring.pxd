from tunlb.netif cimport Addresses
from tunlb.route cimport RouteTable

cdef class Wiring:
    cdef public list netifs
    cdef public dict by_name, vlans
    cdef public Addresses addresses
    cdef public RouteTable routes
    cdef public bint announce
