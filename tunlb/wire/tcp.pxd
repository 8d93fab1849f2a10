cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cpdef int parse(Packet pkt) noexcept
cpdef void build(
    Packet pkt, unsigned int seq, unsigned int ack, int flags, int window, int options, int payload) noexcept
cpdef void seal(Packet pkt) noexcept
