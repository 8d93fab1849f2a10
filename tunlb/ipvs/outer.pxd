from tunlb.counters cimport Counters
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.service cimport ServiceTable
from tunlb.ipvs.sharding cimport Sharding
from tunlb.ipvs.xmit.tunnel cimport Tunnel
from tunlb.neigh cimport NeighTable
from tunlb.netif cimport Addresses
from tunlb.packet cimport Packet
from tunlb.peers cimport Peers

cdef class OuterErrors:
    cdef public Counters counters
    cdef public Life life
    cdef public NeighTable neighs
    cdef public Sharding sharding
    cdef public Peers peers
    cdef public Tunnel tunnel
    cdef long long _second
    cdef int _news

    cpdef int receive(
        self, Packet pkt, Addresses addresses, ServiceTable services, long long now) except -2
    cpdef expire(self, long long now)
