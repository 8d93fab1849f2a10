cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.packet cimport Bytes, Packet

cpdef void start(ConnTable conns, long long row) noexcept
cpdef void shift(ConnTable conns, long long row, unsigned int difference) noexcept
@cython.locals(x="unsigned int*")
cpdef void ready(ConnTable conns, long long row, unsigned int first, unsigned int first_ack) noexcept
cpdef void inserted(ConnTable conns, long long row, unsigned int n) noexcept
@cython.locals(x="unsigned int*")
cpdef unsigned int to_dest(ConnTable conns, long long row, unsigned int number) noexcept
@cython.locals(x="unsigned int*")
cpdef unsigned int to_client(ConnTable conns, long long row, unsigned int number) noexcept
cpdef bint acknowledged(ConnTable conns, long long row, unsigned int number) noexcept
cpdef void inbound(Packet pkt, ConnTable conns, long long row) noexcept
@cython.locals(x="unsigned int*")
cpdef void outbound(Packet pkt, ConnTable conns, long long row) noexcept
@cython.locals(p=Bytes)
cdef unsigned int _sack(Packet pkt, ConnTable conns, long long row, int direction) noexcept
cdef unsigned int _edge(ConnTable conns, long long row, int direction, unsigned int number) noexcept
@cython.locals(p=Bytes)
cpdef int find_option(Packet pkt, int kind) noexcept
cpdef unsigned int exchange32(Packet pkt, Py_ssize_t offset, unsigned int value) noexcept
