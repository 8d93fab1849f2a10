cimport cython
from tunlb.catalog cimport Catalog
from tunlb.counters cimport Counters
from tunlb.ipvs.core cimport Ipvs, IpvsIn
from tunlb.neigh cimport NeighTable
from tunlb.outbox cimport Outbox
from tunlb.packet cimport Packet
from tunlb.peers cimport Peers
from tunlb.pipeline.icmp cimport IcmpErrors
from tunlb.pipeline.ingress cimport Ingress
from tunlb.pipeline.ip cimport Ip
from tunlb.pipeline.originate cimport Originate

cdef class Director:
    cdef public object config
    cdef public Counters counters
    cdef public unsigned long long seed
    cdef public Packet packet
    cdef public Outbox outbox
    cdef public list netifs, carried
    cdef public NeighTable neighs
    cdef public Ip ip
    cdef public Originate sender
    cdef public IcmpErrors icmp
    cdef public Ingress ingress
    cdef public Ipvs ipvs
    cdef public Peers peers
    cdef public object protection
    cdef Catalog _catalog
    cdef IpvsIn _ipvs_in
    cdef list _work, _lingering, _announcements
    cdef tuple _static
    cdef long long _swept

    cpdef int receive(self, Packet pkt, long long now) except -1
    cpdef int segment(self, Packet pkt, long long now) except -2
    cpdef int resume(self, Packet pkt, long long now) except -1
    cpdef tick(self, long long now)
