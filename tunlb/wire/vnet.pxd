cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.locals(p=Bytes)
cdef int _get16(Packet pkt, Py_ssize_t offset) noexcept
@cython.locals(p=Bytes)
cdef void _set16(Packet pkt, Py_ssize_t offset, int value) noexcept
@cython.locals(p=Bytes)
cpdef int parse(Packet pkt) noexcept
cpdef int check(Packet pkt) noexcept
cpdef void trust(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef void emit(Packet pkt) noexcept
