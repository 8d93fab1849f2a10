"""The wheel fires what a heap of exact deadlines would, in the same order, whatever fire() does."""

from __future__ import annotations

import heapq
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from tunlb.timers import Wheel

CAPACITY = 12
SLOTS = 8
TICK = 10
HORIZON = SLOTS * TICK

# What fire() does, in turn: ("done",), ("again", ms), ("cancel", other), ("schedule", other, ms)
Action = tuple[str, int, int]


class HeapModel:
    """Deadlines in a heap; a stale pair (entry moved or cancelled) is skipped when it is popped."""

    def __init__(self, actions: list[Action]) -> None:
        self.actions = deque(actions)
        self.heap: list[tuple[int, int, int]] = []
        self.live: dict[int, int] = {}
        self.turn = 0
        self.current: int | None = None
        self.seen: list[int] = []

    def move(self, now: int) -> None:
        tick = now // TICK
        self.current = tick if self.current is None else max(tick, self.current)

    def schedule(self, index: int, now: int, delay: int) -> None:
        self.move(now)
        assert self.current is not None
        due = -((now + delay) // -TICK)
        due = min(max(due, self.current + 1), self.current + SLOTS)
        self.turn += 1
        self.live[index] = self.turn
        heapq.heappush(self.heap, (due, self.turn, index))

    def cancel(self, index: int) -> None:
        self.live.pop(index, None)

    def advance(self, now: int, budget: int) -> int:
        self.move(now)
        assert self.current is not None
        fired = 0
        while fired < budget and self.heap and self.heap[0][0] <= self.current:
            _, turn, index = heapq.heappop(self.heap)
            if self.live.get(index) != turn:
                continue
            del self.live[index]
            fired += 1
            self.seen.append(index)
            again = act(self, self.actions, now)
            if again:
                self.schedule(index, now, again)
        return fired


class Wheeled(Wheel):
    def __init__(self, actions: list[Action]) -> None:
        super().__init__(CAPACITY, SLOTS, TICK)
        self.actions = deque(actions)
        self.seen: list[int] = []

    def fire(self, index: int, now: int) -> int:
        self.seen.append(index)
        return act(self, self.actions, now)


def act(timers: HeapModel | Wheeled, actions: deque[Action], now: int) -> int:
    name, other, delay = actions.popleft() if actions else ("done", 0, 0)
    if name == "cancel":
        timers.cancel(other)
    elif name == "schedule":
        timers.schedule(other, now, delay)
    return delay if name == "again" else 0


indices = st.integers(0, CAPACITY - 1)
delays = st.integers(0, 2 * HORIZON)
actions = st.lists(
    st.tuples(st.sampled_from(["done", "again", "cancel", "schedule"]), indices, delays),
    max_size=20,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("schedule"), indices, delays),
        st.tuples(st.just("cancel"), indices, st.just(0)),
        st.tuples(st.just("advance"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 3 * HORIZON), st.just(0)),
    ),
    max_size=60,
)
# A multiple of the tick before 2**62, where the wheel counts from, as the model counts from zero.
starts = st.integers(-(10**9), 10**9).map(lambda n: n * TICK - (1 << 62) % TICK)


@given(start=starts, steps=steps, actions=actions)
def test_wheel_is_a_heap(start: int, steps: list[tuple[str, int, int]], actions: list) -> None:
    wheel, model = Wheeled(actions), HeapModel(actions)
    # the same instants, on clocks that agree about where a tick begins
    shift = (1 << 62) % TICK
    now = start
    for name, first, second in [*steps, ("wait", 3 * HORIZON, 0), ("advance", 1000, 0)]:
        if name == "wait":
            now += first
        elif name == "advance":
            assert wheel.advance(now, first) == model.advance(now + shift, first)
        elif name == "cancel":
            wheel.cancel(first)
            model.cancel(first)
        else:
            wheel.schedule(first, now, second)
            model.schedule(first, now + shift, second)
        assert wheel.seen == model.seen
        assert [i for i in range(CAPACITY) if wheel.scheduled(i)] == sorted(model.live)
        assert wheel.count == len(model.live)


@given(
    start=st.integers(-(2**60), 2**60),
    entries=st.dictionaries(indices, st.integers(0, HORIZON - TICK)),
    waits=st.lists(st.integers(0, HORIZON), max_size=20),
    stall=st.integers(0, 3 * HORIZON),
)
def test_never_early_and_at_most_a_tick_late(
    start: int, entries: dict[int, int], waits: list[int], stall: int
) -> None:
    deadlines = {index: start + stall + delay for index, delay in entries.items()}
    wheel = Wheeled([])
    wheel.advance(start, 100)
    for index, delay in entries.items():
        wheel.schedule(index, start + stall, delay)
    now = start + stall
    for wait in waits:
        now += wait
        wheel.advance(now, 100)
        done = {index for index in entries if not wheel.scheduled(index)}
        assert all(deadlines[index] <= now for index in done)
        assert all(deadlines[index] + TICK > now for index in entries.keys() - done)
