"""Which number comes next: what a RST has to say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunlb.ipvs import resets
from tunlb.ipvs.conn import H_FLAGS, HASH_KEYS, RESETS, X_END, ConnTable
from tunlb.packet import Packet
from tunlb.testing.frames import Flow

FLOW = Flow("10.0.0.1:1000", "10.0.0.2:80")
M32 = 1 << 32


def table() -> ConnTable:
    conns = ConnTable(16, bytes(8 * HASH_KEYS))
    conns.alloc()
    resets.remember(conns, 0)
    return conns


def segment(seq: int, size: int = 0, flags: str = "A") -> Packet:
    pkt = Packet()
    frame = FLOW.segment(flags, bytes(size), seq=seq % M32)
    start = 144 - 14
    pkt.mem[start : start + len(frame)] = frame
    pkt.reset(start, start + len(frame))
    pkt.l4 = 144 + 20
    pkt.tcp_flags = frame[14 + 20 + 13]
    return pkt


def ends(conns: ConnTable) -> list[int]:
    return [int(conns.extra_mem[X_END + direction]) for direction in (0, 1)]


def test_remembering_starts_with_nothing_known() -> None:
    conns = table()
    conns.extra_mem[X_END] = 77
    resets.remember(conns, 0)
    assert ends(conns) == [0, 0]
    assert conns.mem.cast("H")[H_FLAGS] & RESETS


def test_what_takes_a_number() -> None:
    for flags, size, more in (("S", 0, 1), ("A", 0, 0), ("FA", 0, 1), ("PA", 9, 9), ("FPA", 9, 10)):
        assert resets.end_of(segment(500, size, flags)) == 500 + more


def test_numbers_wrap() -> None:
    assert resets.end_of(segment(M32 - 3, 10)) == 7


@given(
    st.integers(1, M32 - 1),
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60)), max_size=8),
    st.randoms(),
)
def test_the_last_byte_counts_in_whatever_order(
    start: int, spans: list[tuple[int, int]], shuffle: object
) -> None:
    conns = table()
    resets.follow(segment(start), conns, 0, 0)
    order = sorted(spans, key=lambda _: shuffle.random())  # type: ignore[attr-defined]
    for offset, size in order:
        resets.follow(segment(start + offset, size), conns, 0, 0)
    last = max((offset + size for offset, size in spans), default=0)
    expected = (start + last) % M32
    if 0 not in {(start + offset + size) % M32 for offset, size in spans}:
        assert ends(conns) == [expected, 0]


def test_each_direction_by_itself() -> None:
    conns = table()
    resets.follow(segment(100, 5), conns, 0, 1)
    resets.follow(segment(900, 5), conns, 0, 0)
    assert ends(conns) == [905, 105]
