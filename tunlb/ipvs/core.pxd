cimport cython
from tunlb.counters cimport Counters
from tunlb.hook cimport Hook
from tunlb.ipvs.birth cimport Birth
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.lapse cimport Lapse
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.outer cimport OuterErrors
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.sharding cimport Sharding
from tunlb.ipvs.transmit cimport Transmit
from tunlb.netif cimport Addresses
from tunlb.outbox cimport Sender
from tunlb.packet cimport Packet

@cython.final
cdef class Ipvs:
    cdef public Counters counters
    cdef public Life life
    cdef public ConnTable conns
    cdef public Addresses addresses
    cdef public Sender sender
    cdef public Sharding sharding
    cdef public Transmit transmit
    cdef public Birth birth
    cdef public OuterErrors outer
    cdef public Lapse lapse
    cdef public list dests, protocols

    @cython.locals(conns=ConnTable, transmit=Transmit)
    cpdef int receive(self, Packet pkt, long long now) except -1
    @cython.locals(sharding=Sharding)
    cdef int _owner(self, Packet pkt) except? -1
    @cython.locals(sharding=Sharding)
    cdef bint _elsewhere(self, Packet pkt, int owner) except -1
    @cython.locals(conns=ConnTable)
    cdef int _related(self, Packet pkt, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef int _pass_on(self, Packet pkt, long long entry, long long now) except -1

cdef class IpvsIn(Hook):
    cdef public Ipvs ipvs
    cpdef int run(self, Packet pkt, long long now) except? -1
