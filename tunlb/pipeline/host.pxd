from tunlb.counters cimport Counters
from tunlb.netif cimport Netif
from tunlb.packet cimport Packet

cpdef int pass_on(Packet pkt, Counters counters) except -1
cpdef bytes shown(Packet pkt, Netif netif)
