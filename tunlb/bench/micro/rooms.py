"""The rooms whose cost is measured, one entry each."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from tunlb.bench.micro import bed, drive
from tunlb.bench.micro.bed import NOW, Bed
from tunlb.bench.micro.scenes import DATA, SCENES, Talk
from tunlb.hook import Hook, Verdict
from tunlb.ipvs import sched
from tunlb.ipvs.acl import Acl, AclFilter
from tunlb.ipvs.dest import FWD_NAT, Dest
from tunlb.ipvs.proto.tcp import Tcp
from tunlb.ipvs.sched.mh import MaglevHash
from tunlb.packet import L3_OFFSET, Packet
from tunlb.pipeline.hooks import Chain
from tunlb.pipeline.ingress import Ingress
from tunlb.tap import BURST_FRAMES, Drain, Port
from tunlb.testing.flow import Rig, raise_on
from tunlb.testing.frames import vnet

# What a memory of over 100 MB costs shows only once the caches of page tables are warm again.
LONG_MS = 20.0
SCENE_BIRTHS = bed.SCENE_BIRTHS_MAX // 2
SPORT_AT = MappingProxyType({4: L3_OFFSET + 20, 6: L3_OFFSET + 40})
MAGLEV_DESTS, MAGLEV_SLOTS = 1000, 65537
DRAIN_FRAMES = 4 * BURST_FRAMES  # a pipe of 1 MiB holds 256 packets
SCENE_PASSES = 256  # of a room of a scene, where it is counted
PROOFS = 64  # clients of the SYN proxy: what is counted is made beforehand, slowly
GSO_TCPV4, GSO_SIZE = 1, 1400
FRAGMENT_AT = L3_OFFSET + 40  # where the fragment header is in IPv6
BIG = bytes(46 * GSO_SIZE)  # 64,400 bytes: an offloaded frame as a busy sender makes them
SCHEDULED = 16  # dests of a scheduler


def nothing(n: int) -> None:
    """What most rooms need before and after they are driven."""


@dataclass(frozen=True)
class Case:
    """A room, set up.

    ``run(n, live)`` drives it ``n`` times; without ``live`` it does all the rest of the work, so
    that the difference is the room. ``before(n)`` and ``after(n)`` are not measured.
    """

    run: Callable[[int, bool], object]
    before: Callable[[int], object] = nothing
    after: Callable[[int], object] = nothing


@dataclass(frozen=True)
class Room:
    """``count``: times that it is driven where instructions are counted. ``most``: times at most
    where it is timed (0: as often as the time asks for). ``counted`` and ``timed``: whether it is
    at all. ``turn_ms``: of its run within a turn, about.
    """

    name: str
    title: str
    make: Callable[[Bed], Case]
    count: int = 1000
    most: int = 0
    counted: bool = True
    timed: bool = True
    turn_ms: float = 1.5


class PythonPass(Hook):
    """A user's hook, not compiled."""

    def run(self, pkt: Packet, now: int) -> int:
        return 1


# ---- whole packets ------------------------------------------------------------------------------


def packet(
    base: Bed, mode: str, af: int, proto: str, reply: bool = False, offload: bool = False
) -> Case:
    frame = base.walk(mode, af, proto, reply=reply, partial=offload)
    return Case(partial(drive.packets, base.rig.director, frame, NOW))


def related(base: Bed, af: int) -> Case:
    return Case(partial(drive.packets, base.rig.director, base.related(af), NOW))


def birth(base: Bed, mode: str, af: int) -> Case:
    run, clear = nursery(base, mode, af)
    return Case(run, after=lambda n: clear(True))


def end(base: Bed, mode: str, af: int) -> Case:
    bear, clear = nursery(base, mode, af)
    return Case(
        lambda n, live: clear(live),
        before=lambda n: bear(n, True),
        after=lambda n: clear(True),
    )


def nursery(
    base: Bed, mode: str, af: int
) -> tuple[Callable[[int, bool], object], Callable[[bool], object]]:
    """What bears conns, and what ends them all."""
    director = base.nursery.director
    raw = vnet(bed.flow(mode, af, drive.FIRST_PORT).syn())
    frame = drive.Frame(raw, director.packet, base.nursery.netif("out"))
    bear = partial(drive.births, director, frame, SPORT_AT[af], NOW)
    return bear, partial(drive.ends, director.ipvs.life)


