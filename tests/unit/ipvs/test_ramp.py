"""Weights of dests that start slowly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.ramp import STEPS, WEIGHT_MAX, Ramp, Ramps, next_step, over, weights
from tunlb.ipvs.sched import find
from tunlb.ipvs.service import Service
from tunlb.ipvs.timeouts import Timeouts

HOUR = 3_600_000


def test_steps() -> None:
    """Nine of equal length, from a tenth on; then the weight as configured."""
    old, new = Ramp(3, -1), Ramp(2, 1000)
    seen = [weights([old, new], 900, 1000 + at) for at in range(0, 1000, 100)]
    assert seen == [[30, 2 * step] for step in range(1, 10)] + [[3, 2]]


def test_a_quiescent_dest_has_no_weight() -> None:
    assert weights([Ramp(0, 5), Ramp(1, -1)], 900, 5) == [0, 1]
    assert weights([Ramp(0, -1), Ramp(1, 5), Ramp(1, -1)], 900, 5) == [0, 1, 10]


def test_a_clock_that_is_behind() -> None:
    """A successor may replay a reload with the time it had then."""
    assert weights([Ramp(1, 500), Ramp(1, -1)], 900, 100) == [1, 10]


ramps = st.lists(
    st.builds(Ramp, st.integers(0, WEIGHT_MAX), st.integers(-1, HOUR)), min_size=1, max_size=8
)


@given(ramps, st.integers(1, HOUR), st.integers(0, 2 * HOUR))
def test_shares(found: list[Ramp], slow: int, now: int) -> None:
    """Whole, in range, 0 only where it was; who does not ramp has at least his share."""
    fresh = weights(found, slow, now)
    assert all(0 <= weight <= WEIGHT_MAX for weight in fresh)
    assert [weight == 0 for weight in fresh] == [ramp.weight == 0 for ramp in found]
    full = [(r.weight, w) for r, w in zip(found, fresh, strict=True) if over(r, slow, now)]
    for weight, seen in full:
        for other, also in full:
            assert weight * also == other * seen


@given(ramps, st.integers(4 * STEPS, HOUR), st.integers(0, 2 * HOUR))
def test_nothing_changes_before_the_next_step(found: list[Ramp], slow: int, now: int) -> None:
    if all(over(ramp, slow, now) for ramp in found):
        return
    due = next_step(found, slow, now)
    assert due > now
    pause = slow // (4 * STEPS)
    if due > now + pause:
        assert weights(found, slow, due - 1) == weights(found, slow, now)
    assert due <= max(now, *(ramp.since for ramp in found)) + slow


def turn(ramps: Ramps, now: int) -> int:
    """How many pieces of work there were at ``now``."""
    return sum(1 for _ in ramps.turn(now)) if ramps.due(now) else 0


def service(count: int, slow: int) -> Service:
    made = Service("web", 4, 6, (0, 1), 80, 80, find("wrr")(1), Timeouts({}))
    made.slow_start_ms = slow
    made.set_dests([Dest(i, 4, 0, 100 + i, 80) for i in range(count)])
    return made


def test_turns_are_few() -> None:
    """However often it is asked, and however many dests ramp at different times."""
    ramps, web = Ramps(), service(50, 10_000)
    for i, dest in enumerate(web.dests[1:]):
        dest.ramp_from = i * 7
    ramps.watch(web, 400)
    assert ramps.count == 49
    turns = sum(turn(ramps, now) for now in range(400, 11_000))
    assert turns <= 4 * STEPS + 2
    assert [dest.weight for dest in web.dests] == [1] * 50
    assert (ramps.count, ramps.due(10**9)) == (0, False)


def test_a_service_that_is_gone_is_forgotten() -> None:
    ramps, web = Ramps(), service(2, 10_000)
    web.dests[1].ramp_from = 0
    ramps.watch(web, 0)
    ramps.forget({"web": web}, 0)
    assert ramps.due(0)
    ramps.forget({"web": service(2, 10_000)}, 0)
    assert not ramps.due(10**9)
    assert ramps.count == 0
