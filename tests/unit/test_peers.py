"""Messages for other workers: in order, bounded, never to oneself."""

from __future__ import annotations

from tunlb.counters import Counters
from tunlb.peers import PEERS_MAX, Peers


def test_messages_are_taken_once_and_in_order() -> None:
    peers = Peers(1, 3, Counters())
    assert peers.put(0, b"a")
    assert peers.put(2, b"b")
    assert peers.put(0, b"c")
    assert peers.take() == [(0, b"a"), (2, b"b"), (0, b"c")]
    assert peers.waiting == []
    assert peers.take() == []


def test_everybody_is_told_but_oneself() -> None:
    peers = Peers(1, 4, Counters())
    peers.tell_all(b"x")
    assert peers.take() == [(0, b"x"), (2, b"x"), (3, b"x")]


def test_a_single_worker_has_nobody_to_tell() -> None:
    peers = Peers(0, 1, Counters())
    peers.tell_all(b"x")
    assert peers.waiting == []


def test_waiting_messages_are_bounded_and_the_others_counted() -> None:
    counters = Counters()
    peers = Peers(0, 3, counters)
    for _ in range(PEERS_MAX - 1):
        assert peers.put(1, b"x")
    peers.tell_all(b"y")
    assert not peers.put(1, b"z")
    assert len(peers.waiting) == PEERS_MAX
    assert peers.waiting[-1] == (1, b"y")
    assert counters.snapshot() == {"drop.PEERS_FULL": 2}
    peers.take()
    assert peers.put(1, b"x")


def test_a_burst_of_answers_fits() -> None:
    """64 frames that each teach the other 63 workers (tunlb.tap.BURST_FRAMES, tunlb.workers)."""
    counters = Counters()
    peers = Peers(0, 64, counters)
    for _ in range(64):
        peers.tell_all(b"x")
    assert counters.snapshot() == {}
