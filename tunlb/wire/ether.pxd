from tunlb.netif cimport Netif
from tunlb.packet cimport Packet

cpdef unsigned long long mac_at(Packet pkt, Py_ssize_t offset) noexcept
cpdef int parse(Packet pkt) except -1
cdef int _untag(Packet pkt, Netif netif) except -1
cpdef push(Packet pkt, bytes prefix)
cpdef bytes prefix_of(Netif netif, bytes mac)
