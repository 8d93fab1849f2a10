cimport cython
from tunlb.packet cimport Bytes, Packet

cpdef int refused(Packet pkt) noexcept
cdef bint _unchecked(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef int fragment_header(Packet pkt) noexcept
@cython.locals(p=Bytes)
cpdef void write_v4(
    Packet pkt, Py_ssize_t at, int tos, int total, unsigned int flags, int ttl, int proto,
    unsigned long long saddr, unsigned long long daddr) noexcept
@cython.locals(p=Bytes)
cpdef void write_v6(
    Packet pkt, Py_ssize_t at, unsigned int tos, int payload, int hop_limit, int proto,
    unsigned long long saddr_hi, unsigned long long saddr, unsigned long long daddr_hi,
    unsigned long long daddr) noexcept
cpdef int traffic_class(Packet pkt, Py_ssize_t at, int af) noexcept
cpdef void network(Packet pkt, unsigned int ident, bint apart) noexcept
cpdef void piece(Packet pkt, int begin, Packet out) except *
cpdef void shorten(Packet pkt) noexcept
cpdef bint transport(Packet pkt, unsigned int ports, unsigned int addresses, unsigned int change) noexcept
cdef void _seal_udp(Packet pkt) noexcept
