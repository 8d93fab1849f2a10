from tunlb.hook cimport Hook
from tunlb.packet cimport Packet
from tunlb.pipeline.ip cimport Ip

cdef class HostFragments(Hook):
    cdef public Ip ip

    cpdef int run(self, Packet pkt, long long now) except? -1
