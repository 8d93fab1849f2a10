cimport cython
from tunlb.director cimport Director
from tunlb.hook cimport Hook
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.transmit cimport Transmit
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.protocol cimport Protocol
from tunlb.ipvs.scheduler cimport Scheduler
from tunlb.neigh cimport NeighTable
from tunlb.netif cimport Netif
from tunlb.packet cimport Bytes, Packet
from tunlb.pipeline.guard cimport LoopGuard
from tunlb.pipeline.hooks cimport Chain
from tunlb.pipeline.ingress cimport Ingress
from tunlb.timers cimport Wheel

cdef class Pass(Hook):
    cpdef int run(self, Packet pkt, long long now) except? -1

cdef class Swallow(Hook):
    cpdef int run(self, Packet pkt, long long now) except? -1

cdef class Clock(Wheel):
    cpdef long long fire(self, int index, long long now) except? -1

@cython.final
cdef class Frame:
    cdef public Packet pkt
    cdef public Netif iif
    cdef public object mem
    cdef Bytes p
    cdef int start, size

    cpdef void load(self) noexcept

cpdef unsigned long long shuffle(unsigned long long state) noexcept

cpdef long long packets(Director director, Frame frame, long long now, long long n, bint live) except -1
cpdef long long births(
    Director director, Frame frame, int sport_at, long long now, long long n, bint live) except -1
cpdef long long series(
    Director director, Frame frame, int word_at, unsigned int first, unsigned int step, long long now, long long n,
    bint live) except -1
cpdef long long segments(Director director, Frame frame, long long now, long long n, bint live) except -1
@cython.locals(frame=Frame)
cpdef long long answers(Director director, list[Frame] frames, long long now, long long n, bint live) except -1
@cython.locals(conns=ConnTable)
cpdef ends(Life life, bint live)
@cython.locals(frame=Frame)
cpdef long long fill(Director director, list[Frame] frames, long long now, long long n) except -1
@cython.locals(frame=Frame)
cpdef long long walks(
    Director director, list[Frame] frames, long long conns, unsigned long long seed, long long now, long long n,
    bint live) except -1
cpdef long long parses(Ingress ingress, Chain chain, Frame frame, long long now, long long n, bint live) except -1
cpdef long long hooks(Chain chain, Packet pkt, long long now, long long n, bint live) except -1
cpdef long long verdicts(Hook hook, Packet pkt, int verdict, long long now, long long n, bint live) except -1
cpdef long long picks(Scheduler scheduler, Packet pkt, long long now, long long n, bint live) except -1
@cython.locals(q="unsigned long long*", d="unsigned int*")
cpdef populate(ConnTable conns, long long n, unsigned long long hi)
cpdef long long lookups(
    ConnTable conns, long long conn_count, unsigned long long hi, unsigned int dport,
    unsigned long long seed, long long n, bint live) except -1
cpdef long long states(Protocol protocol, Packet pkt, int state, int direction, long long n, bint live) except -1
cpdef tracks(
    Transmit transmit, Packet pkt, Protocol protocol, long long row, int direction, Dest dest, long long now,
    long long n, bint live)
cpdef rewrites(Packet pkt, ConnTable conns, long long row, int direction, long long n, bint live)
cpdef long long outputs(NeighTable neighs, Packet pkt, long long now, long long n, bint live) except -1
cpdef guards(LoopGuard guard, Packet pkt, long long now, long long n, bint live)
cpdef long long sums(Packet pkt, Py_ssize_t offset, Py_ssize_t length, long long n, bint live) except -1
cpdef schedules(Wheel wheel, long long now, long long n, bint live)
cpdef expiries(Wheel wheel, long long now, long long n, bint live)
