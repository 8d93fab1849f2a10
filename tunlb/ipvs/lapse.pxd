cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.resets cimport Resets
from tunlb.packet cimport Packet

@cython.final
cdef class Lapse:
    cdef public Counters counters
    cdef public Life life
    cdef public ConnTable conns
    cdef public Resets resets

    cdef bint meet(
        self, Packet pkt, Protocol protocol, long long row, int direction, Dest dest, long long now) except -1
    cpdef int _piece(self, int row, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef bint _end(self, long long row, long long now) except -1
