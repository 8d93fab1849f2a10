cimport cython
from tunlb.counters cimport Counters
from tunlb.hook cimport Hook
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.laddr cimport LportPools
from tunlb.ipvs.life cimport ConnTimers, Life
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.service cimport Service, ServiceTable
from tunlb.ipvs.sharding cimport Sharding
from tunlb.neigh cimport NeighEntry, NeighTable
from tunlb.netif cimport Addresses
from tunlb.packet cimport Packet
from tunlb.route cimport Route, RouteTable

@cython.final
cdef class Ipvs:
    cdef public Counters counters
    cdef public Life life
    cdef public ConnTable conns
    cdef public NeighTable neighs
    cdef public RouteTable routes
    cdef public Addresses addresses
    cdef public LportPools pools
    cdef public ServiceTable services
    cdef public Sharding sharding
    cdef public list dests, protocols
    cdef public ConnTimers timers
    cdef public bint quiescent

    @cython.locals(conns=ConnTable)
    cpdef int receive(self, Packet pkt, long long now) except -1
    @cython.locals(sharding=Sharding)
    cdef bint _elsewhere(self, Packet pkt, int owner) except -1
    @cython.locals(conns=ConnTable)
    cdef int _admit(self, Packet pkt, long long row, int direction, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef _resolve(self, long long row, long long now)
    @cython.locals(conns=ConnTable)
    cdef int _track(
        self, Packet pkt, Protocol protocol, long long row, int direction, Dest dest, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef int _set_state(self, Protocol protocol, long long row, int state, Dest dest, long long now) except -1
    cdef int _send(self, Packet pkt, long long row, int direction, Dest dest) except -1
    cdef bint _forged(self, Packet pkt) except -1
    cdef int _related(self, Packet pkt, long long now) except -1
    cdef int _schedule(self, Packet pkt, Protocol protocol, long long now) except -1

cdef class Defence(Hook):
    cpdef int run(self, Packet pkt, long long now) except? -1

cdef class IpvsIn(Hook):
    cdef public Ipvs ipvs
    cpdef int run(self, Packet pkt, long long now) except? -1
