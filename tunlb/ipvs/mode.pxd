cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.laddr cimport LportPools
from tunlb.ipvs.service cimport Service
from tunlb.netif cimport Addresses
from tunlb.packet cimport Packet

cdef class Mode:
    cdef public LportPools pools
    cdef public Addresses addresses
    cdef public bint cuts

    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    cpdef unbind(self, ConnTable conns, long long row)
    cpdef bint rebind(self, ConnTable conns, long long row) except -1
    cpdef bint fits(self, ConnTable conns, long long row, Dest dest) except -1
    cpdef long long rival(self, ConnTable conns, long long row, Service service, int at) except? -1
    cpdef int path_mtu(self, Dest dest, int direction, int mtu) except -1
    cpdef int xmit(
        self, Packet pkt, ConnTable conns, long long row, int direction, Dest dest, long long now) except -1
    cpdef int relate(
        self, Packet pkt, ConnTable conns, long long row, int direction, Dest dest, long long now) except -1

cpdef void set_outbound(
    ConnTable conns, long long row, Dest dest, unsigned long long laddr_hi, unsigned long long laddr,
    unsigned int dport, unsigned int lport) noexcept
cpdef unsigned int dport_of(ConnTable conns, long long row, Dest dest) noexcept
cpdef void keep_client(ConnTable conns, long long row, Dest dest) noexcept
