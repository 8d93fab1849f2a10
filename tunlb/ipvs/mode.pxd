cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.laddr cimport LportPools
from tunlb.ipvs.service cimport Service

cdef class Mode:
    cdef public LportPools pools

    cpdef int bind(self, ConnTable conns, long long row, Service service, Dest dest, long long now) except -1
    cpdef unbind(self, ConnTable conns, long long row)
    cpdef bint rebind(self, ConnTable conns, long long row) except -1

cpdef void set_outbound(
    ConnTable conns, long long row, Dest dest, unsigned long long laddr_hi, unsigned long long laddr,
    unsigned int dport, unsigned int lport) noexcept
cpdef unsigned int dport_of(ConnTable conns, long long row, Dest dest) noexcept
cpdef void keep_client(ConnTable conns, long long row, Dest dest) noexcept
