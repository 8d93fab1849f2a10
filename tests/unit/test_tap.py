"""Ports and bursts, over socket pairs: like a TAP they keep frames apart and never block."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
import pytun

from tunlb.counters import Counters, DropReason
from tunlb.director import Director
from tunlb.hook import Verdict
from tunlb.netif import Netif
from tunlb.outbox import PLAIN_VNET, Outbox
from tunlb.packet import ETHER_LEN, L3_OFFSET, VNET_LEN, Packet
from tunlb.tap import (
    BURST_BYTES,
    BURST_FRAMES,
    DeviceError,
    Drain,
    Port,
    drop_reason,
    open_device,
)

FRAME = bytes(range(60))


class ScriptedDirector(Director):
    """Does with each frame what the test says; keeps what it saw."""

    def __init__(self, counters: Counters, act: Callable[[Packet], int]) -> None:
        # The real one's parts are not needed: drain only knows these three.
        self.packet = Packet()
        self.outbox = Outbox(counters)
        self.counters = counters
        self.act = act
        self.seen: list[tuple[bytes, int]] = []

    def receive(self, pkt: Packet, now: int) -> int:
        self.seen.append((pkt.frame(), now))
        return self.act(pkt)


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


def refuse(monkeypatch: pytest.MonkeyPatch, where: object, name: str, err: int) -> None:
    def raising(*_args: object, **_kwargs: object) -> None:
        raise OSError(err, os.strerror(err))

    monkeypatch.setattr(where, name, raising)


@pytest.mark.parametrize(
    ("err", "message", "hint"),
    [
        (errno.ENOENT, "/dev/net/tun is missing", "mknod /dev/net/tun c 10 200"),
        (errno.EACCES, "no permission to open /dev/net/tun", "--device /dev/net/tun"),
        (errno.EPERM, "no permission to open /dev/net/tun", "--device /dev/net/tun"),
        (errno.ENXIO, "no TUN/TAP driver", "modprobe tun"),
        (errno.EMFILE, "cannot open /dev/net/tun: Too many open files", ""),
    ],
    ids=["missing", "permission", "device cgroup", "no driver", "any other"],
)
def test_what_is_said_about_the_node(
    monkeypatch: pytest.MonkeyPatch, err: int, message: str, hint: str
) -> None:
    refuse(monkeypatch, os, "open", err)
    with pytest.raises(DeviceError) as caught:
        open_device("lb0")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "tun", "queues", "err", "message", "hint"),
    [
        ("lb0", False, False, errno.EPERM, "no permission", "ip tuntap add dev lb0 mode tap user "),
        ("lb0", True, True, errno.EPERM, "no permission", "dev lb0 mode tun multi_queue user "),
        ("lb0", False, False, errno.EBUSY, "in use by another process", "ip -d link show lb0"),
        ("lo", True, False, errno.EINVAL, "not a tun with one queue", "ip -d link show lo"),
        ("a/b", False, False, errno.EINVAL, "cannot create the tap device a/b: Invalid", ""),
    ],
    ids=["permission", "permission, tun", "busy", "taken", "bad name"],
)
def test_what_is_said_about_the_device(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tun: bool,
    queues: bool,
    err: int,
    message: str,
    hint: str,
) -> None:
    refuse(monkeypatch, pytun, "TunTapDevice", err)
    with pytest.raises(DeviceError) as caught:
        open_device(name, tun=tun, multi_queue=queues, node=os.devnull)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert str(caught.value).startswith(caught.value.message)


def test_a_name_that_is_too_long_never_reaches_the_kernel() -> None:
    with pytest.raises(DeviceError, match=r"'a-name-of-16-chr' is too long .at most 15"):
        open_device("a-name-of-16-chr", node=os.devnull)


@pytest.mark.parametrize(
    ("offload", "known", "accepted"),
    [
        (True, 0x6F, ("csum", "tso4", "tso6", "tso_ecn", "uso4", "uso6")),
        (True, 0x0F, ("csum", "tso4", "tso6", "tso_ecn")),
        (True, 0x01, ("csum",)),
        (True, 0, ()),
        (False, 0x6F, ()),
    ],
    ids=["all", "a kernel before 6.2", "checksums only", "none", "not wanted"],
)
def test_offloads_are_probed_in_steps(
    monkeypatch: pytest.MonkeyPatch, offload: bool, known: int, accepted: tuple[str, ...]
) -> None:
    calls: list[tuple[int, object]] = []

    def ioctl(_fd: int, request: int, argument: object) -> None:
        calls.append((request, argument))
        if isinstance(argument, int) and argument & ~known:
            raise OSError(errno.EINVAL, "unknown bit")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(
        pytun, "TunTapDevice", lambda **_: os.fdopen(os.open(os.devnull, os.O_RDWR))
    )
    fd, offloads = open_device("lb0", offload=offload, node=os.devnull)
    assert offloads == accepted
    assert calls[0] == (0x400454D8, struct.pack("i", VNET_LEN))
    assert not os.get_blocking(fd)
    os.close(fd)
