cimport cython
from tunlb.counters cimport Counters
from tunlb.director cimport Director
from tunlb.mailbox cimport Mailbox
from tunlb.netif cimport Netif
from tunlb.outbox cimport Outbox
from tunlb.packet cimport Packet
from tunlb.peers cimport Peers

cpdef long long monotonic_ms() noexcept
cpdef int drop_reason(int err) noexcept

@cython.final
cdef class Port:
    cdef public Netif netif
    cdef public Counters counters
    cdef readonly int fd, error
    cdef readonly bint lost
    cdef readonly tuple offloads
    cdef int _offset

    cpdef int read_frame(self, Packet pkt)
    cpdef bint write_packet(self, Packet pkt)
    @cython.locals(n=cython.Py_ssize_t)
    cpdef bint write_frame(self, bytes frame)
    cpdef write_copy(self, bytes frame)
    cdef bint _written(self, Py_ssize_t n, int err)
    cdef void _failed(self, int err) noexcept

@cython.final
cdef class Drain:
    cdef public Director director
    cdef public list ports
    cdef public object on_lost, on_wake
    cdef public Mailbox mailbox

    @cython.locals(pkt=Packet, frames=cython.int, size=cython.int, got=cython.int)
    cpdef int run(self, Port port, long long now, int budget=*) except -1
    @cython.locals(pkt=Packet, netif=Netif, frames=cython.int, size=cython.int)
    cdef int _detour(self, Port port, long long now, int budget) except -1
    @cython.locals(port=Port)
    cdef bint _from_host(self, Packet pkt, Netif netif) except -1
    @cython.locals(port=Port)
    cdef int _mirror(self, Packet pkt, Netif netif, long long now) except -1
    cdef int _carry_out(self, Packet pkt, int verdict, long long now) except -2
    cdef int _stolen(self, Packet pkt, long long now) except -2
    @cython.locals(mailbox=Mailbox, pkt=Packet, port=Port, taken=cython.int, size=cython.int, got=cython.int, verdict=cython.int)
    cpdef int take_mail(self, long long now, int budget=*) except -1
    @cython.locals(port=Port, netif=Netif, peers=Peers)
    cpdef int flush(self) except -1
    @cython.locals(pkt=Packet, verdict=cython.int)
    cdef _go_on(self, Outbox outbox)
    @cython.locals(port=Port)
    cdef Port _port_of(self, Netif netif)
    @cython.locals(oif=Netif, port=Port)
    cdef void _send(self, Packet pkt) noexcept
    cdef int _send_segments(self, Packet pkt, long long now) except -1
    @cython.locals(mailbox=Mailbox)
    cdef bint _hand_over(self, Packet pkt) except -1
