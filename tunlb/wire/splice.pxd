cimport cython
from tunlb.packet cimport Bytes, Packet

cpdef bint grows(Packet pkt, int n) noexcept
cpdef void piece(Packet out, bytes headers, bytes data)
cpdef void replace(Packet pkt, int at, int gone, bytes data)
cdef void _lengths(Packet pkt, int n, unsigned int content) noexcept
