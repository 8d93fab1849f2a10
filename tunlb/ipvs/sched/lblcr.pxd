cimport cython
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.sched.lblc cimport Entry, LocalityLeastConn

@cython.locals(dest=Dest)
cdef Dest busiest(list[Dest] dests)

cdef class ReplicatedLocality(LocalityLeastConn):
    cpdef Dest known(self, Entry entry, long long now)
    @cython.locals(other=Dest)
    cpdef learn(self, Entry entry, Dest dest, long long now)
