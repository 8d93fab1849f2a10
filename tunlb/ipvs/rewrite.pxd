cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.packet cimport Packet

cpdef void put_addresses(
    Packet pkt, Py_ssize_t l3, unsigned long long saddr_hi, unsigned long long saddr, unsigned long long daddr_hi,
    unsigned long long daddr, unsigned int change) noexcept
@cython.locals(q="unsigned long long*")
cpdef void apply(Packet pkt, ConnTable conns, long long row, int direction) noexcept
@cython.locals(q="unsigned long long*")
cpdef void apply_crc32c(Packet pkt, ConnTable conns, long long row, int direction) noexcept
cpdef bint keeps_ports(ConnTable conns, long long row) noexcept
@cython.locals(q="unsigned long long*")
cpdef void prepare(ConnTable conns, long long row, int direction, int af) noexcept
