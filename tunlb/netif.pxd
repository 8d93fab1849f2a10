cimport cython

cpdef object address_key(unsigned long long hi, unsigned long long lo)
cpdef object neigh_key(unsigned long long index, unsigned long long hi, unsigned long long lo)

@cython.final
cdef class Netif:
    cdef public int index
    cdef public str name
    cdef public unsigned long long mac
    cdef public bytes mac_bytes
    cdef public int mtu
    cdef public bint tun
    cdef public int vid
    cdef public int queue
    cdef public dict vlans
    cdef public Netif port, host
    cdef public bint mirror, noarp, detour

@cython.final
cdef class Addresses:
    cdef dict _owner
    cdef dict _primary
    cdef set _hosted

    cpdef bint hosted(self, unsigned long long hi, unsigned long long lo) except -1
    cpdef bint is_local(self, unsigned long long hi, unsigned long long lo) except -1
    cpdef int kind(self, unsigned long long hi, unsigned long long lo) except -1
    cpdef bint owned_by(self, Netif netif, unsigned long long hi, unsigned long long lo) except -1
