"""The timer wheel: rounding, order, budget, stalls, and what fire() may do."""

from __future__ import annotations

import pytest

from tunlb.timers import Wheel

TICK = 250
SLOTS = 16
HORIZON = TICK * SLOTS
# A multiple of the tick, so that the rows can be read. Ticks count from -2**62.
START = 1_000_000 * TICK - (1 << 62) % TICK


class Recorder(Wheel):
    """Notes (index, now) of what fires; ``again`` holds what fire() returns for an index."""

    def __init__(self, capacity: int = 32, slots: int = SLOTS, tick_ms: int = TICK) -> None:
        super().__init__(capacity, slots, tick_ms)
        self.seen: list[tuple[int, int]] = []
        self.again: dict[int, int] = {}

    def fire(self, index: int, now: int) -> int:
        self.seen.append((index, now))
        return self.again.pop(index, 0)

    def indices(self) -> list[int]:
        return [index for index, _ in self.seen]


def first_fire(wheel: Recorder, start: int, until: int, step: int = 1) -> int:
    """Advance from ``start`` in small steps; ms until the first entry fires, -1 if none does."""
    for now in range(start, start + until, step):
        if wheel.advance(now, 100):
            return now - start
    return -1


@pytest.mark.parametrize(
    ("phase", "delay", "fires_after"),
    [
        pytest.param(0, 0, 250, id="zero delay waits for the next tick"),
        pytest.param(0, 1, 250, id="one ms is rounded up to a tick"),
        pytest.param(0, 250, 250, id="a whole tick"),
        pytest.param(0, 251, 500, id="just over a tick"),
        pytest.param(1, 250, 499, id="a tick from the middle of one"),
        pytest.param(249, 1, 1, id="up to the next tick"),
        pytest.param(249, 2, 251, id="just past the next tick"),
        pytest.param(0, -5, 250, id="a negative delay is none"),
        pytest.param(0, HORIZON, HORIZON, id="the horizon exactly"),
        pytest.param(7, HORIZON - TICK, HORIZON - 7, id="the longest delay at any phase"),
        pytest.param(0, HORIZON + 1, HORIZON, id="beyond the horizon: the farthest slot"),
        pytest.param(0, 1 << 60, HORIZON, id="far beyond the horizon"),
    ],
)
def test_delay_is_rounded_up_to_a_tick(phase: int, delay: int, fires_after: int) -> None:
    wheel = Recorder()
    wheel.schedule(3, START + phase, delay)
    assert first_fire(wheel, START + phase, HORIZON + 2 * TICK) == fires_after
    assert wheel.indices() == [3]


@pytest.mark.parametrize("start", [0, -1, -123_456_789, 1 << 60, -(1 << 60)])
def test_the_clock_may_start_anywhere(start: int) -> None:
    wheel = Recorder()
    wheel.schedule(0, start, 1000)
    assert wheel.advance(start + 999, 10) == 0
    assert wheel.advance(start + 1000 + TICK, 10) == 1


def test_cancel_and_scheduled() -> None:
    wheel = Recorder()
    assert not wheel.scheduled(5)
    wheel.cancel(5)
    wheel.schedule(5, START, 100)
    wheel.schedule(6, START, 100)
    assert wheel.scheduled(5)
    assert wheel.count == 2
    wheel.cancel(5)
    wheel.cancel(5)
    assert not wheel.scheduled(5)
    assert wheel.count == 1
    wheel.advance(START + 1000, 10)
    assert wheel.indices() == [6]
    assert (wheel.count, wheel.fired) == (0, 1)


def test_schedule_moves_an_entry_both_ways() -> None:
    wheel = Recorder()
    wheel.schedule(1, START, 3000)
    wheel.schedule(1, START, 500)
    wheel.schedule(2, START, 500)
    wheel.schedule(2, START, 3000)
    assert wheel.count == 2
    wheel.advance(START + 500, 10)
    assert wheel.indices() == [1]
    wheel.advance(START + 3000, 10)
    assert wheel.indices() == [1, 2]


def test_entries_of_a_tick_fire_in_the_order_of_scheduling() -> None:
    wheel = Recorder()
    for index in (4, 2, 9, 0):
        wheel.schedule(index, START, 700)
    wheel.schedule(2, START, 700)
    wheel.advance(START + 750, 10)
    assert wheel.indices() == [4, 9, 0, 2]


def test_budget_is_kept_and_nothing_is_lost() -> None:
    wheel = Recorder()
    for index in range(10):
        wheel.schedule(index, START, 250 if index < 5 else 500)
    assert wheel.advance(START + 500, 3) == 3
    assert wheel.scheduled(3)
    assert wheel.advance(START + 500, 4) == 4
    assert wheel.advance(START + 500, 0) == 0
    assert wheel.advance(START + 500, 4) == 3
    assert wheel.indices() == list(range(10))


def test_an_entry_that_is_due_but_not_fired_can_be_cancelled_or_moved() -> None:
    wheel = Recorder()
    for index in range(4):
        wheel.schedule(index, START, 250)
    wheel.advance(START + 250, 1)
    wheel.cancel(1)
    wheel.schedule(2, START + 250, 1000)
    wheel.advance(START + 250, 10)
    assert wheel.indices() == [0, 3]
    wheel.advance(START + 1250, 10)
    assert wheel.indices() == [0, 3, 2]


