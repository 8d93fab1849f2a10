"""What a run shows while it goes on: each figure as it comes, and how long it still takes."""

from __future__ import annotations

import contextlib
import statistics
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tunlb.bench.plan import Turn
from tunlb.bench.samples import BenchError, Sample

# Seconds beyond --seconds, on two cores: to take one's place and leave it, and to ...
STAND_S: Final = 2.5
_MORE_S: Final[Mapping[str, float]] = MappingProxyType(
    {
        "pps-lossless": 7.0,  # ... try a dozen rates
        "latency-70": 1.0,  # ... find out what 100 % is, where that is unknown
        "first": 0.5,
        "held": 12.0,  # ... open 100 k connections, instead of --seconds
    }
)


class Estimate:
    """How long turns take: a guess at first, then what the same one took in earlier rounds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._took: dict[tuple[str, str], list[float]] = {}

    def of(self, turn: Turn) -> float:
        known = self._took.get((turn.load.name, turn.subject.name))
        if known:
            return statistics.median(known)
        return self._seconds + STAND_S + _MORE_S.get(turn.load.name, 0.0)

    def learn(self, turn: Turn, seconds: float) -> None:
        self._took.setdefault((turn.load.name, turn.subject.name), []).append(seconds)

    def together(self, turns: Sequence[Turn]) -> float:
        return sum(self.of(turn) for turn in turns)


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "1 h 05 min"."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class View:
    """Lines on a console, and on a terminal a bar below them."""

    def __init__(
        self,
        console: Console,
        turns: Sequence[Turn],
        seconds: float,
        bar: Progress | None = None,
    ) -> None:
        self._console = console
        self._turns = turns
        self._estimate = Estimate(seconds)
        self._done = 0
        self._told: set[tuple[str, str]] = set()  # whose programs' words were shown
        self._begun = 0.0
        self._bar = bar
        self._task: TaskID | None = None
        whole = duration(self._estimate.together(turns))
        self._say(f"{len(turns)} turns, about {whole}")
        if bar is not None:
            self._task = bar.add_task("", total=len(turns), left=whole)

    def begins(self, turn: Turn) -> None:
        self._begun = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"{_where(turn)}{turn.subject.name}")

    def ended(self, turn: Turn, result: Sample | BenchError) -> None:
        self._estimate.learn(turn, time.monotonic() - self._begun)
        self._advance()
        head = f"[{self._done}/{len(self._turns)}] {_where(turn)}{turn.subject.name:<16}"
        if isinstance(result, Sample):
            load = turn.load
            figure = f"{result.value / load.per_unit:10.2f} {load.unit:<5}"
            notes = "".join(f"  ! {note}" for note in result.notes)
            self._say(f"{head}{figure} {self._left()}{notes}")
            return
        self._say(f"{head} FAILED: {result}")
        pair = turn.load.name, turn.subject.name
        if pair not in self._told:
            self._told.add(pair)
            for note in getattr(result, "__notes__", ()):
                self._say(textwrap.indent(note, "    "))

    def given_up(self, turn: Turn) -> None:
        self._advance()
        self._say(
            f"[{self._done}/{len(self._turns)}] {_where(turn)}{turn.subject.name:<16}"
            " left out: it failed before"
        )

    def _advance(self) -> None:
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, left=self._left())

    def _left(self) -> str:
        return f"{duration(self._estimate.together(self._turns[self._done :]))} left"

    def _say(self, line: str) -> None:
        # Through the bar's console it appears above the bar.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _where(turn: Turn) -> str:
    return f"round {turn.round}  {turn.load.name:<13}"


@contextlib.contextmanager
def show(console: Console, turns: Sequence[Turn], seconds: float) -> Iterator[View]:
    if not console.is_terminal:
        yield View(console, turns, seconds)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}, {task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield View(console, turns, seconds, bar)
