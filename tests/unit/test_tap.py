"""Ports and bursts, over socket pairs: like a TAP they keep frames apart and never block."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tunlb.counters import Counters, DropReason
from tunlb.director import Director
from tunlb.hook import Verdict
from tunlb.mailbox import Mailbox, open_mailbox
from tunlb.neigh import NeighTable
from tunlb.netif import Addresses, Netif
from tunlb.outbox import PLAIN_VNET, Outbox
from tunlb.packet import ASKED, ETHER_LEN, L3_OFFSET, VNET_LEN, Packet
from tunlb.peers import Peers
from tunlb.tap import (
    BURST_BYTES,
    BURST_FRAMES,
    Drain,
    Port,
    drop_reason,
)

FRAME = bytes(range(60))


class ScriptedDirector(Director):
    """Does with each frame what the test says; keeps what it saw."""

    def __init__(self, counters: Counters, act: Callable[[Packet], int]) -> None:
        # The real one's parts are not needed: drain only knows these five.
        self.packet = Packet()
        self.outbox = Outbox(counters)
        self.counters = counters
        self.peers = None
        self.neighs = NeighTable(counters, Addresses(), self.outbox)
        self.act = act
        self.seen: list[tuple[bytes, int]] = []
        self.heard: list[tuple[bytes, int]] = []

    def receive(self, pkt: Packet, now: int) -> int:
        self.seen.append((pkt.frame(), now))
        return self.act(pkt)

    def hear(self, message: bytes, now: int) -> None:
        self.heard.append((message, now))


class Wire:
    """A port and the far end of its socket pair."""

    def __init__(self, index: int, counters: Counters, *, tun: bool = False) -> None:
        ours, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.far.setblocking(False)
        self.netif = Netif(index, f"lb{index}", 0x020000000001 + index, tun=tun)
        self.port = Port(self.netif, ours.detach(), counters)

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.far.send(PLAIN_VNET + frame)

    def received(self) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self.far.recv(1 << 17))
            except BlockingIOError:
                return frames

    def close(self) -> None:
        self.port.close()
        self.far.close()


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def wires(counters: Counters) -> Iterator[tuple[Wire, Wire]]:
    pair = (Wire(0, counters), Wire(1, counters))
    yield pair
    for wire in pair:
        wire.close()


def to(wire: Wire) -> Callable[[Packet], int]:
    def act(pkt: Packet) -> int:
        pkt.oif = wire.netif
        return Verdict.ACCEPT

    return act


def never(port: Port) -> None:
    raise AssertionError(f"{port.netif} was called lost")


def drop(pkt: Packet) -> int:
    pkt.reason = DropReason.NO_ROUTE
    return Verdict.DROP


@pytest.mark.parametrize(
    ("tun", "start"), [(False, L3_OFFSET - ETHER_LEN), (True, L3_OFFSET)], ids=["tap", "tun"]
)
def test_the_network_header_is_read_to_its_place(counters: Counters, tun: bool, start: int) -> None:
    wire = Wire(0, counters, tun=tun)
    pkt = Packet()
    pkt.load(PLAIN_VNET + FRAME, wire.netif)
    pkt.oif = wire.netif
    pkt.sport = 7
    wire.send(FRAME)
    assert wire.port.read_frame(pkt) == 1
    assert (pkt.start, pkt.end, pkt.frame()) == (start, start + len(FRAME), FRAME)
    assert pkt.iif is wire.netif
    assert (id(pkt.oif), pkt.sport) == (id(None), 0)  # nothing is left of the frame before
    assert counters.snapshot() == {"RX_FRAMES": 1, "RX_BYTES": len(FRAME)}
    wire.close()


def test_no_frame_is_not_an_error(wires: tuple[Wire, Wire], counters: Counters) -> None:
    port = wires[0].port
    assert port.read_frame(Packet()) == 0
    assert not port.lost
    assert counters.snapshot() == {}


@pytest.mark.parametrize("length", [1, VNET_LEN - 1, VNET_LEN])
def test_a_runt_is_a_frame_without_bytes(
    wires: tuple[Wire, Wire], counters: Counters, length: int
) -> None:
    pkt = Packet()
    wires[0].far.send(bytes(length))
    assert wires[0].port.read_frame(pkt) == 1
    assert pkt.end <= pkt.start
    assert counters.snapshot() == {"RX_FRAMES": 1}


def test_the_largest_frame_fits(wires: tuple[Wire, Wire]) -> None:
    largest = bytes(65535 + ETHER_LEN)
    pkt = Packet()
    wires[0].send(largest)
    assert wires[0].port.read_frame(pkt) == 1
    assert len(pkt.frame()) == len(largest)


def test_a_failing_descriptor_is_lost(wires: tuple[Wire, Wire]) -> None:
    port = wires[0].port
    port.close()
    port.close()
    assert port.read_frame(Packet()) == -1
    assert port.lost
    assert port.error == errno.EBADF


def test_drain_forwards_to_the_queue_of_the_oif(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    a, b = wires
    director = ScriptedDirector(counters, to(b))
    drain = Drain(director, [a.port, b.port], never)
    a.send(b"1" * 60, b"2" * 60)
    assert drain.run(a.port, 1234) == 2
    assert director.seen == [(b"1" * 60, 1234), (b"2" * 60, 1234)]
    assert b.received() == [PLAIN_VNET + b"1" * 60, PLAIN_VNET + b"2" * 60]
    assert a.received() == []
    assert counters.snapshot() == {
        "RX_FRAMES": 2,
        "RX_BYTES": 120,
        "TX_FRAMES": 2,
        "TX_BYTES": 120,
    }


def test_a_vlan_goes_out_by_the_queue_of_its_port(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    a, b = wires
    vlan = Netif(7, "lb1.5", b.netif.mac, vid=5, queue=1)

    def act(pkt: Packet) -> int:
        pkt.oif = vlan
        return Verdict.ACCEPT

    a.send(FRAME)
    Drain(ScriptedDirector(counters, act), [a.port, b.port], never).run(a.port, 0)
    assert b.received() == [PLAIN_VNET + FRAME]


def test_the_header_is_made_anew_from_the_packet(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    a, b = wires

    def act(pkt: Packet) -> int:
        pkt.start += ETHER_LEN  # an L2 header taken away, a checksum left to the kernel
        pkt.csum_start = pkt.start + 20
        pkt.csum_offset = 16
        return to(b)(pkt)

    a.far.send(b"\xff" * VNET_LEN + FRAME)
    Drain(ScriptedDirector(counters, act), [a.port, b.port], never).run(a.port, 0)
    (written,) = b.received()
    # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
    assert struct.unpack_from("=BBHHHH", written) == (1, 0, 38, 0, 20, 16)
    assert written[VNET_LEN:] == FRAME[ETHER_LEN:]


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.STOLEN, Verdict.STOP])
def test_only_accept_writes(wires: tuple[Wire, Wire], counters: Counters, verdict: Verdict) -> None:
    a, b = wires

    def act(pkt: Packet) -> int:
        pkt.oif = b.netif
        return verdict

    a.send(FRAME)
    Drain(ScriptedDirector(counters, act), [a.port, b.port], never).run(a.port, 0)
    assert b.received() == []
    assert counters.snapshot() == {"RX_FRAMES": 1, "RX_BYTES": len(FRAME)}


@pytest.mark.parametrize(
    ("queue", "reason"),
    [(None, "drop.UNKNOWN"), (2, "drop.PORT_DOWN"), (-1, "drop.PORT_DOWN")],
    ids=["no oif", "no such queue", "negative queue"],
)
def test_nowhere_to_send_is_a_counted_drop(
    wires: tuple[Wire, Wire], counters: Counters, queue: int | None, reason: str
) -> None:
    a, b = wires

    def act(pkt: Packet) -> int:
        pkt.oif = None if queue is None else Netif(9, "lb9", 9, queue=queue)
        return Verdict.ACCEPT

    a.send(FRAME)
    director = ScriptedDirector(counters, act)
    Drain(director, [a.port, b.port], never).run(a.port, 0)
    assert counters.snapshot() == {"RX_FRAMES": 1, "RX_BYTES": len(FRAME), reason: 1}


def test_the_outbox_is_written_after_the_burst(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    a, b = wires
    nowhere = Netif(9, "lb9", 9)
    director = ScriptedDirector(counters, to(b))
    drain = Drain(director, [a.port, b.port], never)
    for netif in (b.netif, a.netif, nowhere):
        director.outbox.put(netif, PLAIN_VNET + b"mine" * 15)
    a.send(FRAME)
    drain.run(a.port, 0)
    assert b.received() == [PLAIN_VNET + FRAME, PLAIN_VNET + b"mine" * 15]
    assert a.received() == [PLAIN_VNET + b"mine" * 15]
    assert director.outbox.frames == []
    assert counters.dropped(DropReason.PORT_DOWN) == 1
    assert drain.flush() == 0


@pytest.mark.parametrize("budget", [1, 3])
def test_a_burst_ends_at_its_budget(
    wires: tuple[Wire, Wire], counters: Counters, budget: int
) -> None:
    a, _ = wires
    drain = Drain(ScriptedDirector(counters, drop), [a.port], never)
    a.send(*[FRAME] * 5)
    assert drain.run(a.port, 0, budget) == budget
    assert drain.run(a.port, 0) == 5 - budget
    assert drain.run(a.port, 0) == 0


def test_runts_and_drops_use_up_the_budget(wires: tuple[Wire, Wire], counters: Counters) -> None:
    a, _ = wires
    drain = Drain(ScriptedDirector(counters, drop), [a.port], never)
    for _ in range(BURST_FRAMES + 1):
        a.far.send(b"x")
    assert drain.run(a.port, 0) == BURST_FRAMES


def test_large_frames_end_a_burst_early(counters: Counters) -> None:
    wire = Wire(0, counters)
    size = 60000

    def act(pkt: Packet) -> int:
        wire.send(bytes(size))
        return drop(pkt)

    wire.send(bytes(size))
    frames = Drain(ScriptedDirector(counters, act), [wire.port], never).run(wire.port, 0)
    assert frames == -(-BURST_BYTES // size)
    wire.close()


def test_a_full_queue_drops_and_says_so(wires: tuple[Wire, Wire], counters: Counters) -> None:
    a, b = wires
    drain = Drain(ScriptedDirector(counters, to(b)), [a.port, b.port], never)
    for _ in range(4000):
        a.send(FRAME)
        drain.run(a.port, 0)
        if counters.dropped(DropReason.TX_BLOCKED):
            break
    assert counters.dropped(DropReason.TX_BLOCKED) == 1
    assert not b.port.lost
    b.received()
    a.send(FRAME)
    drain.run(a.port, 0)
    assert b.received() == [PLAIN_VNET + FRAME]


def test_writing_to_a_closed_port_is_port_down(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    a, b = wires
    b.port.close()
    a.send(FRAME)
    Drain(ScriptedDirector(counters, to(b)), [a.port, b.port], never).run(a.port, 0)
    assert b.port.write_frame(PLAIN_VNET + FRAME) is False
    assert counters.dropped(DropReason.PORT_DOWN) == 2
    assert b.port.error == errno.EBADF


def test_a_readable_port_is_drained_and_a_lost_one_reported(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    a, b = wires
    seen: list[Port] = []
    drain = Drain(ScriptedDirector(counters, to(b)), [a.port, b.port], seen.append)
    a.send(FRAME)
    drain.readable(a.port)
    assert (len(b.received()), seen) == (1, [])
    a.port.close()
    drain.readable(a.port)
    assert seen == [a.port]


def test_an_exception_of_the_director_gets_out(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    def act(pkt: Packet) -> int:
        raise ZeroDivisionError

    a, _ = wires
    a.send(FRAME)
    with pytest.raises(ZeroDivisionError):
        Drain(ScriptedDirector(counters, act), [a.port], never).run(a.port, 0)


# -- other workers


class Worker:
    """Worker ``index`` of two, on ports of its own; ``Worker.pair`` connects their mailboxes."""

    def __init__(self, index: int, read_fd: int, write_fds: list[int]) -> None:
        self.counters = Counters()
        self.wires = (Wire(0, self.counters), Wire(1, self.counters))
        self.director = ScriptedDirector(self.counters, to(self.wires[1]))
        self.director.peers = Peers(index, 2, self.counters)
        self.director.neighs.netifs = {(i, 0): wire.netif for i, wire in enumerate(self.wires)}
        self.mailbox = Mailbox(read_fd, write_fds, self.counters)
        self.slots = write_fds
        ports = [wire.port for wire in self.wires]
        self.drain = Drain(self.director, ports, never, self.mailbox)

    @classmethod
    def pair(cls) -> tuple[Worker, Worker]:
        pairs = [open_mailbox() for _ in range(2)]
        writers = [writer for _, writer in pairs]
        return (
            cls(0, pairs[0][0], [os.dup(writer) for writer in writers]),
            cls(1, pairs[1][0], writers),
        )

    def close(self) -> None:
        self.mailbox.close()
        for wire in self.wires:
            wire.close()


@pytest.fixture
def workers() -> Iterator[tuple[Worker, Worker]]:
    pair = Worker.pair()
    yield pair
    for worker in pair:
        worker.close()


def give(owner: int, verdict: Verdict = Verdict.STOLEN) -> Callable[[Packet], int]:
    def act(pkt: Packet) -> int:
        pkt.ether_type = pkt.be16(L3_OFFSET - 2)  # ingress' work
        pkt.owner = owner
        return verdict

    return act


def test_a_frame_is_handed_to_its_owner_who_forwards_it(workers: tuple[Worker, Worker]) -> None:
    reader, owner = workers
    reader.director.act = give(1)
    reader.wires[0].send(b"1" * 60, b"2" * 60)
    assert reader.drain.run(reader.wires[0].port, 1234) == 2
    assert owner.drain.take_mail(1235) == 2
    assert owner.director.seen == [(b"1" * 60, 1235), (b"2" * 60, 1235)]
    assert owner.wires[1].received() == [PLAIN_VNET + b"1" * 60, PLAIN_VNET + b"2" * 60]
    assert [wire.received() for wire in (*reader.wires, owner.wires[0])] == [[], [], []]
    assert reader.counters.snapshot() == {"RX_FRAMES": 2, "RX_BYTES": 120, "HANDED_OVER": 2}
    assert owner.counters.snapshot() == {"HANDED_IN": 2, "TX_FRAMES": 2, "TX_BYTES": 120}
    assert owner.drain.take_mail(1236) == 0


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.ACCEPT, Verdict.STOP])
def test_only_stolen_frames_are_handed_over(
    workers: tuple[Worker, Worker], verdict: Verdict
) -> None:
    reader, owner = workers
    reader.director.act = give(1, verdict)
    reader.wires[0].send(FRAME)
    reader.drain.run(reader.wires[0].port, 0)
    assert owner.drain.take_mail(0) == 0


def test_a_frame_without_an_owner_is_kept(workers: tuple[Worker, Worker]) -> None:
    reader, owner = workers
    reader.director.act = give(-1)
    reader.wires[0].send(FRAME)
    reader.drain.run(reader.wires[0].port, 0)
    assert owner.drain.take_mail(0) == 0
    assert reader.counters.snapshot() == {"RX_FRAMES": 1, "RX_BYTES": len(FRAME)}


def test_a_single_worker_has_nobody_to_hand_to(
    wires: tuple[Wire, Wire], counters: Counters
) -> None:
    a, _ = wires
    drain = Drain(ScriptedDirector(counters, give(0)), [a.port], never)
    a.send(FRAME)
    drain.run(a.port, 0)
    assert drain.take_mail(0) == 0
    assert counters.dropped(DropReason.UNKNOWN) == 1


def test_a_frame_is_handed_over_once(workers: tuple[Worker, Worker]) -> None:
    """Two workers that each take the other for the owner do not play ball with it."""
    reader, owner = workers
    reader.director.act = give(1)
    owner.director.act = give(0)
    reader.wires[0].send(FRAME)
    reader.drain.run(reader.wires[0].port, 0)
    assert owner.drain.take_mail(0) == 1
    assert reader.drain.take_mail(0) == 0
    assert owner.counters.snapshot() == {"HANDED_IN": 1, "drop.UNKNOWN": 1}


def test_a_question_and_its_answer_are_handed_on(workers: tuple[Worker, Worker]) -> None:
    """What workers ask each other about a packet (ipvs/persist.py) travels with it."""
    asker, home = workers

    def ask(pkt: Packet) -> int:
        if pkt.handed:
            assert pkt.chosen == 7
            return Verdict.DROP
        verdict = give(1)(pkt)
        pkt.handed, pkt.chosen = True, ASKED
        return verdict

    def answer(pkt: Packet) -> int:
        assert pkt.chosen == ASKED
        pkt.chosen = 7
        return give(0)(pkt)

    asker.director.act, home.director.act = ask, answer
    asker.wires[0].send(FRAME)
    asker.drain.run(asker.wires[0].port, 0)
    assert home.drain.take_mail(0) == 1
    assert asker.drain.take_mail(0) == 1
    assert home.counters.snapshot() == {"HANDED_IN": 1, "HANDED_OVER": 1}


def test_messages_go_out_with_the_burst_and_are_heard(workers: tuple[Worker, Worker]) -> None:
    teller, listener = workers
    peers = teller.director.peers
    assert peers is not None
    peers.put(1, b"hello")
    peers.put(1, b"again")
    assert teller.drain.flush() == 0  # frames written
    assert peers.waiting == []
    assert listener.drain.take_mail(77) == 2
    assert listener.director.heard == [(b"hello", 77), (b"again", 77)]
    assert listener.director.seen == []


def test_what_mail_leads_to_goes_out_after_it(workers: tuple[Worker, Worker]) -> None:
    teller, listener = workers

    def act(pkt: Packet) -> int:
        assert listener.director.peers is not None
        listener.director.peers.put(0, b"got it")
        listener.director.outbox.put(listener.wires[0].netif, PLAIN_VNET + b"mine" * 15)
        return drop(pkt)

    listener.director.act = act
    teller.director.act = give(1)
    teller.wires[0].send(FRAME)
    teller.drain.run(teller.wires[0].port, 0)
    listener.drain.mail()
    teller.drain.mail()
    assert listener.wires[0].received() == [PLAIN_VNET + b"mine" * 15]
    assert [message for message, _ in teller.director.heard] == [b"got it"]


def test_messages_that_nobody_can_take(wires: tuple[Wire, Wire], counters: Counters) -> None:
    director = ScriptedDirector(counters, drop)
    director.peers = Peers(0, 2, counters)
    director.peers.put(1, b"hello")
    Drain(director, [wires[0].port], never).flush()
    assert counters.snapshot() == {"drop.UNKNOWN": 1}


@pytest.mark.parametrize("budget", [1, 3])
def test_a_burst_of_mail_ends_at_its_budget(workers: tuple[Worker, Worker], budget: int) -> None:
    teller, listener = workers
    for _ in range(4):
        teller.mailbox.send_message(b"hello", 1)
    os.write(teller.slots[1], b"junk")
    assert listener.drain.take_mail(0, budget) == budget
    assert listener.drain.take_mail(0) == 5 - budget
    assert len(listener.director.heard) == 4
    assert listener.counters.snapshot() == {"drop.TRUNCATED": 1}


def test_large_frames_end_a_burst_of_mail_early(workers: tuple[Worker, Worker]) -> None:
    reader, owner = workers
    size = 60000
    reader.director.act = give(1)

    def act(pkt: Packet) -> int:
        reader.wires[0].send(bytes(size))
        reader.drain.run(reader.wires[0].port, 0)
        return drop(pkt)

    owner.director.act = act
    reader.wires[0].send(bytes(size))
    reader.drain.run(reader.wires[0].port, 0)
    assert owner.drain.take_mail(0) == -(-BURST_BYTES // size)


# -- errors of a descriptor


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("EAGAIN", DropReason.TX_BLOCKED),
        ("ENOBUFS", DropReason.TX_BLOCKED),
        ("ENOMEM", DropReason.TX_BLOCKED),
        ("EIO", DropReason.PORT_DOWN),
        ("EBADFD", DropReason.PORT_DOWN),
        ("EBADF", DropReason.PORT_DOWN),
        ("ENXIO", DropReason.PORT_DOWN),
        ("ENODEV", DropReason.PORT_DOWN),
        ("EINVAL", DropReason.TX_REFUSED),
        ("EMSGSIZE", DropReason.TX_REFUSED),
    ],
)
def test_why_a_write_failed(name: str, reason: DropReason) -> None:
    assert drop_reason(getattr(errno, name)) == reason
