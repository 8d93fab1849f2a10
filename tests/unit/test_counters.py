"""Counters: one slot each, shared by whoever maps the buffer, documented."""

from __future__ import annotations

import pytest

from tunlb.counters import EVENT_BASE, GAUGE_BASE, SIZE, Counters, DropReason, Event, Gauge


def test_every_counter_has_a_slot_of_its_own() -> None:
    counters = Counters()
    for n, reason in enumerate(DropReason, start=1):
        for _ in range(n):
            counters.drop(reason)
    for n, event in enumerate(Event, start=1000):
        counters.add(event, n)
    for n, gauge in enumerate(Gauge, start=2000):
        counters.set(gauge, n)
    assert [counters.dropped(r) for r in DropReason] == list(range(1, len(DropReason) + 1))
    assert [counters.event(e) for e in Event] == list(range(1000, 1000 + len(Event)))
    assert [counters.gauge(g) for g in Gauge] == list(range(2000, 2000 + len(Gauge)))
    assert max(DropReason) < EVENT_BASE
    assert EVENT_BASE + max(Event) < GAUGE_BASE
    assert 8 * (GAUGE_BASE + max(Gauge)) < SIZE
    names = {f"drop.{reason.name}" for reason in DropReason} | {event.name for event in Event}
    assert counters.snapshot().keys() == names


def test_a_snapshot_leaves_out_what_is_zero() -> None:
    counters = Counters()
    assert counters.snapshot() == {}
    counters.drop(DropReason.LOOP)
    counters.add(Event.RX_FRAMES, 7)
    assert counters.snapshot() == {"drop.LOOP": 1, "RX_FRAMES": 7}


def test_counters_are_shared_through_their_buffer() -> None:
    buffer = bytearray(SIZE)
    writer, reader = Counters(buffer), Counters(buffer)
    writer.add(Event.TX_BYTES, 2**40)
    assert reader.event(Event.TX_BYTES) == 2**40
    writer.add(Event.TX_BYTES, 1)
    assert reader.snapshot() == {"TX_BYTES": 2**40 + 1}


@pytest.mark.parametrize("kind", [DropReason, Event])
def test_numbers_only_grow_and_every_one_has_its_sentence(kind: type[DropReason | Event]) -> None:
    numbers = [member.value for member in kind]
    assert numbers == sorted(set(numbers))
    sentences = [member.sentence for member in kind]
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        assert sentence[0].isupper()
        assert sentence.endswith(".")
