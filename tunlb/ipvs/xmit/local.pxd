from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service

cdef class LocalNode(Mode):
    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
