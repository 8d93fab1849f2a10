from tunlb.packet cimport Packet

cdef class Hook:
    cpdef int run(self, Packet pkt, long long now) except? -1
