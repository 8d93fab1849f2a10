cimport cython
from tunlb.packet cimport Bytes, Packet

cpdef void put_seq(Packet pkt, unsigned int number) noexcept
cpdef void put_flags(Packet pkt, int header, int flags) noexcept
cpdef void move_urgent(Packet pkt, int n) noexcept
cpdef void blank(Packet pkt, int kind) noexcept
@cython.locals(p=Bytes)
cdef void _blank_one(Packet pkt, int at) noexcept
cpdef cut_payload(Packet pkt)
@cython.locals(p=Bytes)
cpdef void lower_mss(Packet pkt, int n) noexcept
cpdef void lower_window(Packet pkt, int n) noexcept
