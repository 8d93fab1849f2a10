cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.packet cimport Packet

@cython.locals(q="unsigned long long*")
cpdef void apply(Packet pkt, ConnTable conns, long long row, int direction) noexcept
cpdef unsigned int identifier(unsigned int ports) noexcept
