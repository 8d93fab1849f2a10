from tunlb.counters cimport Counters
from tunlb.packet cimport Packet

cpdef int pass_on(Packet pkt, Counters counters) except -1
