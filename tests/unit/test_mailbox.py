"""What goes into a mailbox comes out at another worker as if a port had read it there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunlb.counters import Counters
from tunlb.hook import Hook, Point, Verdict
from tunlb.mailbox import (
    BASE,
    FORMAT,
    FRAME,
    HEADER_LEN,
    MAILBOX_BYTES,
    MESSAGE,
    MESSAGE_MAX,
    NOTHING,
    REFUSED,
    SO_SNDBUFFORCE,
    Mailbox,
    open_mailbox,
)
from tunlb.netif import Netif
from tunlb.outbox import PLAIN_VNET
from tunlb.packet import (
    ASKED,
    BUFFER_LEN,
    ETHER_LEN,
    L3_OFFSET,
    NOT_ASKED,
    VNET_LEN,
    Packet,
)
from tunlb.testing.flow import Rig, Sent
from tunlb.testing.frames import Flow, vnet
from tunlb.wire import vnet as virtio

TAP = Netif(0, "lb0", 0x02AABBCCDDEE)
TUN = Netif(1, "lb1", 0, tun=True)
VLAN = Netif(2, "lb0.7", 0x02AABBCCDDEE, vid=7, queue=0)
HIGH = Netif(3, "lb0.4094", 0x02AABBCCDDEE, vid=4094, queue=0)
NETIFS = {(netif.queue, netif.vid): netif for netif in (TAP, TUN, VLAN, HIGH)}
HERE = bytes(range(60))


class Post:
    """Worker 0 and worker 1, each with a mailbox, a packet and counters; 0 sends and 1 reads."""

    def __init__(self) -> None:
        pairs = [open_mailbox() for _ in range(2)]
        self.counters = [Counters() for _ in pairs]
        self.boxes = [
            Mailbox(reader, [os.dup(writer) for _, writer in pairs], counters)
            for (reader, _), counters in zip(pairs, self.counters, strict=True)
        ]
        # As the wrong hands would use it.
        self.slot = socket.socket(fileno=pairs[1][1])
        os.close(pairs[0][1])
        self.packets = [Packet() for _ in pairs]

    def send(self, frame: bytes, netif: Netif = TAP, to: int = 1) -> bool:
        pkt = self.packets[0]
        pkt.load(PLAIN_VNET + frame, netif)
        pkt.ether_type = pkt.be16(L3_OFFSET - 2)
        return bool(self.boxes[0].send_packet(pkt, to))

    def read(self) -> int:
        return int(self.boxes[1].read(self.packets[1], NETIFS))

    def snapshots(self) -> list[dict[str, int]]:
        return [counters.snapshot() for counters in self.counters]

    def close(self) -> None:
        for box in self.boxes:
            box.close()
        self.slot.close()


@pytest.fixture
def post() -> Iterator[Post]:
    with contextlib.closing(Post()) as made:
        yield made


# -- frames


@pytest.mark.parametrize("netif", [TAP, VLAN, HIGH, TUN], ids=lambda netif: netif.name)
def test_a_frame_arrives_as_a_port_would_read_it(post: Post, netif: Netif) -> None:
    pkt = post.packets[1]
    pkt.load(PLAIN_VNET + HERE, TAP)
    pkt.oif, pkt.sport, pkt.owner, pkt.err_type = TAP, 7, 1, 3
    assert post.send(HERE, netif)
    assert post.read() == FRAME
    start = L3_OFFSET - (0 if netif.tun else ETHER_LEN)
    assert (pkt.start, pkt.end, pkt.frame()) == (start, start + len(HERE), HERE)
    assert pkt.mem[start - VNET_LEN : start] == PLAIN_VNET
    assert pkt.iif is netif
    # nothing is left of the frame before, and everybody can see where it came from
    assert (id(pkt.oif), pkt.sport, pkt.owner, pkt.err_type) == (id(None), 0, -1, -1)
    assert pkt.handed
    assert post.snapshots() == [{"HANDED_OVER": 1}, {"HANDED_IN": 1}]


@pytest.mark.parametrize("chosen", [NOT_ASKED, ASKED, 0, 1, 255, 256, 65533])
def test_what_workers_ask_each_other_arrives(post: Post, chosen: int) -> None:
    """Only with a packet that says so: in any other one the field is what was left there."""
    pkt = post.packets[0]
    pkt.load(PLAIN_VNET + HERE, TAP)
    pkt.chosen = chosen
    assert post.boxes[0].send_packet(pkt, 1)
    pkt.handed = True
    assert post.boxes[0].send_packet(pkt, 1)
    for expected in (NOT_ASKED, chosen):
        assert post.read() == FRAME
        assert post.packets[1].chosen == expected


def test_what_a_port_reads_next_was_not_handed_over(post: Post) -> None:
    post.send(HERE)
    post.read()
    pkt = post.packets[1]
    pkt.reset(0, 0)
    assert not pkt.handed


def test_one_mailbox_holds_many_and_keeps_their_order(post: Post) -> None:
    with open("/proc/sys/net/unix/max_dgram_qlen") as limit:
        count = int(limit.read()) + 20  # a pair is exempt from it
    for i in range(count):
        assert post.send(i.to_bytes(2, "big") + bytes(20))
    seen = []
    while post.read() == FRAME:
        seen.append(int.from_bytes(post.packets[1].frame()[:2], "big"))
    assert seen == list(range(count))


@pytest.mark.parametrize("netif", [TAP, TUN], ids=lambda netif: netif.name)
def test_the_largest_frame_fits(post: Post, netif: Netif) -> None:
    largest = os.urandom(65535 if netif.tun else 65535 + ETHER_LEN)
    assert post.send(largest, netif)
    assert post.read() == FRAME
    assert post.packets[1].frame() == largest


@pytest.mark.parametrize("netif", [TAP, TUN], ids=lambda netif: netif.name)
def test_the_virtio_header_is_made_anew_from_the_packet(post: Post, netif: Netif) -> None:
    pkt = post.packets[0]
    pkt.load(b"\xff" * VNET_LEN + HERE, netif)  # what was read says something else by now
    pkt.proto, pkt.l4 = 6, L3_OFFSET + 20
    pkt.csum_start, pkt.csum_offset = pkt.l4, 16
    pkt.gso_type, pkt.gso_size = 1, 20
    pkt.mem[pkt.l4 + 12] = 5 << 4
    assert post.boxes[0].send_packet(pkt, 1)
    assert post.read() == FRAME
    read = post.packets[1]
    header = struct.unpack_from("=BBHHHH", read.mem, read.start - VNET_LEN)
    l4 = pkt.l4 - pkt.start
    assert header == (1, 1, l4 + 20, 20, l4, 16)
    assert virtio.parse(read) == 0
    assert (read.csum_start, read.csum_offset, read.gso_size) == (L3_OFFSET + 20, 16, 20)


def test_nothing_waits(post: Post) -> None:
    assert post.read() == NOTHING
    assert post.snapshots() == [{}, {}]


@pytest.mark.parametrize("to", [-1, 2])
def test_a_worker_that_is_none(post: Post, to: int) -> None:
    assert not post.send(HERE, to=to)
    assert not post.boxes[0].send_message(b"hello", to)
    assert post.snapshots() == [{"drop.UNKNOWN": 2}, {}]


def test_a_frame_that_is_not_where_it_was_read_to(post: Post) -> None:
    pkt = post.packets[0]
    pkt.load(PLAIN_VNET + HERE, TAP)
    pkt.start += ETHER_LEN
    assert not post.boxes[0].send_packet(pkt, 1)
    assert post.read() == NOTHING
    assert post.snapshots() == [{"drop.UNKNOWN": 1}, {}]


# -- full, or nobody there


@pytest.mark.parametrize("length", [60, 65535], ids=["small frames", "large frames"])
def test_a_full_mailbox_drops_and_says_so(post: Post, length: int) -> None:
    frame = bytes(length)
    sent = 0
    while post.send(frame):
        sent += 1
        assert sent * length <= 2 * MAILBOX_BYTES, "there is no bound"
    assert not post.boxes[0].send_message(b"hello", 1)
    assert post.snapshots()[0] == {"HANDED_OVER": sent, "drop.HANDOVER_FULL": 2}
    for _ in range(sent):
        assert post.read() == FRAME
    assert post.read() == NOTHING
    assert post.send(frame)


def test_the_bound_is_one_for_all_senders(post: Post) -> None:
    while post.send(HERE):
        pass
    assert not post.boxes[1].send_message(b"hello", 1)
    assert post.boxes[1].send_message(b"hello", 0)


def test_nobody_reads_it_any_more(post: Post) -> None:
    post.boxes[1].close()
    assert post.boxes[1].fd == -1
    assert not post.send(HERE)
    assert not post.boxes[0].send_message(b"hello", 1)
    assert post.snapshots()[0] == {"drop.HANDOVER_FULL": 2}
    assert post.read() == NOTHING


def test_what_was_sent_outlives_its_sender(post: Post) -> None:
    post.send(HERE)
    post.boxes[0].close()
    assert post.read() == FRAME


def test_nobody_can_make_the_others_wait(post: Post) -> None:
    """Whether a socket blocks belongs to all who hold it."""
    for fd in (post.slot.fileno(), post.boxes[1].fd):
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    assert post.read() == NOTHING
    while post.send(HERE):
        pass
    assert not post.boxes[0].send_message(b"hello", 1)


# -- messages


@pytest.mark.parametrize("message", [b"", b"hello", bytes(MESSAGE_MAX)], ids=len)
def test_a_message_arrives_whole(post: Post, message: bytes) -> None:
    assert post.boxes[0].send_message(message, 1)
    assert post.read() == MESSAGE
    assert post.packets[1].frame() == message
    assert post.snapshots() == [{}, {}]


def test_a_message_that_would_not_fit(post: Post) -> None:
    assert not post.boxes[0].send_message(bytes(MESSAGE_MAX + 1), 1)
    assert post.snapshots() == [{"drop.UNKNOWN": 1}, {}]


# -- what another worker may send once it is in wrong hands


def datagram(
    kind: int, queue: int = 0, vid: int = 0, form: int = FORMAT, body: bytes = b""
) -> bytes:
    return struct.pack("!BBHHxx", kind, form, queue, vid) + body


@pytest.mark.parametrize(
    ("sent", "result", "counters"),
    [
        (b"", REFUSED, {"drop.TRUNCATED": 1}),
        (datagram(FRAME)[:-1], REFUSED, {"drop.TRUNCATED": 1}),
        (datagram(FRAME, form=FORMAT + 1, body=bytes(99)), REFUSED, {"drop.TRUNCATED": 1}),
        (datagram(NOTHING, body=bytes(99)), REFUSED, {"drop.TRUNCATED": 1}),
        (datagram(255, body=bytes(99)), REFUSED, {"drop.TRUNCATED": 1}),
        (datagram(FRAME, queue=9, body=bytes(99)), REFUSED, {"drop.TRUNCATED": 1}),
        (datagram(FRAME, queue=0xFFFF, body=bytes(99)), REFUSED, {"drop.TRUNCATED": 1}),
        (datagram(FRAME, vid=8, body=bytes(99)), REFUSED, {"drop.VLAN_UNKNOWN": 1}),
        (datagram(FRAME), FRAME, {"HANDED_IN": 1}),
        (datagram(MESSAGE), MESSAGE, {}),
        (datagram(MESSAGE, body=bytes(MESSAGE_MAX + 1)), MESSAGE, {}),
        (datagram(FRAME, body=bytes(70000)), FRAME, {"HANDED_IN": 1}),
    ],
    ids=[
        "nothing at all",
        "short header",
        "another format",
        "kind 0",
        "unknown kind",
        "unknown port",
        "no port",
        "unknown VLAN",
        "a header only",
        "an empty message",
        "a message too long",
        "a frame too long",
    ],
)
def test_what_makes_no_sense(
    post: Post, sent: bytes, result: int, counters: dict[str, int]
) -> None:
    post.slot.send(sent)
    assert post.read() == result
    assert post.counters[1].snapshot() == counters
    assert post.packets[1].end <= BUFFER_LEN
    assert post.read() == NOTHING


@pytest.mark.parametrize(
    ("netif", "length"),
    [(TAP, 0), (TAP, VNET_LEN), (TUN, 0), (TUN, VNET_LEN), (TUN, ETHER_LEN + VNET_LEN)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_frame_that_ends_before_it_starts(post: Post, netif: Netif, length: int) -> None:
    """Ingress refuses what ends before it starts; what was there before is not taken for it."""
    post.slot.send(datagram(FRAME, netif.queue, body=bytes(length)))
    assert post.read() == FRAME
    pkt = post.packets[1]
    assert pkt.end == BASE + HEADER_LEN + length
    assert pkt.end <= pkt.start


# -- a frame is treated by its owner as it would have been by the worker that read it

CONFIG = "".join(
    json.dumps(line) + "\n"
    for line in (
        {"kind": "tunlb", "version": 1, "workers": 1, "conn_max": 1024},
        {"kind": "port", "name": "wan", "addresses": ["10.9.1.254/24"]}
        | {"vlans": [{"id": 7, "addresses": ["10.9.7.254/24"]}]},
        {"kind": "port", "name": "up", "type": "tun", "addresses": ["10.9.3.254/24"]},
        {"kind": "port", "name": "lan", "addresses": ["10.9.2.254/24"]},
        {"kind": "neigh", "port": "lan", "addr": "10.9.2.2", "mac": "02:00:00:00:02:02"},
        {"kind": "service", "name": "web", "proto": "tcp", "vaddr": "10.9.1.100", "vport": 80}
        | {"fwdmode": "nat", "scheduler": "rr"},
        {"kind": "dest", "service": "web", "daddr": "10.9.2.2", "dport": 8080},
    )
)


class GiveAway(Hook):
    """Takes each flow for worker 1's."""

    point = Point.PRE_ROUTING
    priority = 0

    def run(self, pkt: Packet, now: int) -> int:
        pkt.owner = 1
        return Verdict.STOLEN


