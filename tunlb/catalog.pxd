from tunlb.ipvs.core cimport Ipvs
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.matches cimport MatchTable
from tunlb.ipvs.service cimport Service, ServiceTable

cdef class Change:
    cdef public Service service
    cdef public Service old
    cdef public Dest bypass
    cdef public list dests, settings, weights, ends

cdef class Draft:
    cdef public long long now
    cdef public ServiceTable table
    cdef public MatchTable matches
    cdef public dict lines, services
    cdef public list changes, late, gone

cdef class Catalog:
    cdef public dict services, lines, dests
    cdef public object ids, ramps
    cdef public bint lapsing
    cdef Ipvs _ipvs
    cdef dict _protocols, _modes, _draining, _tallies
    cdef bint _unpublished
    cdef unsigned long long _seed
    cdef object _dest_stats, _first, _others, _timeouts, _on_error
