cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.packet cimport Packet

@cython.locals(q="unsigned long long*")
cpdef int translate(Packet pkt, ConnTable conns, long long row, int direction) except -1
@cython.locals(q="unsigned long long*")
cdef void _write_v6(
    Packet pkt, int at, int tos, int payload, int hop_limit, int proto, ConnTable conns, long long source,
    long long target) noexcept
cdef long long _meaning(long long kind, long long code, long long info) noexcept
cdef long long _of_v4(Packet pkt) except? -1
cdef long long _of_v6(Packet pkt) except? -1
cdef long long _mtu(Packet pkt, ConnTable conns, long long row, int direction) except? -1
cdef long long _plateau(int length) except? -1
cdef int _end_of_quote(Packet pkt, int l4, int length) noexcept
cdef void _fix_quote(Packet pkt, ConnTable conns, long long row, int direction, int l4, int length) noexcept
