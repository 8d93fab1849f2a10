cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.far cimport FarEnd, Paths
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service
from tunlb.netif cimport Addresses
from tunlb.packet cimport Packet
from tunlb.route cimport Route, RouteTable

cdef class Tunnel(Mode):
    cdef public RouteTable routes
    cdef public Paths paths
    cdef public dict ends
    cdef int _ident

    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    @cython.locals(far=FarEnd)
    cpdef bint fits(self, ConnTable conns, long long row, Dest dest) except -1
    @cython.locals(far=FarEnd)
    cpdef int path_mtu(self, Dest dest, int direction, int mtu) except -1
    @cython.locals(far=FarEnd)
    cpdef int xmit(
        self, Packet pkt, ConnTable conns, long long row, int direction, Dest dest, long long now) except -1
    cpdef int relate(
        self, Packet pkt, ConnTable conns, long long row, int direction, Dest dest, long long now) except -1
    cdef unsigned int _flow(self, ConnTable conns, long long row) noexcept
    @cython.locals(route=Route)
    cdef _wire(self, Dest dest, FarEnd far)
