cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.laddr cimport LportPool, LportPools
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.proxying cimport Proxying
from tunlb.ipvs.service cimport Service
from tunlb.packet cimport Packet
from tunlb.timers cimport Wheel

cdef class Ending:
    cpdef int due(self, int row, long long now) except -1

cdef class ConnTimers(Wheel):
    cdef public Life life

    @cython.locals(life=Life)
    cpdef long long fire(self, int index, long long now) except? -1

@cython.final
cdef class Life:
    cdef public Counters counters
    cdef public ConnTable conns
    cdef public LportPools pools
    cdef public list dests, protocols, modes
    cdef public ConnTimers timers
    cdef public Proxying proxying
    cdef public Ending ending
    cdef public long long templates
    cdef long long _hand

    @cython.locals(conns=ConnTable)
    cpdef int new(self, Packet pkt, Service service, Dest dest, long long now) except -2
    cdef _end_proxied(self, long long row, Dest dest)
    cdef int take(self, long long now) except? -1
    @cython.locals(conns=ConnTable)
    cdef Mode begin(self, long long row, Packet pkt, Dest dest)
    @cython.locals(conns=ConnTable)
    cdef bint _recycle_lport(self, long long row, Service service, Dest dest, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef bint _recycle(self, long long entry, Protocol protocol, long long now) except -1
    cpdef end(self, long long row)
    @cython.locals(conns=ConnTable)
    cdef _end_template(self, long long row)
    @cython.locals(conns=ConnTable)
    cdef _release(self, long long row)
    cpdef Protocol protocol_of(self, long long row)
    @cython.locals(conns=ConnTable)
    cpdef int check_expiry(self, int row, long long now) except -1
    @cython.locals(conns=ConnTable)
    cpdef bint evict(self, long long now) except -1
    @cython.locals(conns=ConnTable)
    cpdef int adopt(self, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef _count_held(self)
    @cython.locals(conns=ConnTable)
    cdef bint _adopt_template(self, long long row, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef _resume(self, long long row, long long now)
    @cython.locals(conns=ConnTable)
    cdef bint _adopt_row(self, long long row, long long now) except -1
    @cython.locals(conns=ConnTable)
    cdef bint _plausible(self, long long row) except -1
