cimport cython
from tunlb.packet cimport Bytes, Packet

@cython.final
cdef class TcpOptions:
    cdef public int mss, wscale
    cdef public bint sack, timestamps
    cdef public unsigned int tsval, tsecr

    @cython.locals(p=Bytes)
    cpdef void parse(self, Packet pkt) noexcept

@cython.locals(p=Bytes)
cpdef int find_timestamps(Packet pkt) noexcept
cpdef int length_of(bint mss, bint wscale, bint sack, bint timestamps) noexcept
@cython.locals(p=Bytes)
cpdef void write(
    Packet pkt, int mss, int wscale, bint sack, bint timestamps, unsigned int tsval, unsigned int tsecr) noexcept
