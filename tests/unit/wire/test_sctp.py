"""The SCTP header: what is refused, what moves the state, what opens an association."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason
from tunlb.packet import L3_OFFSET, Packet
from tunlb.testing import sctp as s
from tunlb.wire import sctp

L4 = L3_OFFSET + 20


def loaded(body: bytes) -> Packet:
    pkt = Packet()
    pkt.l4 = L4
    pkt.end = L4 + len(body)
    pkt.mem[L4 : pkt.end] = body
    return pkt


def built(*chunks: bytes, **fields: int) -> bytes:
    return s.sctp(1, 2, *chunks, **fields).build(bytes(4), bytes(4))


def test_parse() -> None:
    pkt = loaded(built(s.init()))
    assert sctp.parse(pkt) == 0
    assert (pkt.sport, pkt.dport) == (1, 2)


@pytest.mark.parametrize("kept", range(16))
def test_too_short(kept: int) -> None:
    assert sctp.parse(loaded(built(s.init())[:kept])) == DropReason.L4_HEADER


@pytest.mark.parametrize("length", [0, 1, 3, 21, 0xFFFF])
def test_a_chunk_length_that_lies(length: int) -> None:
    pkt = loaded(built(s.chunk(1, bytes(16), length=length)))
    assert sctp.parse(pkt) == DropReason.L4_HEADER


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ((s.chunk(s.DATA),), s.DATA),
        ((s.chunk(s.COOKIE_ECHO, b"12345"), s.chunk(s.ABORT)), s.ABORT),
        ((s.chunk(s.COOKIE_ACK), s.chunk(s.ABORT)), s.ABORT),
        ((s.chunk(s.COOKIE_ACK), s.chunk(s.DATA), s.chunk(s.ABORT)), s.COOKIE_ACK),
        ((s.chunk(s.DATA), s.chunk(s.ABORT)), s.DATA),
        ((s.chunk(s.COOKIE_ECHO, b"1234"), b"\x06\0\0"), s.COOKIE_ECHO),
        ((s.chunk(255),), 255),
    ],
)
def test_event(chunks: tuple[bytes, ...], kind: int) -> None:
    assert sctp.event(loaded(built(*chunks))) == kind


@pytest.mark.parametrize(
    ("body", "opens"),
    [
        (built(s.init()), True),
        (built(s.init(params=b"\xc0\x00\x00\x05x")), True),
        (built(s.init(), vtag=1), False),
        (built(s.init(), s.chunk(s.DATA)), False),
        (built(s.init(kind=s.INIT_ACK)), False),
        (built(s.chunk(s.INIT, bytes(12))), False),
    ],
)
def test_is_init(body: bytes, opens: bool) -> None:
    assert sctp.is_init(loaded(body)) == opens


def test_seal() -> None:
    pkt = loaded(built(s.init(), checksum=0xDEADBEEF))
    pkt.csum_start = L4
    sctp.seal(pkt)
    assert bytes(pkt.mem[L4 : pkt.end]) == built(s.init())
    assert pkt.csum_start == 0


@pytest.mark.parametrize("kept", [8, 11])
def test_ports_of_a_quote_without_its_checksum(kept: int) -> None:
    body = built(s.init())[:kept]
    pkt = loaded(body)
    sctp.put_ports(pkt, L4, 0xABCD1234, 32, pkt.end)
    assert bytes(pkt.mem[L4 : pkt.end]) == b"\xab\xcd\x12\x34" + body[4:]