@pytest.fixture(scope="module")
def giver() -> Rig:
    return Rig(CONFIG, hooks=[GiveAway()])


def fed(rig: Rig, post: Post) -> tuple[Verdict, list[Sent]]:
    """What the rig makes of the next datagram."""
    pkt = rig.director.packet
    netifs = {(netif.queue, netif.vid): netif for netif in rig.director.netifs}
    assert post.boxes[1].read(pkt, netifs) == FRAME
    verdict = Verdict(rig.director.receive(pkt, rig.now))
    sent = []
    if verdict == Verdict.ACCEPT:
        virtio.emit(pkt)
        assert pkt.oif is not None
        sent.append(Sent(pkt.oif.name, bytes(pkt.mem[pkt.start - VNET_LEN : pkt.end])))
    return verdict, sent + rig.outbox()


@pytest.mark.parametrize("offload", [{}, {"needs_csum": True}], ids=["full", "partial"])
@pytest.mark.parametrize(
    ("port", "vlan"),
    [("wan", None), ("wan", 7), ("wan", 0), ("up", None)],
    ids=["tap", "vlan", "priority tag", "tun"],
)
@pytest.mark.parametrize("vip", ["10.9.1.100:80", "10.9.1.100:81"], ids=["service", "refused"])
def test_the_owner_does_as_the_reader_would_have(
    post: Post, giver: Rig, port: str, vlan: int | None, vip: str, offload
) -> None:
    mac = giver.netif("wan").mac_bytes
    flow = Flow("10.9.9.9:40000", vip, server_mac=mac, vlan=vlan, tun=port == "up")
    frame = vnet(flow.syn(), tun=port == "up", **offload)
    direct, owner = Rig(CONFIG), Rig(CONFIG)
    expected = direct.receive(port, frame)
    assert giver.receive(port, frame) == (Verdict.STOLEN, [])
    assert post.boxes[0].send_packet(giver.director.packet, 1)
    assert fed(owner, post) == expected
    assert owner.counters() == direct.counters()
    assert (expected[0] == Verdict.ACCEPT) == vip.endswith(":80")


@given(
    kind=st.sampled_from([FRAME, MESSAGE, 0, 7]),
    queue=st.integers(0, 3),
    vid=st.sampled_from([0, 7, 8]),
    body=st.binary(max_size=200),
    cut=st.integers(0, 210),
)
def test_no_datagram_raises(kind: int, queue: int, vid: int, body: bytes, cut: int) -> None:
    rig = Rig(CONFIG)
    netifs = {(netif.queue, netif.vid): netif for netif in rig.director.netifs}
    pkt = rig.director.packet
    with contextlib.closing(Post()) as post:
        post.slot.send(datagram(kind, queue, vid, body=body)[:cut])
        found = post.boxes[1].read(pkt, netifs)
        assert found != NOTHING
        if found == FRAME:
            assert rig.director.receive(pkt, rig.now) in tuple(Verdict)


# -- opening


def test_a_mailbox_stays_in_its_process_and_never_blocks() -> None:
    for fd in open_mailbox():
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)
        os.close(fd)


def test_a_mailbox_holds_what_it_may(post: Post) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as like:
        try:
            like.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, MAILBOX_BYTES)
        except PermissionError:
            like.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAILBOX_BYTES)
        expected = like.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert post.slot.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == expected
