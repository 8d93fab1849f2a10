cimport cython
from tunlb.counters cimport Counters
from tunlb.hook cimport Hook
from tunlb.neigh cimport NeighTable
from tunlb.netif cimport Addresses, Netif
from tunlb.packet cimport Packet
from tunlb.pipeline.guard cimport LoopGuard
from tunlb.pipeline.hooks cimport Chain
from tunlb.route cimport Route, RouteTable

@cython.final
cdef class Ip:
    cdef public Counters counters
    cdef public Addresses addresses
    cdef public RouteTable routes
    cdef public NeighTable neighs
    cdef public LoopGuard guard
    cdef public Chain pre_routing, local_in_chain, forward_chain, local_out_chain, post_routing

    cpdef int rcv(self, Packet pkt, long long now) except -1
    cdef int _parse_transport(self, Packet pkt) noexcept
    cpdef int reread(self, Packet pkt) noexcept
    cpdef int rcv_fin(self, Packet pkt, long long now) except -1
    cdef int _nd(self, Packet pkt, long long now) except -1
    cdef int _stays(self, Packet pkt) except -1
    cpdef int local_in(self, Packet pkt, long long now) except -1
    cdef int _echo(self, Packet pkt, long long now) except -1
    cpdef int forward(self, Packet pkt, long long now) except -1
    cpdef int local_out(self, Packet pkt, long long now) except -1
    cdef bint _nexthop(self, Packet pkt, Route route, long long now) except -1
    cpdef int resume(self, Packet pkt, Hook hook, long long now) except -1
    cpdef int output(self, Packet pkt, long long now) except -1

cpdef bint is_group(Packet pkt) noexcept
cpdef bint is_link_local(Packet pkt) noexcept
