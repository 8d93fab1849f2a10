cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cpdef int parse(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef int event(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef bint is_init(Packet pkt) noexcept
cpdef void seal(Packet pkt) noexcept
cpdef void put_ports(Packet pkt, int l4, unsigned int ports, int length, int end) noexcept
@cython.locals(p=Bytes)
cdef void _put_crc(Packet pkt, Py_ssize_t offset, unsigned int crc) noexcept
