from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service

cdef class Bypass(Mode):
    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    cpdef bint fits(self, ConnTable conns, long long row, Dest dest) except -1
