cimport cython
from tunlb.counters cimport Counters
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.matches cimport MatchTable
from tunlb.ipvs.persist cimport Persistence
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.rates cimport ConnRates
from tunlb.ipvs.service cimport Service, ServiceTable
from tunlb.ipvs.synpolicy cimport SynPolicy
from tunlb.ipvs.synproxy cimport SynProxy
from tunlb.ipvs.transmit cimport Transmit
from tunlb.netif cimport Addresses
from tunlb.packet cimport Packet

@cython.final
cdef class Birth:
    cdef public Counters counters
    cdef public Life life
    cdef public Transmit transmit
    cdef public Addresses addresses
    cdef public Persistence persistence
    cdef public ServiceTable services
    cdef public MatchTable matches
    cdef public bint quiescent
    cdef public SynProxy synproxy
    cdef public ConnRates rates
    cdef public bint defence_tcp, defence_udp

    cdef int schedule(self, Packet pkt, Protocol protocol, long long now) except -1
    cdef Service matching(self, Packet pkt)
    cdef int _proven(
        self, Packet pkt, Service service, SynPolicy policy, Protocol protocol, long long now) except -1
    cdef int _open(
        self, Packet pkt, Service service, Protocol protocol, long long now, int cookie, bint resumed) except -1
    cdef int _stopped(
        self, Packet pkt, Service service, int cookie, bint resumed, long long now) except -1
    cdef int _from_dest(self, Packet pkt, Protocol protocol, long long now) except -1
    cdef _resume(self, Protocol protocol, long long row, Dest dest, long long now)
    cdef bint forged(self, Packet pkt) except -1
