"""The loops that drive the rooms: compiled like the rooms, so that no Python call is measured.

Each loop runs ``n`` times. With ``live`` False it does all but call the room: the difference of the
two is what the room costs. Callees are reached through their `.pxd`, as the pipeline reaches them,
and never inlined here.
"""

from __future__ import annotations

import cython

from tunlb.director import Director
from tunlb.hook import Hook
from tunlb.ipvs.conn import B_AF, B_PROTO, D_PORTS, TEMPLATE_PROTO, ConnTable
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.life import Life
from tunlb.ipvs.protocol import Protocol
from tunlb.ipvs.scheduler import Scheduler
from tunlb.ipvs.transmit import Transmit
from tunlb.neigh import NeighTable
from tunlb.netif import Netif
from tunlb.packet import ETHER_LEN, L3_OFFSET, VNET_LEN, Packet
from tunlb.pipeline.guard import LoopGuard
from tunlb.pipeline.hooks import Chain
from tunlb.pipeline.ingress import Ingress
from tunlb.timers import Wheel

if cython.compiled:
    from cython.cimports.libc.string import memcpy
    from cython.cimports.tunlb.ipvs import rewrite
    from cython.cimports.tunlb.wire import checksum
else:
    from tunlb.ipvs import rewrite
    from tunlb.wire import checksum

CLIENT = 0x0A10_0000  #: 10.16.0.0: the first client address of `populate` and `fill`
VADDR = 0x0A09_0164  #: 10.9.1.100
VPORT = 80
FIRST_PORT = 1024
PORT_BITS = 15  #: conns of one client address, as a power of two
DELAY_MS = 200_000  #: the longest delay of `schedules`, within the wheel's horizon

_CLIENT = cython.declare(cython.ulonglong, 0xFFFF_0000_0000 | CLIENT)
_VADDR = cython.declare(cython.ulonglong, 0xFFFF_0000_0000 | VADDR)
_DADDR = cython.declare(cython.ulonglong, 0xFFFF_0A09_0202)
_VPORT = cython.declare(cython.uint, VPORT)
_FIRST_PORT = cython.declare(cython.uint, FIRST_PORT)
_PORT_BITS = cython.declare(cython.int, PORT_BITS)
_PORT_MASK = cython.declare(cython.uint, (1 << PORT_BITS) - 1)
_DELAY_MS = cython.declare(cython.ulonglong, DELAY_MS)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)
_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_TEMPLATE_PROTO = cython.declare(cython.int, TEMPLATE_PROTO)
_B_AF = cython.declare(cython.longlong, B_AF)
_VNET_LEN = cython.declare(cython.int, VNET_LEN)
_L4_OFFSET = cython.declare(cython.int, L3_OFFSET + 20)
_MASK64 = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
# Knuth's MMIX: a full period, and its upper bits are random enough to spread accesses.
_STEP = cython.declare(cython.ulonglong, 6364136223846793005)
_SHIFT = cython.declare(cython.ulonglong, 1442695040888963407)


class Pass(Hook):
    """The least that a compiled hook can do."""

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        return 1


class Swallow(Hook):
    """Ends the walk where its chain runs."""

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        return 2


class Clock(Wheel):
    """A wheel whose entries are done with when they come due."""

    def fire(self, index: cython.int, now: cython.longlong) -> cython.longlong:
        return 0


class Frame:
    """A frame, virtio-net header first, to be put into ``pkt`` as a port of ``iif`` would."""

    def __init__(self, frame: bytes, pkt: Packet, iif: Netif) -> None:
        self.pkt = pkt
        self.iif = iif
        self.mem = memoryview(bytearray(frame))
        self.size = len(frame)
        self.start = L3_OFFSET - ETHER_LEN - VNET_LEN
        if cython.compiled:
            view: cython.uchar[::1] = self.mem
            self.p = cython.address(view[0])
        else:
            self.p = self.mem

    def load(self) -> None:
        pkt = self.pkt
        pkt.reset(self.start + _VNET_LEN, self.start + self.size)
        pkt.iif = self.iif
        if cython.compiled:
            memcpy(pkt.p + self.start, self.p, self.size)
        else:
            pkt.mem[self.start : self.start + self.size] = self.p


def shuffle(state: cython.ulonglong) -> cython.ulonglong:
    """The next number of a sequence without pattern; use its upper bits."""
    return (state * _STEP + _SHIFT) & _MASK64


# ---- whole packets ------------------------------------------------------------------------------


def packets(
    director: Director, frame: Frame, now: cython.longlong, n: cython.longlong, live: cython.bint
) -> cython.longlong:
    """The same frame over and over; how often it was not accepted."""
    refused: cython.longlong = 0
    for _ in range(n):
        frame.load()
        if live:
            refused += director.receive(frame.pkt, now) != 1
    return refused


