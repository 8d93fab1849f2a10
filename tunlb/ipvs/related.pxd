cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.matches cimport MatchTable
from tunlb.ipvs.sharding cimport Sharding
from tunlb.netif cimport Addresses
from tunlb.route cimport RouteTable
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cpdef int inner_l4(Packet pkt) noexcept
cpdef int inner_proto(Packet pkt) noexcept
cpdef tuple address(Packet pkt, int at, int af, int which)
@cython.locals(p=Bytes)
cdef int _transport_v6(Packet pkt) noexcept
cpdef long long find(Packet pkt, ConnTable conns) noexcept
cpdef bint known(Packet pkt, int l4, int proto) noexcept
cpdef unsigned int reversed_ports(Packet pkt, int l4, int proto) noexcept
cpdef int owner(
    Packet pkt, Sharding sharding, MatchTable matches, Addresses addresses, RouteTable routes) except? -1
@cython.locals(q="unsigned long long*")
cpdef void translate(Packet pkt, ConnTable conns, long long row, int direction) noexcept
@cython.locals(q="unsigned long long*")
cdef unsigned int _key_sum(ConnTable conns, long long at, int af) noexcept
