cimport cython
from tunlb.neigh cimport NeighTable
from tunlb.netif cimport Netif
from tunlb.packet cimport Packet
from tunlb.pipeline.ip cimport Ip

@cython.final
cdef class Ingress:
    cdef public Ip ip
    cdef public NeighTable neighs

    cpdef int receive(self, Packet pkt, long long now) except -1
    cdef int _refuse(self, Packet pkt, int reason) except -1
    cdef int _arp(self, Packet pkt, long long now) except -1
