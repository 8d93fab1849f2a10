cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cpdef int parse(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef bint options_fine(Packet pkt, int offset, int end) noexcept
@cython.locals(p=Bytes)
cpdef void decrement_ttl(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef void build(Packet pkt, int proto, int payload, int tos) noexcept
