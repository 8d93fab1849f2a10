cimport cython
from tunlb.ipvs.conn cimport ConnTable
from tunlb.ipvs.dest cimport Dest
from tunlb.ipvs.life cimport Life
from tunlb.ipvs.mode cimport Mode
from tunlb.ipvs.service cimport Service, ServiceTable
from tunlb.ipvs.transmit cimport Transmit
from tunlb.packet cimport Packet

cpdef int forward(
    Packet pkt, Life life, Transmit transmit, Service service, Dest dest, long long now) except -1
@cython.locals(conns=ConnTable, source=tuple, target=tuple, client=tuple)
cpdef int quoted(Packet pkt, Life life, ServiceTable services, long long now) except -3
cdef _ask(
    ConnTable conns, long long row, unsigned long long caddr_hi, unsigned long long caddr,
    unsigned int cport, Service service, unsigned int vport)
cpdef forget(Life life, long long row)
@cython.locals(conns=ConnTable)
cdef int _send(
    Packet pkt, Life life, Transmit transmit, Service service, Dest dest, Mode mode, long long row,
    int direction, long long now) except -1
@cython.locals(conns=ConnTable)
cpdef int answer(
    Packet pkt, Life life, Transmit transmit, Service service, Dest dest, long long now) except -1
