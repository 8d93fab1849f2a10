cimport cython
from tunlb.packet cimport Bytes, Packet

cpdef unsigned int fold(unsigned long long total) noexcept
cpdef unsigned int sum16(Packet pkt, Py_ssize_t offset, Py_ssize_t length) noexcept
cpdef unsigned int sum_address(unsigned long long hi, unsigned long long lo, int af) noexcept
cpdef unsigned int delta(unsigned int old, unsigned int new) noexcept
cpdef unsigned int update(unsigned int field, unsigned int change) noexcept
@cython.locals(p=Bytes)
cpdef void fix_l4(Packet pkt, Py_ssize_t offset, unsigned int addresses, unsigned int ports) noexcept
cpdef unsigned int pseudo_sum(Packet pkt, int proto, int length) noexcept
