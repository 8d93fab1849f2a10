cimport cython
from tunlb.netif cimport Netif

ctypedef unsigned char* Bytes

@cython.final
cdef class Packet:
    cdef public object mem
    cdef Bytes p
    cdef public int start, end, l3, l4
    cdef public int ether_type, l2_type, af, proto, ttl, fragment, tcp_flags, icmp_type
    cdef public unsigned long long saddr_hi, saddr, daddr_hi, daddr
    cdef public unsigned int sport, dport
    cdef public Netif iif, oif
    cdef public int neigh, reason, err_type, owner, err_code, chosen
    cdef public unsigned int err_info, mark
    cdef public int csum_start, csum_offset, gso_type, gso_size
    cdef public bint data_valid, handed

    cpdef void reset(self, int start, int end) noexcept
    cpdef int drop(self, int reason) noexcept
    cpdef int drop_with_error(self, int reason, int err_type, int err_code, unsigned int err_info) noexcept
    cpdef bint partial(self) noexcept
    cpdef int wire_length(self) noexcept

    @cython.locals(p=Bytes)
    cpdef unsigned int be16(self, Py_ssize_t offset) noexcept
    @cython.locals(p=Bytes, high=cython.uint)
    cpdef unsigned int be32(self, Py_ssize_t offset) noexcept
    cpdef unsigned long long be64(self, Py_ssize_t offset) noexcept
    @cython.locals(p=Bytes)
    cpdef void put16(self, Py_ssize_t offset, unsigned int value) noexcept
    @cython.locals(p=Bytes)
    cpdef void put32(self, Py_ssize_t offset, unsigned int value) noexcept
    cpdef void put64(self, Py_ssize_t offset, unsigned long long value) noexcept
