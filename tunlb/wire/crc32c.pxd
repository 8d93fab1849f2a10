cimport cython
from tunlb.packet cimport Bytes, Packet

cdef unsigned int _number(bytes table, Py_ssize_t index) noexcept
@cython.locals(p=Bytes)
cpdef unsigned int add(unsigned int crc, Packet pkt, int offset, int length) noexcept
cpdef unsigned int shifted(unsigned int value, int length) noexcept
