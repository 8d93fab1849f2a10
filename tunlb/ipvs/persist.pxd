cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.service cimport Service
from tunlb.ipvs.sharding cimport Sharding
from tunlb.netif cimport Addresses
from tunlb.packet cimport Packet
from tunlb.peers cimport Peers

@cython.final
cdef class Persistence:
    cdef public Counters counters
    cdef public Life life
    cdef public ConnTable conns
    cdef public Sharding sharding
    cdef public Peers peers

    @cython.locals(conns=ConnTable)
    cdef int template(
        self, Packet pkt, Service service, Addresses addresses, long long now) except? -9
    cdef unsigned int ports(self, Service service) noexcept
    cdef bint leads(self, Service service, Dest dest, long long now) noexcept
    @cython.locals(conns=ConnTable)
    cdef hold(self, long long row, long long template)
    @cython.locals(conns=ConnTable)
    cdef let_go(self, long long template)
    @cython.locals(conns=ConnTable)
    cdef int _point(
        self, long long entry, unsigned long long hi, unsigned long long lo, Service service, Dest dest,
        long long lease_ms, long long now) except? -9
    @cython.locals(sharding=Sharding)
    cdef int _asker(self, Packet pkt, Addresses addresses) except? -9
    @cython.locals(sharding=Sharding)
    cdef bint _ask(
        self, Packet pkt, unsigned long long hi, unsigned long long lo, Service service) except -1
    cdef Dest _told(self, Packet pkt, Service service, long long now)
    cdef Dest _trusted(self, Service service, int index, long long now)
    @cython.locals(conns=ConnTable)
    cdef _remember(self, long long row, long long least_ms, long long now)
    cdef long long look_again(self, long long row, long long left_ms) noexcept
    @cython.locals(conns=ConnTable, sharding=Sharding, peers=Peers)
    cdef remind(self, long long row, long long left_ms, long long now)
