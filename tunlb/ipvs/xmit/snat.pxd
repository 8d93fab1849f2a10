cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service

cdef class SourceNat(Mode):
    cdef public unsigned int first, size

    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    cpdef long long rival(self, ConnTable conns, long long row, Service service, int at) except? -1
    cpdef bint rebind(self, ConnTable conns, long long row) except -1
    cpdef bint fits(self, ConnTable conns, long long row, Dest dest) except -1
    cdef int paired(self, ConnTable conns, long long row, int n) noexcept
    cdef bint ours(self, unsigned int lport) noexcept
    cdef unsigned int chance(self, ConnTable conns, long long row) noexcept
    cdef unsigned int candidate(self, unsigned int chance, int probe) noexcept
    cdef long long holder(
        self, ConnTable conns, long long row, unsigned long long laddr_hi, unsigned long long laddr,
        unsigned int lport) noexcept
    cdef void take(
        self, ConnTable conns, long long row, unsigned long long laddr_hi, unsigned long long laddr,
        unsigned int lport) noexcept
