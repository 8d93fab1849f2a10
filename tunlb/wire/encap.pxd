cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cpdef void push(
    Packet pkt, int kind, int af, bint csum, int port, unsigned int flow, int ident) noexcept
cdef void _header_v4(Packet pkt, int proto, unsigned int tos, int ident) noexcept
cdef void _header_v6(Packet pkt, int proto, unsigned int tos, unsigned int label) noexcept
cdef void _seal_udp(Packet pkt) noexcept
cpdef unsigned int finished_sum(Packet pkt, int at) noexcept
cpdef int peel(Packet pkt, int at, int proto) noexcept
