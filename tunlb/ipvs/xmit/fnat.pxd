from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.laddr cimport LportPools
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service

cdef class FullNat(Mode):
    cdef LportPools pools

    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    cpdef unbind(self, ConnTable conns, long long row)
