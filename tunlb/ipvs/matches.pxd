cimport cython
from tunlb.ipvs.match cimport Match
from tunlb.ipvs.service cimport Service
from tunlb.ipvs.sharding cimport Sharding
from tunlb.netif cimport Addresses, Netif
from tunlb.route cimport Route, RouteTable

@cython.final
cdef class MatchTable:
    cdef public list services
    cdef public set exempt

    cpdef Service find(
        self, Addresses addresses, RouteTable routes, Netif iif, int af, int proto,
        unsigned long long saddr_hi, unsigned long long saddr, int sport,
        unsigned long long daddr_hi, unsigned long long daddr, int dport)

cpdef bint bound(int af, unsigned long long hi, unsigned long long lo) noexcept
cpdef int owner(
    Sharding sharding, MatchTable matches, Addresses addresses, RouteTable routes, Netif iif, int af, int proto,
    unsigned long long saddr_hi, unsigned long long saddr, int sport,
    unsigned long long daddr_hi, unsigned long long daddr, int dport) except? -1
