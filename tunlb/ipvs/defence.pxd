from tunlb.hook cimport Hook
from tunlb.ipvs.fragments cimport Fragments
from tunlb.packet cimport Packet

cdef class Defence(Hook):
    cdef public Fragments fragments

    cpdef int run(self, Packet pkt, long long now) except? -1
