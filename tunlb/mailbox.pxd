cimport cython
from tunlb.counters cimport Counters
from tunlb.netif cimport Netif
from tunlb.packet cimport Packet

cdef extern from "<sys/socket.h>" nogil:
    Py_ssize_t recv(int fd, void* buffer, size_t length, int flags)
    Py_ssize_t send(int fd, const void* buffer, size_t length, int flags)

@cython.final
cdef class Mailbox:
    cdef public Counters counters
    cdef readonly int fd
    cdef object _reader
    cdef list _senders
    cdef tuple _write_fds

    cpdef bint send_packet(self, Packet pkt, int to) except -1
    cpdef int read(self, Packet pkt, object netifs) except -1
