"""TCP options: read within their bounds, and written as they are read."""

from __future__ import annotations

import itertools
import random

import pytest

from tunlb.packet import L3_OFFSET, Packet
from tunlb.wire import tcp_options
from tunlb.wire.tcp_options import DEFAULT_MSS, NO_WSCALE, TcpOptions

STAMPS = bytes.fromhex("080a0000000700000009")


def segment(options: bytes, doff: int | None = None) -> Packet:
    pkt = Packet()
    pkt.l4 = L3_OFFSET + 20
    pkt.end = pkt.l4 + 60
    pkt.mem[pkt.l4 : pkt.l4 + 60] = bytes(20) + options.ljust(40, b"\0")
    pkt.mem[pkt.l4 + 12] = (5 + (len(options) + 3) // 4 if doff is None else doff) << 4
    return pkt


def parsed(options: bytes) -> tuple[int, int, bool, bool, int, int]:
    found = TcpOptions()
    found.parse(segment(options))
    return (
        found.mss,
        found.wscale,
        bool(found.sack),
        bool(found.timestamps),
        found.tsval,
        found.tsecr,
    )


NOTHING = (DEFAULT_MSS, NO_WSCALE, False, False, 0, 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"", NOTHING),
        (b"\2\4\5\xb4", (1460, *NOTHING[1:])),
        (b"\1\1\4\2", (*NOTHING[:2], True, *NOTHING[3:])),
        (b"\1\3\3\x09", (DEFAULT_MSS, 9, *NOTHING[2:])),
        (b"\1\3\3\xff", (DEFAULT_MSS, 14, *NOTHING[2:])),
        (b"\1" + STAMPS, (*NOTHING[:3], True, 7, 9)),
        (b"\x1e\4ab\2\4\5\xb4", (1460, *NOTHING[1:])),  # one that we do not know is stepped over
        (b"\0\2\4\5\xb4", NOTHING),
        (b"\2", NOTHING),
        (b"\2\0\5\xb4", NOTHING),
        (b"\2\1\5\xb4", NOTHING),
        (b"\2\x30\5\xb4", NOTHING),
        (b"\2\3\5\1", NOTHING),
        (b"\x08\x0a\0\0", NOTHING),
    ],
)
def test_parse(options: bytes, expected: tuple[int, int, bool, bool, int, int]) -> None:
    assert parsed(options) == expected


@pytest.mark.parametrize(
    ("options", "at"),
    [
        (b"\1\1" + STAMPS, 4),
        (STAMPS, 2),
        (b"\1" + STAMPS, 3),
        (b"\2\4\5\xb4\4\2" + STAMPS, 8),
        (b"\0" + STAMPS, 0),
        (b"\1\1" + STAMPS[:6], 0),
        (b"\x08\x09" + bytes(7), 0),
        (b"", 0),
    ],
)
def test_find_timestamps(options: bytes, at: int) -> None:
    pkt = segment(options)
    assert tcp_options.find_timestamps(pkt) == (pkt.l4 + 20 + at if at else 0)


@pytest.mark.parametrize(
    ("mss", "wscale", "sack", "stamps"),
    list(itertools.product((0, 1460), (NO_WSCALE, 0, 14), (False, True), (False, True))),
)
def test_what_is_written_is_read(mss: int, wscale: int, sack: bool, stamps: bool) -> None:
    length = tcp_options.length_of(mss != 0, wscale != NO_WSCALE, sack, stamps)
    assert length % 4 == 0
    pkt = segment(bytes(length))
    tcp_options.write(pkt, mss, wscale, sack, stamps, 0xFFFFFFFF, 1)
    assert bytes(pkt.mem[pkt.l4 + 20 + length : pkt.l4 + 60]) == bytes(40 - length)
    found = TcpOptions()
    found.parse(pkt)
    assert found.mss == (mss or DEFAULT_MSS)
    assert (found.wscale, found.sack, found.timestamps) == (wscale, sack, stamps)
    assert (found.tsval, found.tsecr) == ((0xFFFFFFFF, 1) if stamps else (0, 0))


def test_any_bytes() -> None:
    """Nothing is read behind the header: poison there never shows."""
    chance = random.Random(1)
    found = TcpOptions()
    for _ in range(3000):
        size = 4 * chance.randrange(11)
        options = bytes(chance.choice((0, 1, 2, 3, 4, 8, 10, 255)) for _ in range(size))
        pkt = segment(options, 5 + size // 4)
        found.parse(pkt)
        one = (found.mss, found.wscale, found.sack, found.tsval, found.tsecr)
        at = tcp_options.find_timestamps(pkt)
        assert at == 0 or at + 8 <= pkt.l4 + 20 + size
        for i in range(pkt.l4 + 20 + size, pkt.l4 + 60):
            pkt.mem[i] = 8
        found.parse(pkt)
        assert one == (found.mss, found.wscale, found.sack, found.tsval, found.tsecr)
        assert tcp_options.find_timestamps(pkt) == at
