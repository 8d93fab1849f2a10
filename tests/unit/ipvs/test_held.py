"""What waits for a dest: whole, in order, and bounded."""

from __future__ import annotations

import pytest

from tunlb.ipvs import held as module
from tunlb.ipvs.held import HELD_BYTES, HELD_FRAMES, HELD_PER_CONN, Held
from tunlb.netif import Netif
from tunlb.packet import L3_OFFSET, Packet

FIELDS = {
    "af": 4,
    "proto": 6,
    "ttl": 33,
    "tcp_flags": 0x18,
    "csum_offset": 16,
    "gso_type": 1,
    "gso_size": 1448,
    "saddr_hi": 1,
    "saddr": 2,
    "daddr_hi": 3,
    "daddr": 4,
    "sport": 5,
    "dport": 6,
}


def packet(payload: bytes = b"x" * 60) -> Packet:
    pkt = Packet()
    pkt.reset(L3_OFFSET - 14, L3_OFFSET + len(payload))
    pkt.mem[L3_OFFSET : L3_OFFSET + len(payload)] = payload
    for name, value in FIELDS.items():
        setattr(pkt, name, value)
    pkt.l4 = pkt.csum_start = L3_OFFSET + 20
    pkt.iif = Netif(3, "lb3", 7)
    return pkt


@pytest.mark.parametrize("partial", [True, False])
def test_a_segment_comes_back_as_it_was(partial: bool) -> None:
    held = Held()
    pkt = packet(b"y" * 100)
    if not partial:
        pkt.csum_start = 0
    assert held.put(7, pkt)
    [segment] = held.take(7)
    again = Packet()
    segment.load(again)
    assert bytes(again.mem[again.l3 : again.end]) == b"y" * 100
    assert {name: getattr(again, name) for name in FIELDS} == FIELDS
    assert (again.l4, again.csum_start) == (L3_OFFSET + 20, pkt.csum_start)
    assert segment.iif.name == "lb3"
    assert again.partial() == partial
    assert (held.count, held.bytes, held.take(7)) == (0, 0, [])


def test_a_conn_has_its_share() -> None:
    held = Held()
    kept = [held.put(1, packet()) for _ in range(HELD_PER_CONN + 1)]
    assert kept == [True] * HELD_PER_CONN + [False]
    assert held.put(2, packet())
    assert len(held.take(1)) == HELD_PER_CONN
    assert (held.count, held.bytes) == (1, 60)


def test_all_have_theirs() -> None:
    held = Held()
    for row in range(HELD_FRAMES):
        assert held.put(row, packet(b""))
    assert not held.put(HELD_FRAMES, packet(b""))
    held = Held()
    rows = HELD_BYTES // 60_000
    for row in range(rows):
        assert held.put(row, packet(b"z" * 60_000))
    assert not held.put(rows, packet(b"z" * 60_000))
    assert held.put(rows, packet())
    assert held.bytes <= module.HELD_BYTES
