cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.synpolicy cimport SynPolicy
from tunlb.netif cimport Netif
from tunlb.outbox cimport Sender
from tunlb.packet cimport Packet
from tunlb.wire.tcp_options cimport TcpOptions

@cython.final
cdef class SynSegments:
    cdef public ConnTable conns
    cdef public Sender sender
    cdef public Packet packet
    cdef object mss_mem
    cdef unsigned short* mss

    cpdef int mss_index(self, int mss) noexcept
    cpdef bint answer(
        self, Packet pkt, SynPolicy policy, TcpOptions options, unsigned int cookie, unsigned int clock,
        long long now) except -1
    @cython.locals(x="unsigned int*")
    cpdef syn(self, long long row, Dest dest, Netif iif, long long now)
    @cython.locals(x="unsigned int*")
    cpdef Packet client_ack(self, long long row, Netif iif)
    cpdef reset_dest(self, long long row, Dest dest, Netif iif, long long seq, long long now)
    cpdef reset_client(self, long long row, Netif iif, long long now)
    cpdef reset_sender(self, Packet pkt, long long now)
    @cython.locals(q="unsigned long long*")
    cdef Packet _to_dest(self, long long row, Dest dest, Netif iif)
    @cython.locals(q="unsigned long long*")
    cdef void _from_client(self, Packet pkt, long long row) noexcept

cdef void turn(Packet pkt) noexcept
cdef int advertised(Packet pkt, SynPolicy policy) except -1
cpdef int length_of(Packet pkt) noexcept
