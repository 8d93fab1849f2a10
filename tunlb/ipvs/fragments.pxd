cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.acl cimport AclFilter
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.core cimport Ipvs
from tunlb.ipvs.datagrams cimport Datagram, Datagrams
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service
from tunlb.ipvs.transmit cimport Transmit
from tunlb.netif cimport Netif
from tunlb.outbox cimport Outbox
from tunlb.packet cimport Bytes, Packet

cdef class Waiting:
    cdef public long long since
    cdef public tuple source
    cdef public list frames
    cdef public long long bytes

@cython.final
cdef class Fragments:
    cdef public Counters counters
    cdef public Ipvs ipvs
    cdef public Outbox outbox
    cdef public Datagrams datagrams
    cdef public bint tracking, transit
    cdef public AclFilter acl
    cdef public int held
    cdef public long long held_bytes
    cdef dict _waiting, _sources
    cdef unsigned int _ident
    cdef int _key_proto, _start, _end
    cdef bint _more

    cpdef int receive(self, Packet pkt, long long now) except -1
    @cython.locals(p=Bytes)
    cdef bint _measure(self, Packet pkt) noexcept
    @cython.locals(p=Bytes)
    cdef int _fragment_header(self, Packet pkt) noexcept
    cdef bint _has_ports(self, Packet pkt) noexcept
    cdef int _unbalanced(self, Packet pkt) noexcept
    cdef int _first(self, Packet pkt, long long now) except -1
    @cython.locals(p=Bytes)
    cdef bint _transport(self, Packet pkt) noexcept
    cdef Datagram _find(self, Packet pkt, long long now)
    cpdef int resume(self, Packet pkt, long long now) except -1
    cpdef int later(self, Packet pkt, long long now) except -1
    @cython.locals(ipvs=Ipvs, conns=ConnTable)
    cdef int _follow(self, Packet pkt, long long now) except -1
    @cython.locals(conns=ConnTable, q="unsigned long long*")
    cdef int _rewrite(self, Packet pkt, long long row, int direction) except -1
    @cython.locals(ipvs=Ipvs)
    cdef int _astray(self, Packet pkt) except -1
    cdef int _hold(self, Packet pkt, long long now) except -1
