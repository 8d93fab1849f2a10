cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.service cimport Service
from tunlb.ipvs.xmit.fnat cimport FullNat
from tunlb.outbox cimport Sender
from tunlb.packet cimport Packet
from tunlb.route cimport Route, RouteTable

cdef class Nat64(FullNat):
    cdef public Counters counters
    cdef public Sender sender
    cdef public RouteTable routes
    cdef Packet _piece
    cdef unsigned int _ident

    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    cpdef bint fits(self, ConnTable conns, long long row, Dest dest) except -1
    cpdef int path_mtu(self, Dest dest, int direction, int mtu) except -1
    @cython.locals(q="unsigned long long*")
    cpdef int xmit(
        self, Packet pkt, ConnTable conns, long long row, int direction, Dest dest, long long now) except -1
    cdef bint _apart(self, Packet pkt, ConnTable conns, long long row, int direction) except -1
    cdef int _cut(self, Packet pkt, long long now) except -1
    cpdef int relate(
        self, Packet pkt, ConnTable conns, long long row, int direction, Dest dest, long long now) except -1
