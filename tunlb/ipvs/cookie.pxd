cimport cython
from tunlb.packet cimport Packet

@cython.final
cdef class SipHash:
    cdef unsigned long long _k0, _k1, _v0, _v1, _v2, _v3, _s0, _s1, _s2, _s3
    cdef int _length, _saved_length

    cpdef void start(self) noexcept
    cpdef void absorb(self, unsigned long long word) noexcept
    cpdef unsigned long long finish(self) noexcept
    cpdef void save(self) noexcept
    cpdef void restore(self) noexcept
    cdef void mix(self, int rounds) noexcept

@cython.final
cdef class Cookies:
    cdef public SipHash hash
    cdef public unsigned int clock

    cpdef unsigned int make(
        self, Packet pkt, unsigned int seq, unsigned int data, unsigned int salt, long long now) noexcept
    cpdef int check(
        self, Packet pkt, unsigned int seq, unsigned int cookie, unsigned int salt, long long now) except? -1
    cdef unsigned long long _begin(self, Packet pkt, unsigned int seq, long long now) noexcept
    cdef unsigned long long _mac(self, unsigned long long period, unsigned int salt, unsigned int data) noexcept
