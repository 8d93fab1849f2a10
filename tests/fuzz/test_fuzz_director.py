"""Long, unkind lives of a director: floods, reloads in between, time that jumps.

After each of them its books must agree: rows, lports, dests' counts and timers. `make fuzz` runs
these with thousands of examples, a plain `pytest tests/fuzz` with the usual hundred.
"""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.corpus import EDITS, KINDS, LB, TAP_CONFIG, Feed
from tunlb.conf import loads
from tunlb.testing import frames as f
from tunlb.testing.audit import audit

CONN_MAX = 16  # of the corpus' directors: full after a few SYNs

numbers = st.integers(0, 65535)
edits = st.lists(st.tuples(st.sampled_from(EDITS), numbers, numbers), max_size=3)
frames = st.tuples(st.just("frame"), st.integers(0, 220), edits)
floods = st.tuples(st.just("flood"), numbers, st.integers(1, 40))
waits = st.tuples(
    st.just("wait"), st.sampled_from((250, 3_000, 61_000, 1_000_000, 2**33)), st.just(0)
)
reloads = st.tuples(st.just("reload"), st.integers(0, 5), st.integers(0, 15))
lives = st.lists(st.one_of(frames, frames, floods, waits, reloads), min_size=5, max_size=40)


def without(number: int, weights: int) -> str:
    """The configuration of the taps less some lines, and with some dests quiescent."""
    lines = [json.loads(line) for line in TAP_CONFIG.splitlines()]
    names = [line["name"] for line in lines if line["kind"] == "service"]
    gone = set(names[: number * 2])
    kept = []
    for line in lines:
        if (line["name"] if line["kind"] == "service" else line.get("service")) in gone:
            continue
        if line["kind"] == "dest":
            line["weight"] = 0 if weights >> (names.index(line["service"]) % 4) & 1 else 1
        kept.append(json.dumps(line))
    return "\n".join(kept)


def flood(feed: Feed, first: int, count: int) -> None:
    """SYNs to the fnat and DR services, each of another client."""
    for i in range(first, first + count):
        client = f"10.0.{100 + i % 100}.{1 + i % 250}"
        segment = f.ipv4(client, "10.0.0.100", f.tcp(1024 + i % 60000, 80 + i % 3, flags="S"))
        feed.rig.receive("lb0", f.vnet(f.eth(LB, f"02:00:00:00:01:{i % 256:02x}", payload=segment)))


@given(taken=lives)
@settings(deadline=None)
def test_the_books_agree_after_any_life(taken: list[tuple[str, int, object]]) -> None:
    feed = Feed(KINDS["tap"])
    for name, first, second in taken:
        if name == "frame":
            assert isinstance(second, list)
            feed.read((first, second, 0))
        elif name == "flood":
            assert isinstance(second, int)
            flood(feed, first, second)
        elif name == "wait":
            feed.rig.advance(first, step=max(250, first // 64))
        else:
            assert isinstance(second, int)
            feed.rig.director.apply(loads(without(first, second)), feed.rig.now)
    audit(feed.rig.director)


@given(taken=lives)
@settings(deadline=None)
def test_everything_ends_when_nothing_comes(taken: list[tuple[str, int, object]]) -> None:
    """Two hours of silence after any life: no conn, no neighbour but the static ones, no pool."""
    feed = Feed(KINDS["tap"])
    for name, first, second in taken:
        if name == "frame" and isinstance(second, list):
            feed.read((first, second, 0))
        elif name == "flood" and isinstance(second, int):
            flood(feed, first, second)
    feed.rig.advance(7_200_000, step=60_000)
    director = feed.rig.director
    assert director.ipvs.conns.count == director.ipvs.life.timers.count == 0
    assert len(director.ipvs.life.pools) == 0
    assert director.neighs.count == 0


def test_the_books_agree_after_the_good_frames() -> None:
    """One of them wants a tuple that another service's conn has (CONN_EXISTS)."""
    feed = Feed(KINDS["tap"])
    for i in range(len(feed.kind.frames)):
        feed.read((i, [], 0))
    assert feed.rig.counters()["drop.CONN_EXISTS"] == 1
    audit(feed.rig.director)
