cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport Ending, Life
from tunlb.ipvs.persist cimport Persistence
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.resets cimport Resets

cdef class Expiry(Ending):
    cdef public Counters counters
    cdef public Life life
    cdef public ConnTable conns
    cdef public Persistence persistence
    cdef public Resets resets

    @cython.locals(conns=ConnTable, protocol=Protocol)
    cpdef int due(self, int row, long long now) except -1
    cdef int _template(self, long long row, Dest dest, long long left, long long now) except -1
