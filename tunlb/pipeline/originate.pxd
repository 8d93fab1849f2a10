cimport cython
from tunlb.counters cimport Counters
from tunlb.netif cimport Netif
from tunlb.outbox cimport Outbox, Sender
from tunlb.packet cimport Packet
from tunlb.pipeline.ip cimport Ip

cdef class Originate(Sender):
    cdef public Counters counters
    cdef public Ip ip
    cdef public Outbox outbox
    cdef public Packet packet

    cpdef Packet fresh(self, Netif iif)
    cpdef bint reply(self, Packet pkt, long long now) except -1
    cpdef bint send(self, Packet pkt, long long now) except -1
    cdef void _turn(self, Packet pkt, Netif netif) except *
