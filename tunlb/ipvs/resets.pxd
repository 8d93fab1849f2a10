cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport Life
from tunlb.outbox cimport Sender
from tunlb.packet cimport Packet

cpdef void remember(ConnTable conns, long long row) noexcept
cpdef unsigned int end_of(Packet pkt) noexcept
cpdef void follow(Packet pkt, ConnTable conns, long long row, int direction) noexcept

@cython.final
cdef class Resets:
    cdef public Counters counters
    cdef public Life life
    cdef public ConnTable conns
    cdef public Sender sender

    @cython.locals(conns=ConnTable)
    cdef bint both(self, long long row, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef answer(self, Packet pkt, long long row, int direction, long long now)
    @cython.locals(conns=ConnTable)
    cdef close(self, long long row, long long now)
    @cython.locals(conns=ConnTable)
    cdef _send(
        self, long long row, int direction, unsigned int seq, unsigned int ack, int flags, long long now)
