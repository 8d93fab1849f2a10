"""Layer (c) of the loop protection: what we wrote comes back with a TTL that is one lower."""

from __future__ import annotations

import pytest

from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.pipeline.guard import WINDOW_MS, LoopGuard
from tunlb.testing import frames as f
from tunlb.wire import ipv4, ipv6

TUN = Netif(0, "tun0", 0, tun=True)
NOW = 1_000_000


def load(packet: bytes) -> Packet:
    pkt = Packet()
    pkt.load(f.vnet(packet), TUN)
    assert (ipv6 if packet[0] >> 4 == 6 else ipv4).parse(pkt) == 0
    return pkt


def v4(
    ttl: int = 63, *, ident: int = 7, seq: int = 1, data: bytes = b"x", saddr: str = "10.0.0.1"
) -> bytes:
    return f.ipv4(saddr, "10.0.0.11", f.tcp(1, 2, data, seq=seq), ttl=ttl, ident=ident)


def v6(ttl: int = 63, *, seq: int = 1, daddr: str = "fd00::11") -> bytes:
    return f.ipv6("fd00::1", daddr, f.tcp(1, 2, b"x", seq=seq), ttl=ttl)


@pytest.mark.parametrize(
    ("wrote", "read", "expected"),
    [
        (v4(), v4(62), True),
        (v6(), v6(62), True),
        (v4(), v4(63), False),
        (v4(), v4(64), False),
        (v4(), v4(61), False),
        (v4(), v4(62, ident=8), False),
        (v4(), v4(62, seq=2), False),
        (v4(), v4(62, data=b"xy"), False),
        (v4(), v4(62, saddr="10.0.0.2"), False),
        (v6(), v6(62, seq=2), False),
        (v6(), v6(62, daddr="fd00::12"), False),
        (
            f.ipv4("10.0.0.1", "10.0.0.2", b"abc", ttl=2),
            f.ipv4("10.0.0.1", "10.0.0.2", b"abc", ttl=1),
            True,
        ),
        (v4(1), v4(255), False),
    ],
    ids=[
        *(
            "one hop more",
            "v6",
            "a retransmission",
            "from the sender again",
            "two hops",
            "id",
            "seq",
        ),
        *("length", "saddr", "v6 seq", "v6 daddr", "shorter than a header", "no wrap of the TTL"),
    ],
)
def test_what_counts_as_seen(wrote: bytes, read: bytes, expected: bool) -> None:
    guard = LoopGuard()
    guard.wrote(load(wrote), NOW)
    assert guard.seen(load(read), NOW + 1) is expected


@pytest.mark.parametrize(
    ("later", "expected"), [(0, True), (WINDOW_MS, True), (WINDOW_MS + 1, False)]
)
def test_the_window(later: int, expected: bool) -> None:
    guard = LoopGuard()
    guard.wrote(load(v4()), NOW)
    assert guard.seen(load(v4(62)), NOW + later) is expected


def test_nothing_was_written_nothing_is_seen() -> None:
    """Also at the beginning of time, where an empty slot's time is now."""
    guard = LoopGuard()
    assert not any(guard.seen(load(v4(ttl)), 0) for ttl in (1, 62, 255))


def test_a_later_packet_may_take_the_slot_but_never_matches_for_another() -> None:
    guard = LoopGuard()
    for seq in range(20_000):
        guard.wrote(load(v4(seq=seq)), NOW) if seq % 50 == 0 else None
    hits = [seq for seq in range(0, 20_000, 50) if guard.seen(load(v4(62, seq=seq)), NOW)]
    assert len(hits) >= 350
    assert not any(guard.seen(load(v4(62, seq=seq)), NOW) for seq in range(1, 2000, 50))