@pytest.mark.parametrize("gap", [HORIZON - 1, HORIZON, 3 * HORIZON + 77, 10**15])
def test_a_stall_fires_everything_once_oldest_first(gap: int) -> None:
    wheel = Recorder()
    wheel.advance(START, 10)
    for index in range(SLOTS - 1):
        wheel.schedule(index, START, (SLOTS - 1 - index) * TICK)
    assert wheel.advance(START + gap, 100) == SLOTS - 1
    assert wheel.indices() == list(reversed(range(SLOTS - 1)))
    assert wheel.advance(START + gap + HORIZON, 100) == 0


@pytest.mark.parametrize("gap", [HORIZON // 2, HORIZON - TICK, 5 * HORIZON])
def test_a_delay_given_after_a_stall_is_kept_in_full(gap: int) -> None:
    """Packets may come in before the timer tick: the wheel must not count from its old position."""
    wheel = Recorder()
    wheel.advance(START, 10)
    now = START + gap
    wheel.schedule(0, now, HORIZON - TICK)
    assert first_fire(wheel, now, 2 * HORIZON, step=10) >= HORIZON - TICK


def test_a_delay_given_while_due_entries_wait_is_kept_in_full() -> None:
    wheel = Recorder()
    for index in range(8):
        wheel.schedule(index, START, 250)
    now = START + HORIZON - TICK
    wheel.again = {0: HORIZON - TICK}
    wheel.advance(now, 1)
    wheel.seen.clear()
    for late in range(now, now + HORIZON - TICK, 50):
        wheel.advance(late, 100)
    assert 0 not in wheel.indices()
    wheel.advance(now + HORIZON, 100)
    assert 0 in wheel.indices()


def test_fire_says_when_to_look_again() -> None:
    """A delay beyond the horizon: the owner looks at its own deadline and asks for the rest."""
    deadline = START + 10 * HORIZON + 123

    class Lazy(Recorder):
        def fire(self, index: int, now: int) -> int:
            self.seen.append((index, now))
            return max(0, deadline - now)

    wheel = Lazy()
    wheel.schedule(0, START, deadline - START)
    for now in range(START, deadline + 2 * TICK, 100):
        wheel.advance(now, 10)
    assert not wheel.scheduled(0)
    assert deadline <= wheel.seen[-1][1] <= deadline + TICK + 100
    assert len(wheel.seen) == 11


def test_fire_may_cancel_the_next_and_schedule_any() -> None:
    class Busy(Recorder):
        def fire(self, index: int, now: int) -> int:
            super().fire(index, now)
            if index == 0:
                self.cancel(1)
                self.schedule(0, now, 0)
                self.schedule(7, now, 0)
                self.schedule(2, now, 1000)
            return 0

    wheel = Busy()
    for index in range(4):
        wheel.schedule(index, START, 250)
    wheel.advance(START + 250, 100)
    assert wheel.indices() == [0, 3]
    assert wheel.scheduled(0)
    assert wheel.scheduled(7)
    wheel.cancel(0)
    wheel.advance(START + 500, 100)
    assert wheel.indices() == [0, 3, 7]
    wheel.advance(START + 1250, 100)
    assert wheel.indices() == [0, 3, 7, 2]
    assert wheel.count == 0


def test_what_fire_returns_wins_over_what_it_scheduled() -> None:
    class Twice(Recorder):
        def fire(self, index: int, now: int) -> int:
            self.schedule(index, now, 3000)
            return super().fire(index, now)

    wheel = Twice()
    wheel.again = {0: 250}
    wheel.schedule(0, START, 250)
    wheel.advance(START + 250, 10)
    assert wheel.count == 1
    wheel.advance(START + 500, 10)
    assert wheel.indices() == [0, 0]


def test_an_exception_of_fire_passes_through_and_the_rest_stays_due() -> None:
    class Broken(Recorder):
        def fire(self, index: int, now: int) -> int:
            if index == 0:
                raise RuntimeError("ours")
            return super().fire(index, now)

    wheel = Broken()
    for index in range(2):
        wheel.schedule(index, START, 250)
    with pytest.raises(RuntimeError, match="ours"):
        wheel.advance(START + 250, 10)
    assert wheel.advance(START + 250, 10) == 1
    assert wheel.indices() == [1]


def test_the_first_and_the_last_index() -> None:
    wheel = Recorder(capacity=3)
    for index in range(3):
        wheel.schedule(index, START, 0)
    wheel.advance(START + TICK, 10)
    assert wheel.indices() == [0, 1, 2]


@pytest.mark.parametrize("sizes", [(0, 16, 250), (1, 1, 250), (1, 16, 0)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="a wheel needs"):
        Wheel(*sizes)


def test_a_wheel_without_fire_says_so() -> None:
    wheel = Wheel(1)
    wheel.schedule(0, 0, 0)
    with pytest.raises(NotImplementedError):
        wheel.advance(1000, 1)
