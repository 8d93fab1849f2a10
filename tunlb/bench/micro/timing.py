"""Nanoseconds of rooms, measured in turns.

A turn is short, drives a room with and without what is measured, and takes the difference. Time is
that of our own thread, so what other programs do between is not in it; the host of a virtual
machine, or a neighbour on the same core, still is: hence the median of many turns, and the spread.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunlb.bench.micro.bed import Bed
from tunlb.bench.micro.rooms import Case, Room

TURNS = 15


@dataclass(frozen=True)
class Times:
    """What one pass took, in ns, in each turn."""

    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of the turns."""
        low, _, high = statistics.quantiles(self.turns, n=4)
        return low, high


def measure(
    rooms: Sequence[Room], base: Bed, done: Callable[[str], None], turns: int = TURNS
) -> dict[str, Times]:
    """Times every room in each of ``turns`` turns; ``done`` hears of each turn of each room."""
    cases = [(room, room.make(base)) for room in rooms]
    counts = {room.name: calibrate(room, case) for room, case in cases}
    figures: dict[str, list[float]] = {room.name: [] for room in rooms}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(turns):
            for room, case in cases:
                count = counts[room.name]
                spent = leg(case, count, True) - leg(case, count, False)
                figures[room.name].append(spent / count)
                done(room.name)
    finally:
        if collecting:
            gc.enable()
    return {name: Times(tuple(each)) for name, each in figures.items()}


def leg(case: Case, count: int, live: bool) -> int:
    case.before(count)
    begun = time.thread_time_ns()
    case.run(count, live)
    spent = time.thread_time_ns() - begun
    case.after(count)
    return spent


def calibrate(room: Room, case: Case) -> int:
    """How many passes a turn takes; finding out also warms up."""
    count = min(room.count, room.most or room.count)
    while leg(case, count, True) < room.turn_ms * 1e6:
        count *= 2
        if room.most and count >= room.most:
            return room.most
    return count
