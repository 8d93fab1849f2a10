cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.laddr cimport LportPool
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service

cdef class FullNat(Mode):
    @cython.locals(laddrs=tuple)
    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    cpdef unbind(self, ConnTable conns, long long row)
    cpdef bint rebind(self, ConnTable conns, long long row) except -1
    cpdef bint fits(self, ConnTable conns, long long row, Dest dest) except -1
    cdef bint speaks(self, ConnTable conns, long long row) except -1
    cdef LportPool _pool(self, ConnTable conns, long long row)
