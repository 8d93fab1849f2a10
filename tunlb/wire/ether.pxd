cimport cython
from tunlb.netif cimport Netif
from tunlb.packet cimport Bytes, Packet

cpdef unsigned long long mac_at(Packet pkt, int offset) noexcept
cpdef int parse(Packet pkt) except -1
cdef int _untag(Packet pkt, Netif netif) except -1
@cython.locals(p=Bytes)
cpdef void push(Packet pkt, Netif netif, bytes mac)
