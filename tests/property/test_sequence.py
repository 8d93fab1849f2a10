"""Sequence numbers against a model: two ends of TCP, each with a count of its own, over a path that
loses, repeats and reorders. Each end must only ever hear what is true of the other's stream.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Net,
    Rig,
    at,
    balanced,
)
from tests.flow.talk import CPORT, proxy, sack
from tunlb.ipvs import sequence
from tunlb.ipvs.client_address import RESEND_MS
from tunlb.testing.checkers import check
from tunlb.testing.frames import Flow, vnet
from tunlb.testing.parser import Frame, Tcp

MASK = 0xFFFFFFFF
numbers = st.one_of(st.integers(0, MASK), st.sampled_from([0, 1, MASK, MASK - 5, 0x7FFFFFFF]))


class End:
    """One end: a stream to send, what has been heard of it, and what came of the other's.

    Positions count from the first byte; ``isn`` is this end's own, ``theirs`` what it was told.
    """

    def __init__(self, data: bytes, isn: int) -> None:
        self.data = data
        self.isn = isn
        self.theirs = 0
        self.una = 0
        self.sent = 0
        self.got: dict[int, int] = {}
        self.other = b""

    @property
    def next(self) -> int:
        """The first position that has not come."""
        position = 0
        while position in self.got:
            position += 1
        return position

    def blocks(self) -> list[tuple[int, int]]:
        """What came beyond it, as runs."""
        runs: list[tuple[int, int]] = []
        for position in sorted(p for p in self.got if p > self.next):
            if runs and runs[-1][1] == position:
                runs[-1] = (runs[-1][0], position + 1)
            else:
                runs.append((position, position + 1))
        return runs[:3]

    def hear(self, frame: Frame, real: set[int]) -> None:
        """Take a segment; ``real`` is what the other end truly has of our stream."""
        tcp = frame.find(Tcp)
        assert isinstance(tcp, Tcp)
        ack = _near(tcp.ack - self.isn - 1)
        assert 0 <= ack <= self.sent
        assert set(range(ack)) <= real
        self.una = max(self.una, ack)
        for left, right in _sacked(tcp.options):
            run = range(_near(left - self.isn - 1), _near(right - self.isn - 1))
            assert len(run) > 0
            # What lies before the stream is a D-SACK of what is no part of it.
            assert {p for p in run if p >= 0} <= real
        first = _near(tcp.seq - self.theirs - 1)
        for position, byte in enumerate(frame.payload, first):
            assert position >= 0
            assert self.other[position] == byte
            self.got[position] = byte


def _near(number: int) -> int:
    """A difference of two numbers, as the smaller one of both ways round."""
    return (number + 0x80000000 & MASK) - 0x80000000


def _sacked(options: bytes) -> list[tuple[int, int]]:
    at_ = options.find(b"\1\1\5")
    if at_ < 0:
        return []
    size = options[at_ + 3] - 2
    edges = struct.unpack(f"!{size // 4}I", options[at_ + 4 : at_ + 4 + size])
    return list(zip(edges[::2], edges[1::2], strict=True))


class Path:
    """Both ends, the director between them, and frames under way on its two sides."""

    def __init__(self, net: Net, how: str, isns: tuple[int, int], shift: int) -> None:
        self.net = net
        self.rig = Rig(balanced(net, client_ip=how))
        self.header = proxy(net, how) if how != "toa" else b""
        self.client = End(b"client says: " * 12, isns[0])
        self.server = End(b"server answers. " * 9, isns[1])
        self.server.other = self.header + self.client.data
        self.client.other = self.server.data
        self.lport = 0
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.shake(shift)

    def shake(self, shift: int) -> None:
        client, server = self.client, self.server
        [syn] = self.pass_up(self.frame_up("S", client.isn, 0, b""))
        assert syn.seq == client.isn
        self.lport = syn.sport
        server.theirs = syn.seq
        if shift:
            conns = self.rig.director.ipvs.conns
            [row] = conns.rows()
            sequence.shift(conns, row, shift)
        frame = self.frame_down("SA", server.isn, server.theirs + 1, b"")
        [answer] = [tcp for tcp, _ in self.pass_down(frame)]
        assert answer.ack == (client.isn + 1) & MASK
        client.theirs = answer.seq
        assert client.theirs == (server.isn + shift) & MASK

    def frame_up(
        self, flags: str, seq: int, ack: int, payload: bytes, options: bytes = b""
    ) -> bytes:
        flow = Flow(
            at(self.net.remote, CPORT),
            at(self.net.vip, 80),
            client_mac=ROUTER_MAC,
            server_mac=WAN_MAC,
        )
        return vnet(flow.segment(flags, payload, seq=seq, ack=ack, options=options))

    def frame_down(
        self, flags: str, seq: int, ack: int, payload: bytes, options: bytes = b""
    ) -> bytes:
        flow = Flow(
            at(self.net.laddr, self.lport),
            at(self.net.dest, 8080),
            client_mac=LAN_MAC,
            server_mac=DEST_MAC,
        )
        return vnet(flow.segment(flags, payload, reply=True, seq=seq, ack=ack, options=options))

    def pass_up(self, frame: bytes) -> list[Tcp]:
        """Through the director; frames for the dest wait on their way to it."""
        found = []
        for sent in self.rig.receive("wan", frame)[1]:
            tcp = check(sent.frame).find(Tcp)
            assert isinstance(tcp, Tcp)
            assert sent.port == "lan"
            found.append(tcp)
            if "S" not in tcp.flags:
                self.up.append(sent.frame)
        return found

    def pass_down(self, frame: bytes) -> list[tuple[Tcp, Frame]]:
        found = []
        for sent in self.rig.receive("lan", frame)[1]:
            seen = check(sent.frame)
            tcp = seen.find(Tcp)
            assert isinstance(tcp, Tcp)
            if sent.port == "lan":  # a header that is sent again
                self.up.append(sent.frame)
                continue
            found.append((tcp, seen))
            if "S" not in tcp.flags:
                self.down.append(sent.frame)
        return found

    def say_up(self, start: int, size: int) -> None:
        """The client sends ``size`` bytes from ``start`` on, with what it has heard."""
        end = self.client
        payload = end.data[start : start + size]
        end.sent = max(end.sent, start + len(payload))
        ack = end.theirs + 1 + end.next
        blocks = sack(*((end.theirs + 1 + a, end.theirs + 1 + b) for a, b in end.blocks()))
        options = blocks if end.blocks() else b""
        self.pass_up(self.frame_up("A", end.isn + 1 + start, ack, payload, options))

    def say_down(self, start: int, size: int) -> None:
        end = self.server
        payload = end.data[start : start + size]
        end.sent = max(end.sent, start + len(payload))
        ack = end.theirs + 1 + end.next
        blocks = sack(*((end.theirs + 1 + a, end.theirs + 1 + b) for a, b in end.blocks()))
        options = blocks if end.blocks() else b""
        self.pass_down(self.frame_down("A", end.isn + 1 + start, ack, payload, options))

    def deliver_up(self, index: int) -> None:
        frame = check(self.up.pop(index % len(self.up)))
        # The dest's own stream, as the client has it.
        self.server.hear(frame, set(self.client.got))

    def deliver_down(self, index: int) -> None:
        n = len(self.header)
        real = {position - n for position in self.server.got if position >= n}
        # Acknowledged is the client's byte only when the header before it has come as well.
        self.client.hear(check(self.down.pop(index % len(self.down))), real)


step = st.tuples(st.sampled_from("cCsSuUdDlLw"), st.integers(0, 200), st.integers(0, 60))


@settings(max_examples=60, deadline=None)
@given(
    net=st.sampled_from([V4, V6]),
    how=st.sampled_from(["proxy-v1", "proxy-v2", "toa"]),
    isns=st.tuples(numbers, numbers),
    shift=st.one_of(st.just(0), numbers),
    steps=st.lists(step, max_size=40),
)
def test_both_ends_hear_the_truth(
    net: Net,
    how: str,
    isns: tuple[int, int],
    shift: int,
    steps: list[tuple[str, int, int]],
) -> None:
    path = Path(net, how, isns, shift)
    path.say_up(0, 0)
    for what, where, size in steps:
        client, server = path.client, path.server
        if what in "cC":  # new bytes, or some again; what is sent grows without gaps
            path.say_up(min(where, client.sent) if what == "C" else client.sent, size)
        elif what in "sS":
            path.say_down(min(where, server.sent) if what == "S" else server.sent, size)
        elif what in "uUl" and path.up:
            if what == "U":
                path.up.append(path.up[where % len(path.up)])  # twice
            if what == "l":
                path.up.pop(where % len(path.up))  # lost
            elif path.up:
                path.deliver_up(where)
        elif what in "dDL" and path.down:
            if what == "D":
                path.down.append(path.down[where % len(path.down)])
            if what == "L":
                path.down.pop(where % len(path.down))
            elif path.down:
                path.deliver_down(where)
        elif what == "w":
            path.rig.now += size * 10
    finish(path)


def finish(path: Path) -> None:
    """What both ends repeat until it has arrived does arrive, whatever was lost before."""
    client, server = path.client, path.server
    for _ in range(40):
        path.rig.now += RESEND_MS
        path.say_up(client.una, 50)
        path.say_down(server.una, 50)
        while path.up:
            path.deliver_up(0)
        path.say_down(server.una, 0)
        while path.down:
            path.deliver_down(0)
        if client.una == len(client.data) and server.una == len(server.data):
            break
    path.say_up(client.una, 0)
    assert bytes(server.got[p] for p in range(server.next)) == path.header + client.data
    assert bytes(client.got[p] for p in range(client.next)) == server.data


@pytest.mark.parametrize("position", [0, 1, 27, 28, 29, 1000])
@pytest.mark.parametrize("isn", [0, 1000, MASK, MASK - 1, 0x7FFFFFFF])
def test_what_one_direction_does_the_other_undoes(isn: int, position: int) -> None:
    path = Path(V4, "proxy-v2", (isn, 77), 0)
    conns = path.rig.director.ipvs.conns
    [row] = conns.rows()
    path.say_up(0, 0)
    number = (isn + 1 + position) & MASK
    there = sequence.to_dest(conns, row, number)
    assert there == (number + 28) & MASK
    assert sequence.to_client(conns, row, there) == number
