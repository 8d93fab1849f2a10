from tunlb.counters cimport Counters

cdef class Peers:
    cdef public Counters counters
    cdef public int worker, workers
    cdef public list waiting
