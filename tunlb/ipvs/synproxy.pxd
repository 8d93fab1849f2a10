cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.cookie cimport Cookies
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.held cimport Held, Segment
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.proxying cimport Proxying
from tunlb.ipvs.synpolicy cimport SynPolicy
from tunlb.ipvs.synsegments cimport SynSegments
from tunlb.ipvs.transmit cimport Transmit
from tunlb.netif cimport Netif
from tunlb.outbox cimport Sender
from tunlb.packet cimport Packet
from tunlb.wire.tcp_options cimport TcpOptions

cdef class SynProxy(Proxying):
    cdef public Counters counters
    cdef public Life life
    cdef public ConnTable conns
    cdef public Transmit transmit
    cdef public Sender sender
    cdef public SynSegments segments
    cdef public Cookies cookies
    cdef public TcpOptions options
    cdef public Held held

    cpdef int first(self, Packet pkt, SynPolicy policy, long long now) except -1
    cpdef int check(self, Packet pkt, SynPolicy policy, long long now) except? -1
    @cython.locals(conns=ConnTable, x="unsigned int*")
    cpdef int begin(
        self, Packet pkt, long long row, SynPolicy policy, int data, Dest dest,
        long long now) except -1
    cpdef refuse(self, Packet pkt, long long now)
    cdef _hold(self, Packet pkt, long long row)
    cpdef int handle(self, Packet pkt, long long row, int direction, Dest dest, long long now) except -1
    @cython.locals(x="unsigned int*")
    cdef int _early(self, Packet pkt, long long row, Dest dest, long long now) except -1
    cdef _wait(self, long long row, Dest dest, long long now)
    cdef int _stay(self, Packet pkt, long long row, Dest dest, long long now) except -1
    cdef int _answer(self, Packet pkt, long long row, Dest dest, long long now) except -1
    cpdef long long fire(self, long long row, Dest dest, long long now) except? -2
    cpdef forget(self, long long row)
    @cython.locals(conns=ConnTable, x="unsigned int*")
    cdef _open(self, Packet pkt, long long row, Dest dest, long long now)
    cdef _release(self, Packet pkt, long long row, Dest dest, long long now)
    @cython.locals(x="unsigned int*")
    cdef bint _opens(self, Packet pkt, long long row, int direction, int facts) noexcept
    cdef void _adjust(self, Packet pkt, long long row, int direction, int facts) noexcept

cdef unsigned int _exchange(Packet pkt, int offset, unsigned int value) noexcept
