cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.packet cimport Bytes, Packet

cpdef bint clamp(Packet pkt, ConnTable conns, long long row, int most) noexcept
@cython.locals(p=Bytes)
cpdef int find(Packet pkt) noexcept
cdef int _path_mtu(ConnTable conns, long long row) noexcept
