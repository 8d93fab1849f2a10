cimport cython
from tunlb.packet cimport Packet

@cython.final
cdef class ConnTable:
    cdef public long long conn_max
    cdef public object mem, extra_mem
    cdef object heads_mem, keys_mem
    cdef unsigned long long* q
    cdef unsigned int* d
    cdef unsigned short* h
    cdef unsigned char* b
    cdef unsigned int* x
    cdef unsigned int* heads
    cdef unsigned long long* keys
    cdef unsigned long long* header
    cdef public unsigned int mask
    cdef public long long count
    cdef readonly long long fresh
    cdef long long _free

    @cython.locals(k="unsigned long long*")
    cpdef unsigned int hash_tuple(
        self, unsigned long long saddr_hi, unsigned long long saddr, unsigned long long daddr_hi,
        unsigned long long daddr, unsigned long long ports, unsigned long long proto) noexcept
    cpdef long long lookup(self, Packet pkt) noexcept
    cpdef long long find(
        self, unsigned long long saddr_hi, unsigned long long saddr, unsigned long long daddr_hi,
        unsigned long long daddr, unsigned int ports, int proto) noexcept
    cpdef unsigned int hash_entry(self, long long entry) noexcept
    cpdef void look(self) noexcept
    cpdef long long alloc(self) noexcept
    cpdef bint link(self, long long row) noexcept
    cpdef void unlink(self, long long row) noexcept
    cpdef void free(self, long long row) noexcept
    cpdef void discard(self, long long row) noexcept
    cpdef bint adopt(self, long long row) noexcept
    cpdef bint valid(self, long long row) noexcept
