"""Which bytes of a datagram were seen, against a model that remembers each of them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunlb.counters import Counters, Event
from tunlb.ipvs.conn import ConnTable, hash_secret
from tunlb.ipvs.datagrams import DATAGRAMS, LIFE_MS, REUSE_MS, SPANS, Datagram, Datagrams

PIECE = 8


def begun() -> Datagram:
    made = Datagram()
    made.begin(17, 0, 0)
    return made


@given(st.permutations(range(12)))
def test_any_order_of_whole_pieces(order: list[int]) -> None:
    one = begun()
    for n in order:
        assert not one.complete()
        assert one.see(n * PIECE, (n + 1) * PIECE, n != 11) == 0
    assert one.complete()


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 6), st.booleans()), min_size=1, max_size=12
    )
)
@example([(0, 2, True), (1, 2, True)])
@example([(0, 1, True), (3, 2, True), (2, 2, True)])
@example([(0, 1, True), (3, 2, True), (2, 4, True)])
@example([(0, 4, True), (2, 1, False)])
def test_no_byte_passes_twice(pieces: list[tuple[int, int, bool]]) -> None:
    """And once two have contradicted each other, nothing passes any more."""
    one = begun()
    seen: set[int] = set()
    end_of_all = None
    for at, count, more in pieces:
        start, end = at * PIECE, (at + count) * PIECE
        before = one.contradicted
        passed = one.see(start, end, more) == 0
        bytes_of = set(range(start, end))
        if passed:
            assert not before
            assert not bytes_of & seen
            seen |= bytes_of
            if not more:
                end_of_all = end
            assert end_of_all is None or max(seen) < end_of_all
        elif not one.contradicted:
            assert bytes_of <= seen, "only a copy is refused and leaves the rest"
    if one.complete():
        assert seen == set(range(one.whole))


def test_gaps_are_bounded() -> None:
    one = begun()
    for n in range(SPANS):
        assert one.see(16 * n + 8, 16 * n + 16, True) == 0
    assert one.see(16 * SPANS + 8, 16 * SPANS + 16, True) != 0
    for n in range(SPANS):
        assert one.see(16 * n, 16 * n + 8, True) == 0, "what fills a gap needs no more room"
    assert one.done == 16 * SPANS


@given(st.permutations(range(1, 60)))
def test_pieces_that_touch_are_one(order: list[int]) -> None:
    """What is beyond the gap takes as many places as there are gaps in it, not pieces."""
    one = begun()
    seen: set[int] = set()
    for n in order:
        gaps = sum(each + 1 not in seen | {n} for each in seen | {n})
        if gaps > SPANS:
            return
        assert one.see(n * PIECE, (n + 1) * PIECE, n != 59) == 0
        seen.add(n)
    assert one.see(0, PIECE, True) == 0
    assert one.complete()


def test_when_a_number_is_used_again() -> None:
    one = begun()
    assert one.see(0, PIECE, True) == 0
    assert not one.over(REUSE_MS)
    assert one.over(REUSE_MS + 1)
    assert one.see(PIECE, 2 * PIECE, False) == 0
    assert one.over(0)
    assert one.see(0, 3 * PIECE, False) != 0
    assert not one.over(0), "it is complete, but two fragments disagree about it"


def table() -> tuple[Datagrams, Counters]:
    counters = Counters()
    return Datagrams(counters, ConnTable(16, hash_secret(b"test"))), counters


def key(n: int) -> tuple[int, int, int, int, int, int]:
    return 0, 0xFFFF_0A00_0001, 0, 0xFFFF_0A00_0002, n, 17


@pytest.mark.parametrize("field", range(6))
def test_every_part_of_the_key_counts(field: int) -> None:
    datagrams, _ = table()
    datagrams.enter(*key(7), 100).begin(17, 5, 100)
    other = list(key(7))
    other[field] += 1
    assert datagrams.find(*key(7), 100) is not None
    assert datagrams.find(*other, 100) is None  # type: ignore[call-arg]


def test_one_that_is_too_old_is_not_found() -> None:
    datagrams, _ = table()
    datagrams.enter(*key(7), 100).begin(17, 5, 100)
    assert datagrams.find(*key(7), 100 + LIFE_MS) is not None
    assert datagrams.find(*key(7), 101 + LIFE_MS) is None


def test_complete_ones_go_before_those_that_wait() -> None:
    datagrams, counters = table()
    for n in range(4 * DATAGRAMS):
        one = datagrams.enter(*key(n), 100)
        one.begin(17, 5, 100)
        assert one.see(0, 8, n % 8 == 0) == 0  # most are whole at once
    assert counters.event(Event.FRAGMENT_EVICTED) < DATAGRAMS // 10


def test_the_oldest_goes_when_all_wait() -> None:
    datagrams, counters = table()
    for n in range(2 * DATAGRAMS):
        datagrams.enter(*key(n), n // 8).begin(17, 5, n // 8)
    now = 2 * DATAGRAMS // 8
    assert DATAGRAMS <= counters.event(Event.FRAGMENT_EVICTED) < DATAGRAMS * 1.2
    late = [datagrams.find(*key(n), now) for n in range(2 * DATAGRAMS - 1000, 2 * DATAGRAMS)]
    assert sum(one is not None for one in late) > 950
