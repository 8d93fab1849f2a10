cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cpdef int parse(Packet pkt) noexcept
cpdef bint martian(unsigned long long hi, unsigned long long lo) noexcept
@cython.locals(p=Bytes)
cpdef int walk(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef void decrement_hop_limit(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef void build(Packet pkt, int proto, int payload, int hop_limit) noexcept
