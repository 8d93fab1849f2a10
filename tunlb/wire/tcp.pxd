cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cpdef int parse(Packet pkt) noexcept