def crowd(base: Bed, count: int) -> Case:
    """Packets of many conns, in random order."""
    rig = base.crowd(count)
    frames = list(bed.spread(rig, count))[1]
    seeds = itertools.count(1)
    return Case(
        lambda n, live: drive.walks(
            rig.director, frames, count, next(seeds) if live else 0, NOW, n, live
        )
    )


def drain(base: Bed) -> Case:
    """From a pipe that keeps packets apart to /dev/null, by the loop that a worker runs."""
    frame = base.walk("nat", 4, "tcp")
    director = base.rig.director
    reading, writing = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    with contextlib.suppress(OSError):  # the kernel's own size will do for fewer packets
        grow(writing)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    ports = [
        Port(netif, fd, director.counters)
        for netif, fd in zip(director.netifs, (reading, nowhere), strict=True)
    ]
    drain = Drain(director, ports, lambda port: None)
    raw = bytes(frame.mem)

    def fill(n: int) -> None:
        for _ in range(n):
            os.write(writing, raw)

    def run(n: int, live: bool) -> None:
        for _ in range(n // BURST_FRAMES if live else 0):
            drain.run(ports[0], NOW)

    def empty(n: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.read(reading, len(raw))

    return Case(run, fill, empty)


def grow(fd: int) -> None:
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)


# ---- packets of scenes --------------------------------------------------------------------------


def scene(base: Bed, name: str, step: str) -> Case:
    return Case(partial(drive.packets, base.stage.director, base.scene(name, step), NOW))


def cut(base: Bed, name: str) -> Case:
    offload = {"needs_csum": True, "gso_type": GSO_TCPV4, "gso_size": GSO_SIZE}
    frame = base.scene(name, ">A", BIG, **offload)
    return Case(partial(drive.segments, base.stage.director, frame, NOW))


def scene_birth(base: Bed, name: str) -> Case:
    """Conns from one source port after the other; the one before them makes what they find."""
    rig = base.scene_nursery
    talk = Talk(rig, name, drive.FIRST_PORT - 1)
    port, raw = talk.frame(">S")
    frame = framed(rig, port, raw)
    sport_at = SPORT_AT[SCENES[name].af]

    def first(n: int) -> None:
        rig.receive(port, raw)

    return Case(
        partial(drive.births, rig.director, frame, sport_at, NOW),
        before=first,
        after=lambda n: drive.ends(rig.director.ipvs.life, True),
    )


def syn_answered(base: Bed) -> Case:
    rig = base.scene_nursery
    port, raw = Talk(rig, "synproxy").frame(">S")
    frames = [framed(rig, port, raw)]
    return Case(partial(drive.answers, rig.director, frames, NOW))


def syn_proven(base: Bed) -> Case:
    """The clients have their cookies already."""
    rig = base.scene_nursery
    frames = []
    for i in range(PROOFS):
        talk = Talk(rig, "synproxy", drive.FIRST_PORT + i)
        talk.take(">S")
        port, raw = talk.frame(">A")
        frames.append(framed(rig, port, raw))
    return Case(
        partial(drive.answers, rig.director, frames, NOW),
        after=lambda n: drive.ends(rig.director.ipvs.life, True),
    )


def fragment(base: Bed, later: bool) -> Case:
    """The first ones of many datagrams (IPv6), or the later ones of one, 8 bytes each. Time goes on
    between turns, so that no datagram is known from the turn before.
    """
    director = base.stage.director
    talk = base.talk("fragment")
    first = framed(base.stage, *talk.fragment(0, DATA[8:]))
    more = framed(base.stage, *talk.fragment(len(DATA), bytes(8)))
    clock = {"now": NOW}

    def begin(n: int) -> None:
        clock["now"] = next(base.datagram_times)
        if later:
            drive.packets(director, first, clock["now"], 1, True)

    def run(n: int, live: bool) -> object:
        if later:
            place = (FRAGMENT_AT + 2, len(DATA) | 1, 8)
            return drive.series(director, more, *place, clock["now"], n, live)
        return drive.series(director, first, FRAGMENT_AT + 6, 1, 1, clock["now"], n, live)

    return Case(run, begin)


def framed(rig: Rig, port: str, raw: bytes) -> drive.Frame:
    return drive.Frame(raw, rig.director.packet, rig.netif(port))


# ---- rooms of the pipeline ----------------------------------------------------------------------


def parse(base: Bed, af: int, proto: str) -> Case:
    frame = base.walk("nat", af, proto)
    ip = base.swallowing
    ingress = Ingress(ip, base.rig.director.neighs)
    return Case(partial(drive.parses, ingress, ip.pre_routing, frame, NOW))


def hooks(base: Bed, kinds: Sequence[type[Hook]]) -> Case:
    chain = Chain(base.rig.director.counters, raise_on)
    for kind in kinds:
        chain.register(kind())
    return Case(partial(drive.hooks, chain, base.rig.director.packet, NOW))


def lookup(base: Bed, count: int, af: int = 4, absent: bool = False) -> Case:
    hi = 0 if af == 4 else 0x2001_0DB8 << 32
    conns = bed.table(1 << (count - 1).bit_length(), count, hi)
    vport = drive.VPORT + absent
    seeds = itertools.count(1)
    return Case(
        lambda n, live: drive.lookups(conns, count, hi, vport, next(seeds) if live else 0, n, live)
    )


def tcp_state(base: Bed) -> Case:
    pkt = base.parsed(base.walk("nat", 4, "tcp"))
    return Case(partial(drive.states, Tcp(), pkt, 1, 0))


def track(base: Bed) -> Case:
    pkt = base.parsed(base.walk("nat", 4, "tcp"))
    transmit = base.rig.director.ipvs.transmit
    row = transmit.conns.lookup(pkt) >> 1
    dest = next(base.rig.director.services()).dests[0]
    protocol = base.rig.director.ipvs.life.protocol_of(row)
    return Case(partial(drive.tracks, transmit, pkt, protocol, row, 0, dest, NOW))


def rewrite(base: Bed, af: int, offload: bool) -> Case:
    pkt = base.parsed(base.walk("nat", af, "tcp", partial=offload))
    conns = base.rig.director.ipvs.conns
    return Case(partial(drive.rewrites, pkt, conns, conns.lookup(pkt) >> 1, 0))


def neigh_output(base: Bed) -> Case:
    pkt = base.parsed(base.walk("nat", 4, "tcp"))
    neighs = base.rig.director.neighs
    pkt.neigh = neighs.resolve(base.rig.netif("in"), 0, 0xFFFF_0A09_0202, NOW)
    return Case(partial(drive.outputs, neighs, pkt, NOW))


def guard(base: Bed) -> Case:
    pkt = base.parsed(base.walk("nat", 4, "tcp"))
    return Case(partial(drive.guards, base.rig.director.ip.guard, pkt, NOW))


def checksum(base: Bed) -> Case:
    return Case(partial(drive.sums, Packet(), L3_OFFSET, 1500))


def acl(base: Bed, listed: bool) -> Case:
    pkt = base.parsed(base.walk("nat", 4, "tcp"))
    if not listed:
        pkt.saddr += 1 << 16
    lists = Acl()
    lists.deny = base.sources
    hook = AclFilter(base.rig.director.ipvs.birth, lists, {})
    verdict = int(Verdict.DROP if listed else Verdict.ACCEPT)
    return Case(partial(drive.verdicts, hook, pkt, verdict, NOW))


def pick(base: Bed, name: str) -> Case:
    """Among dests of several weights, all of which carry conns, none too many."""
    pkt = base.parsed(base.walk("nat", 4, "tcp"))
    dests = []
    for i in range(SCHEDULED):
        lo = 0xFFFF_0A0A_0000 + i
        dests.append(Dest(i, 4, 0, lo, 8080, weight=100 + i % 4, fwdmode=FWD_NAT))
        dests[i].actconns = 50 + 7 * i % SCHEDULED
    scheduler = sched.find(name)(1)
    scheduler.update(dests)
    return Case(partial(drive.picks, scheduler, pkt, NOW))


# ---- what is no packet --------------------------------------------------------------------------


def schedule(base: Bed) -> Case:
    wheel = drive.Clock(bed.BIRTHS_MAX)

    def cancel(n: int) -> None:
        for i in range(n):
            wheel.cancel(i)

    return Case(partial(drive.schedules, wheel, NOW), after=cancel)


def expire(base: Bed) -> Case:
    wheel = drive.Clock(bed.BIRTHS_MAX)
    times = itertools.count(NOW, 2 * drive.DELAY_MS)
    later = {"now": NOW}

    def schedule(n: int) -> None:
        now = next(times)
        later["now"] = now + drive.DELAY_MS + wheel.tick_ms
        drive.schedules(wheel, now, n, True)

    def cancel(n: int) -> None:
        drive.expiries(wheel, later["now"], n, True)

    return Case(lambda n, live: drive.expiries(wheel, later["now"], n, live), schedule, cancel)


def maglev(base: Bed) -> Case:
    dests = [
        Dest(i, 4, 0, 0xFFFF_0A0A_0000 + i, 8080, fwdmode=FWD_NAT) for i in range(MAGLEV_DESTS)
    ]
    scheduler = MaglevHash(1, MAGLEV_SLOTS)

    def run(n: int, live: bool) -> None:
        for _ in range(n):
            if live:
                scheduler.update(dests)

    return Case(run)


def all_rooms() -> Iterator[Room]:
    """Every room, in the order of a packet's walk, whole packets last."""
    for af, proto in ((4, "tcp"), (4, "udp"), (6, "tcp")):
        yield Room(
            f"parse-v{af}-{proto}",
            f"vnet, Ethernet, IPv{af} and {proto.upper()} headers, and the loop guard",
            partial(parse, af=af, proto=proto),
        )
    for n in (0, 1, 4):
        title = f"a chain with {n} compiled hook" + "s" * (n != 1)
        yield Room(f"hooks-{n}", title, partial(hooks, kinds=(drive.Pass,) * n))
    title = "a chain with one hook in Python"
    yield Room("hook-python", title, partial(hooks, kinds=(PythonPass,)))
    yield from lookup_rooms()
    yield Room("tcp-state", "the TCP state table", tcp_state)
    yield Room("track", "a conn's state, age and neighbour from a packet", track)
    for af in (4, 6):
        for offload in (False, True):
            yield Room(
                f"rewrite-v{af}-{'partial' if offload else 'full'}",
                f"NAT of IPv{af}, {'partial' if offload else 'full'} checksum",
                partial(rewrite, af=af, offload=offload),
            )
    yield Room("loop-guard", "loop guard: one look, one note", guard)
    yield Room("neigh-output", "the neighbour's L2 header", neigh_output)
    yield Room("checksum-1500", "the checksum of 1500 bytes", checksum)
    for listed in (True, False):
        yield Room(
            f"acl-10k-{'hit' if listed else 'miss'}",
            f"a source that is {'' if listed else 'not '}among {bed.SOURCES:,} prefixes",
            partial(acl, listed=listed),
        )
    for name in sched.names():
        yield Room(
            f"sched-{name}", f"{name} picks one of {SCHEDULED} dests", partial(pick, name=name)
        )
    for af in (4, 6):
        yield Room(
            f"related-v{af}",
            f"an ICMP error about a conn's IPv{af} packet",
            partial(related, af=af),
        )
    yield from birth_rooms()
    yield Room("timer-schedule", "a timer set", schedule, 5000, bed.BIRTHS_MAX)
    yield Room("timer-expire", "a timer that comes due", expire, 5000, bed.BIRTHS_MAX)
    yield Room("maglev-build", "Maglev: 65537 slots, 1000 dests", maglev, 1, 4)
    yield from packet_rooms()
    yield from scene_rooms()


def lookup_rooms() -> Iterator[Room]:
    sizes = ((1_000, "1k", True), (100_000, "100k", True), (1_000_000, "1m", False))
    for absent in (False, True):
        for count, size, counted in sizes:
            yield Room(
                f"lookup-{'absent-' * absent}{size}",
                f"{'no conn' if absent else 'a conn'} found among {count:,}",
                partial(lookup, count=count, absent=absent),
                counted=counted,
                turn_ms=1.5 if count == 1_000 else LONG_MS,
            )
    yield Room("lookup-v6-1k", "an IPv6 conn found among 1,000", partial(lookup, count=1000, af=6))


def birth_rooms() -> Iterator[Room]:
    for what, make in (("new", birth), ("end", end)):
        for mode, af in (("nat", 4), ("fnat", 4), ("nat", 6)):
            title = f"{mode} conn, IPv{af}: " + (
                "its SYN, received and forwarded" if what == "new" else "its end"
            )
            yield Room(
                f"{what}-{mode}-v{af}", title, partial(make, mode=mode, af=af), most=bed.BIRTHS_MAX
            )


def packet_rooms() -> Iterator[Room]:
    for mode in bed.MODES:
        for af in (4, 6):
            for proto in ("tcp", "udp"):
                yield Room(
                    f"packet-{mode}-v{af}-{proto}",
                    f"a packet of a conn: {mode}, IPv{af}, {proto.upper()}",
                    partial(packet, mode=mode, af=af, proto=proto),
                )
    yield Room(
        "packet-nat-v4-tcp-partial",
        "a packet of a conn: nat, IPv4, TCP, partial checksum",
        partial(packet, mode="nat", af=4, proto="tcp", offload=True),
    )
    for mode in ("nat", "fnat"):
        yield Room(
            f"reply-{mode}-v4-tcp",
            f"a packet of a conn, from the dest: {mode}, IPv4, TCP",
            partial(packet, mode=mode, af=4, proto="tcp", reply=True),
        )
    yield Room(
        "drain-nat-v4-tcp",
        "a frame of a worker's burst, read and written (without the kernel)",
        drain,
        DRAIN_FRAMES,
        timed=False,
    )
    for count, size in ((1_000, "1k"), (1_000_000, "1m")):
        yield Room(
            f"crowd-{size}",
            f"a packet of one of {count:,} conns: nat, IPv4, TCP",
            partial(crowd, count=count),
            counted=False,
            turn_ms=LONG_MS,
        )


#: name, scene, step, what
SCENE_PACKETS = (
    ("packet-tunnel-ipip", "tunnel-ipip", ">A", "a packet of a conn: tunnel, IP in IP"),
    ("packet-tunnel-gre", "tunnel-gre", ">A", "a packet of a conn: tunnel, GRE"),
    ("packet-tunnel-gue", "tunnel-gue", ">A", "a packet of a conn: tunnel, GUE"),
    ("packet-snat", "snat", ">A", "a packet of a conn: SNAT, from the inside host"),
    ("reply-snat", "snat", "<A", "its answer: SNAT"),
    ("packet-nat64", "nat64", ">A", "a packet of a conn: NAT64, from the client (IPv6)"),
    ("reply-nat64", "nat64", "<A", "its answer: NAT64, from the dest (IPv4)"),
    ("packet-proxy-v2", "proxy-v2", ">A", "a packet of a conn behind its PROXY header"),
    ("reply-proxy-v2", "proxy-v2", "<A", "its answer"),
    ("packet-toa", "toa", ">A", "a packet of a conn, given its TOA"),
    ("packet-synproxy", "synproxy", ">A", "a packet of a conn that the SYN proxy made"),
    ("reply-synproxy", "synproxy", "<A", "its answer"),
    ("packet-bypass", "bypass", ">A", "a packet of a conn: bypass"),
    ("packet-local", "local", ">A", "a packet of a conn: local"),
    ("packet-sctp", "sctp", ">DATA", "a packet of an association: nat"),
    ("packet-echo", "echo", ">", "a ping: nat"),
)

#: scene, what
SCENE_BIRTHS_OF = (
    ("snat", "SNAT conn: its SYN, received and forwarded"),
    ("nat64", "NAT64 conn (client IPv6, dest IPv4): its SYN"),
    ("tunnel-ipip", "tunnel conn: its SYN"),
    ("persistence", "nat conn that a template holds: its SYN"),
    ("conn-rate", "nat conn whose source has a rate: its SYN"),
)


def scene_rooms() -> Iterator[Room]:
    """What features cost: compare with packet-nat-v4-tcp and new-nat-v4."""
    for room, name, step, title in SCENE_PACKETS:
        yield Room(room, title, partial(scene, name=name, step=step), SCENE_PASSES)
    for kind in ("ipip", "gre", "gue"):
        yield Room(
            f"cut-{kind}-64k",
            f"an offloaded frame of 64 KB: tunnel, {kind}, 46 segments",
            partial(cut, name=f"tunnel-{kind}"),
            16,
        )
    for later in (False, True):
        yield Room(
            f"fragment-{'later' if later else 'first'}",
            f"a {'later' if later else 'first'} fragment to a nat service, IPv6",
            partial(fragment, later=later),
            SCENE_PASSES,
            bed.SCENE_BIRTHS_MAX,
        )
    for name, title in SCENE_BIRTHS_OF:
        yield Room(
            f"new-{name}", title, partial(scene_birth, name=name), SCENE_PASSES, SCENE_BIRTHS
        )
    yield Room("syn-answered", "a SYN answered with a cookie", syn_answered, SCENE_PASSES)
    yield Room(
        "syn-proven", "an ACK with a good cookie: a SYN to the dest", syn_proven, PROOFS, PROOFS
    )
