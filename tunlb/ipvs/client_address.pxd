cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.outbox cimport Sender
from tunlb.packet cimport Bytes, Packet

cpdef void arm(ConnTable conns, long long row, int what)
@cython.locals(x="unsigned int*")
cpdef void again(ConnTable conns, long long row, int what)
cdef void _listen(Packet pkt, ConnTable conns, long long row) noexcept
cdef bint _refuses(Packet pkt, ConnTable conns, long long row) noexcept
cdef bytes _header(ConnTable conns, long long row, unsigned int state)

@cython.final
cdef class ClientAddress:
    cdef public Counters counters
    cdef public Sender sender

    @cython.locals(x="unsigned int*")
    cpdef int inbound(self, Packet pkt, ConnTable conns, long long row, Dest dest, long long now) except -1
    @cython.locals(x="unsigned int*")
    cpdef int outbound(self, Packet pkt, ConnTable conns, long long row, Dest dest, long long now) except -1
    @cython.locals(x="unsigned int*")
    cdef _answered(self, Packet pkt, ConnTable conns, long long row, unsigned int state)
    cdef _carry(self, Packet pkt, ConnTable conns, long long row, unsigned int state)
    @cython.locals(p=Bytes)
    cdef _put_option(self, Packet pkt, ConnTable conns, long long row)
    @cython.locals(p=Bytes, x="unsigned int*")
    cdef _first(self, Packet pkt, ConnTable conns, long long row, Dest dest, long long now)
    @cython.locals(p=Bytes, x="unsigned int*")
    cdef _missed(self, Packet pkt, ConnTable conns, long long row, Dest dest, long long now)
    @cython.locals(q="unsigned long long*")
    cdef _alone(
        self, Packet pkt, ConnTable conns, long long row, Dest dest, bytes header, unsigned int ack, int window,
        int echo, long long now)
    cdef int _datagram(self, Packet pkt, ConnTable conns, long long row, unsigned int state) except -1

@cython.locals(x="unsigned int*")
cpdef void quoted(Packet pkt, ConnTable conns, long long row, int direction, int l4, int proto)
cpdef list pieces(Packet pkt, ConnTable conns, long long row)
cdef void _told(ConnTable conns, long long row) noexcept
