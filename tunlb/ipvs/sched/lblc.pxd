cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.packet cimport Packet

cdef class Entry:
    cdef public list dests
    cdef public long long used, changed

@cython.locals(other=Dest)
cdef bint overloaded(Dest dest, list[Dest] dests) noexcept

cdef class LocalityLeastConn(Scheduler):
    cdef public object table

    @cython.locals(entry=Entry, dest=Dest)
    cpdef Dest schedule(self, Packet pkt, long long now)
    @cython.locals(entry=Entry)
    cdef Entry entry(self, Packet pkt, long long now)
    cpdef Dest known(self, Entry entry, long long now)
    cpdef learn(self, Entry entry, Dest dest, long long now)