def births(
    director: Director,
    frame: Frame,
    sport_at: cython.int,
    now: cython.longlong,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    """The frame from one source port after the other; how often it was not accepted."""
    return series(director, frame, sport_at, _FIRST_PORT, 1, now, n, live)


def series(
    director: Director,
    frame: Frame,
    word_at: cython.int,
    first: cython.uint,
    step: cython.uint,
    now: cython.longlong,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    """The frame with one 16-bit word after the other; how often it was not accepted."""
    refused: cython.longlong = 0
    i: cython.longlong
    for i in range(n):
        frame.load()
        frame.pkt.put16(word_at, first + step * cython.cast(cython.uint, i))
        if live:
            refused += director.receive(frame.pkt, now) != 1
    return refused


def segments(
    director: Director, frame: Frame, now: cython.longlong, n: cython.longlong, live: cython.bint
) -> cython.longlong:
    """The same offloaded frame over and over, cut into segments; how often there was none."""
    refused: cython.longlong = 0
    cut: cython.longlong
    for _ in range(n):
        frame.load()
        if live:
            cut = 0
            if director.receive(frame.pkt, now) == 2:
                while director.segment(frame.pkt, now) == 1:
                    cut += 1
            refused += cut == 0
    return refused


def answers(
    director: Director,
    frames: list[Frame],
    now: cython.longlong,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    """Frames in turn that are answered, or stand for one of ours; how often nothing waited to be
    sent. A worker writes that after each burst.
    """
    refused: cython.longlong = 0
    count: cython.longlong = len(frames)
    i: cython.longlong
    for i in range(n):
        frame = frames[i % count]
        frame.load()
        if live:
            refused += director.receive(frame.pkt, now) != 2
        if (i & 63) == 63 or i == n - 1:
            sent: cython.longlong = len(director.outbox.take())
            if live:
                refused += sent != (i & 63) + 1
    return refused


def ends(life: Life, live: cython.bint) -> None:
    """End every conn; a template that held only half-open ones ends with the last of them."""
    conns = life.conns
    row: cython.longlong
    for row in range(conns.fresh):
        if conns.valid(row) and conns.b[row * 128 + _B_PROTO] != _TEMPLATE_PROTO and live:
            life.end(row)


def fill(
    director: Director, frames: list[Frame], now: cython.longlong, n: cython.longlong
) -> cython.longlong:
    """``n`` conns, 2**PORT_BITS of each frame (IPv4); how many were refused."""
    refused: cython.longlong = 0
    i: cython.longlong
    for i in range(n):
        frame = frames[i >> _PORT_BITS]
        frame.load()
        frame.pkt.put16(_L4_OFFSET, _FIRST_PORT + (cython.cast(cython.uint, i) & _PORT_MASK))
        refused += director.receive(frame.pkt, now) != 1
    return refused


def walks(
    director: Director,
    frames: list[Frame],
    conns: cython.longlong,
    seed: cython.ulonglong,
    now: cython.longlong,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    """Packets of conns that `fill` made, in random order; how often one was not accepted."""
    refused: cython.longlong = 0
    state: cython.ulonglong = seed
    i: cython.longlong
    for _ in range(n):
        state = shuffle(state)
        i = ((state >> 32) * cython.cast(cython.ulonglong, conns)) >> 32
        frame = frames[i >> _PORT_BITS]
        frame.load()
        frame.pkt.put16(_L4_OFFSET, _FIRST_PORT + (cython.cast(cython.uint, i) & _PORT_MASK))
        if live:
            refused += director.receive(frame.pkt, now) != 1
    return refused


# ---- rooms --------------------------------------------------------------------------------------


def parses(
    ingress: Ingress,
    chain: Chain,
    frame: Frame,
    now: cython.longlong,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    """From the first byte to PRE_ROUTING, whose ``chain`` swallows the packet: it runs alone
    without ``live``, so that what is left is the parsing.
    """
    refused: cython.longlong = 0
    for _ in range(n):
        frame.load()
        if live:
            refused += ingress.receive(frame.pkt, now) != 2
        else:
            refused += chain.run(frame.pkt, now) != 2
    return refused


def hooks(
    chain: Chain, pkt: Packet, now: cython.longlong, n: cython.longlong, live: cython.bint
) -> cython.longlong:
    refused: cython.longlong = 0
    for _ in range(n):
        if live:
            refused += chain.run(pkt, now) != 1
    return refused


def verdicts(
    hook: Hook,
    pkt: Packet,
    verdict: cython.int,
    now: cython.longlong,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    """One hook alone; how often its verdict was another one."""
    refused: cython.longlong = 0
    for _ in range(n):
        if live:
            refused += hook.run(pkt, now) != verdict
    return refused


def picks(
    scheduler: Scheduler, pkt: Packet, now: cython.longlong, n: cython.longlong, live: cython.bint
) -> cython.longlong:
    """A scheduler's picks for one client; how often it picked none."""
    refused: cython.longlong = 0
    for _ in range(n):
        if live:
            refused += scheduler.schedule(pkt, now) is None
    return refused


def populate(conns: ConnTable, n: cython.longlong, hi: cython.ulonglong) -> None:
    """``n`` conns as NAT makes them, straight into the table; addresses are ``hi`` and what an IPv4
    one would have.
    """
    q = conns.q
    d = conns.d
    i: cython.longlong
    row: cython.longlong
    sport: cython.uint
    client: cython.ulonglong
    for i in range(n):
        row = conns.alloc()
        client = _CLIENT + cython.cast(cython.ulonglong, i >> _PORT_BITS)
        sport = _FIRST_PORT + (cython.cast(cython.uint, i) & _PORT_MASK)
        q[row * 16] = q[row * 16 + 2] = hi
        q[row * 16 + 1] = client
        q[row * 16 + 3] = _VADDR
        q[row * 16 + 4] = q[row * 16 + 6] = hi
        q[row * 16 + 5] = _DADDR
        q[row * 16 + 7] = client
        d[row * 32 + _D_PORTS] = (sport << 16) | _VPORT
        d[row * 32 + _D_PORTS + 1] = (8080 << 16) | sport
        conns.b[row * 128 + _B_PROTO] = 6
        conns.b[row * 128 + _B_AF] = 6 if hi else 4
        if not conns.link(row):
            raise ValueError(f"conn {i} is in the table already")


def lookups(
    conns: ConnTable,
    conn_count: cython.longlong,
    hi: cython.ulonglong,
    dport: cython.uint,
    seed: cython.ulonglong,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    """Look up conns that `populate` made, in random order; how many were there.

    Which one comes next depends on what the last one gave, as it does for a worker that has to
    finish one packet before the next: no two lookups overlap in the processor.
    """
    state: cython.ulonglong = seed
    found: cython.longlong = 0
    entry: cython.longlong = 0
    i: cython.ulonglong
    for _ in range(n):
        state = shuffle(state + cython.cast(cython.ulonglong, entry))
        i = ((state >> 32) * cython.cast(cython.ulonglong, conn_count)) >> 32
        if live:
            entry = conns.find(
                hi,
                _CLIENT + (i >> _PORT_BITS),
                hi,
                _VADDR,
                ((_FIRST_PORT + (cython.cast(cython.uint, i) & _PORT_MASK)) << 16) | dport,
                6,
            )
            if entry >= 0:
                found += 1
            else:
                entry = 0
    return found


def states(
    protocol: Protocol,
    pkt: Packet,
    state: cython.int,
    direction: cython.int,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    total: cython.longlong = 0
    for _ in range(n):
        if live:
            total += protocol.next_state(pkt, state, direction)
    return total


def tracks(
    transmit: Transmit,
    pkt: Packet,
    protocol: Protocol,
    row: cython.longlong,
    direction: cython.int,
    dest: Dest,
    now: cython.longlong,
    n: cython.longlong,
    live: cython.bint,
) -> None:
    for _ in range(n):
        if live:
            transmit.track(pkt, protocol, row, direction, dest, now)


def rewrites(
    pkt: Packet,
    conns: ConnTable,
    row: cython.longlong,
    direction: cython.int,
    n: cython.longlong,
    live: cython.bint,
) -> None:
    """The checksums go wrong when the same packet is rewritten again; that costs the same."""
    for _ in range(n):
        if live:
            rewrite.apply(pkt, conns, row, direction)


def outputs(
    neighs: NeighTable, pkt: Packet, now: cython.longlong, n: cython.longlong, live: cython.bint
) -> cython.longlong:
    refused: cython.longlong = 0
    for _ in range(n):
        if live:
            refused += neighs.output(pkt, now) != 1
    return refused


def guards(
    guard: LoopGuard, pkt: Packet, now: cython.longlong, n: cython.longlong, live: cython.bint
) -> None:
    """What the loop guard costs a packet: one look, one note."""
    for _ in range(n):
        if live:
            guard.seen(pkt, now)
            guard.wrote(pkt, now)


def sums(
    pkt: Packet,
    offset: cython.Py_ssize_t,
    length: cython.Py_ssize_t,
    n: cython.longlong,
    live: cython.bint,
) -> cython.longlong:
    total: cython.longlong = 0
    for _ in range(n):
        if live:
            total += checksum.sum16(pkt, offset, length)
    return total


# ---- timers -------------------------------------------------------------------------------------


def schedules(wheel: Wheel, now: cython.longlong, n: cython.longlong, live: cython.bint) -> None:
    """Entries 0 to ``n`` - 1, with delays without order."""
    state: cython.ulonglong = 1
    i: cython.longlong
    for i in range(n):
        state = shuffle(state)
        if live:
            wheel.schedule(
                cython.cast(cython.int, i),
                now,
                cython.cast(cython.longlong, ((state >> 32) * _DELAY_MS) >> 32),
            )


def expiries(wheel: Wheel, now: cython.longlong, n: cython.longlong, live: cython.bint) -> None:
    """Let the ``n`` entries of `schedules` come due at once, ``now`` being late enough."""
    if live:
        wheel.advance(now, cython.cast(cython.int, n))
