from tunlb.ipvs.dest cimport Dest
from tunlb.packet cimport Packet

cdef class Proxying:
    cpdef int handle(self, Packet pkt, long long row, int direction, Dest dest, long long now) except -1
    cpdef long long fire(self, long long row, Dest dest, long long now) except? -2
    cpdef forget(self, long long row)
