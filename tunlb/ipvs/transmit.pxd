cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.client_address cimport ClientAddress
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport ConnTimers, Life
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.proxying cimport Proxying
from tunlb.neigh cimport NeighEntry, NeighTable
from tunlb.outbox cimport Sender
from tunlb.packet cimport Packet
from tunlb.route cimport Route, RouteTable
from tunlb.wire.pieces cimport Pieces
from tunlb.wire.segment cimport Segments

@cython.final
cdef class Transmit:
    cdef public Counters counters
    cdef public ClientAddress client_address
    cdef public Sender sender
    cdef public ConnTable conns
    cdef public NeighTable neighs
    cdef public RouteTable routes
    cdef public list dests, modes
    cdef public ConnTimers timers
    cdef public Segments segments
    cdef public Pieces pieces
    cdef long long _cut_row
    cdef Dest _cut_dest
    cdef int _cut_room
    cdef public Proxying proxying

    @cython.locals(conns=ConnTable)
    cdef int admit(self, Packet pkt, long long row, int direction, long long now) except -1
    cdef bint _divides(self, Packet pkt, long long row) except -1
    @cython.locals(conns=ConnTable)
    cdef _resolve(self, long long row, long long now)
    @cython.locals(conns=ConnTable)
    cdef int track(
        self, Packet pkt, Protocol protocol, long long row, int direction, Dest dest, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef int set_state(self, Protocol protocol, long long row, int state, Dest dest, long long now) except -1
    cdef int send(self, Packet pkt, long long row, int direction, Dest dest, long long now) except -1
    cdef int _send_special(self, Packet pkt, long long row, int direction, Dest dest, long long now) except -1
    cdef bint _takes_fragments(self, long long row) except -1
    cdef int _cut(self, Packet pkt, long long row, int direction, Dest dest, int length) except -1
    cdef int next_segment(self, Packet pkt, long long now) except -2
    cdef int _send_apart(self, Packet pkt, long long row, Dest dest, long long now) except -1
    cdef void _lower_ttl(self, Packet pkt) noexcept
    cdef void _count(self, long long row, int direction, Dest dest, int length) noexcept
