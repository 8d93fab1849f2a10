cimport cython
from tunlb.packet cimport Bytes, Packet

cpdef int parse(Packet pkt) noexcept
cpdef int verify(Packet pkt) noexcept
cpdef bint is_error(Packet pkt) noexcept
cpdef bint is_echo(Packet pkt) noexcept
cpdef void seal(Packet pkt) noexcept
cpdef int refuse(Packet pkt, int reason, int error, unsigned int info) except -1
