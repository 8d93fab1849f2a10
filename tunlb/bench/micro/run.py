"""`tunlb bench micro`: the cost of the pipeline by room, and the gate on it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

    from tunlb.bench.micro.callgrind import Count
    from tunlb.bench.micro.rooms import Room

EXIT_USAGE: Final = 2
WIDTH: Final = 140  # columns where the output is no terminal
QUIET_S: Final = 10.0  # between two lines of progress there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="count instructions only, and fail when a room costs over 3 %% more than in FILE",
    )
    parser.add_argument(
        "--update",
        type=Path,
        metavar="FILE",
        help="count instructions only, and record them; with --check, unless a room costs more",
    )
    parser.add_argument("--no-callgrind", action="store_true", help="nanoseconds only")
    parser.add_argument("--only", metavar="ROOM,..", help="rooms, by name or its beginning")
    parser.add_argument(
        "--top",
        type=int,
        default=0,
        metavar="N",
        help="also show the N costliest functions of each room of --only (else: of a NAT packet)",
    )


def main(options: argparse.Namespace) -> int:
    """0: done; 1: the gate failed, or nothing could be counted for it; 2: wrong arguments."""
    from rich.console import Console

    from tunlb.bench.micro import callgrind
    from tunlb.bench.micro.rooms import all_rooms

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    gating = options.check is not None or options.update is not None
    if gating and options.no_callgrind:
        return complain("--check and --update need callgrind: leave out --no-callgrind")
    rooms = list(all_rooms())
    if options.only is not None:
        words = options.only.split(",")
        for word in words:
            if not any(room.name.startswith(word) for room in rooms):
                names = ", ".join(room.name for room in rooms)
                return complain(f"--only {word}: there is no such room; the rooms are {names}")
        rooms = [room for room in rooms if room.name.startswith(tuple(words))]
    why = callgrind.missing()
    if why is not None and gating:
        console.print(f"tunlb bench micro: {why}")
        return 1
    counts: dict[str, Count] = {}
    if why is not None and not options.no_callgrind:
        console.print(f"instructions are not counted: {why}")
    elif not options.no_callgrind:
        try:
            counts = count(console, rooms)
        except callgrind.CallgrindError as error:
            console.print(f"tunlb bench micro: {error}")
            return 1
    if gating:
        return gate(console, options, [room for room in rooms if room.counted], counts)
    measure(console, rooms, counts)
    show_top(console, options, counts)
    return 0


def complain(text: str) -> int:
    print(f"tunlb bench micro: {text}", file=sys.stderr)
    return EXIT_USAGE


class Progress:
    """A line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self.console, self.what, self.total = console, what, total
        self.done = 0
        self.said = time.monotonic()

    def step(self, name: str) -> None:
        self.done += 1
        now = time.monotonic()
        if self.console.is_terminal:
            end = "\n" if self.done == self.total else "\r"
            text = f"{self.what}: {self.done} of {self.total}, {name}"
            self.console.print(text.ljust(self.console.width - 1), end=end)
        elif self.done == self.total or now - self.said > QUIET_S:
            self.said = now
            self.console.print(f"{self.what}: {self.done} of {self.total}")


def count(console: Console, rooms: Sequence[Room]) -> dict[str, Count]:
    from tunlb.bench.micro import callgrind

    names = [room.name for room in rooms if room.counted]
    return callgrind.count(names, Progress(console, "rooms counted", len(names)).step)


def measure(console: Console, rooms: Sequence[Room], counts: Mapping[str, Count]) -> None:
    """Nanoseconds, memory, and all that was found."""
    import tunlb
    from tunlb.bench.micro import report, size, timing
    from tunlb.bench.micro.bed import Bed

    base = Bed()
    memory = None
    if any(room.name == "crowd-1m" for room in rooms):
        console.print("opening 1,000,000 conns")
        memory = size.measure(base)
    timed = [room for room in rooms if room.timed]
    progress = Progress(console, "turns of rooms", timing.TURNS * len(timed))
    times = timing.measure(timed, base, progress.step)
    console.print(f"tunlb {tunlb.__version__}, {tunlb.build()}; ns are medians of {timing.TURNS}")
    report.show_rooms(console, rooms, counts, times)
    if memory is not None:
        report.show_size(console, memory)
    report.show_goals(console, list(report.goals(times, memory)))


def show_top(console: Console, options: argparse.Namespace, counts: Mapping[str, Count]) -> None:
    from tunlb.bench.micro import report

    names = counts.keys() if options.only is not None else {report.ESTABLISHED}
    for name in names if options.top > 0 else ():
        if name in counts:
            report.show_functions(console, name, counts[name], options.top)


def gate(
    console: Console,
    options: argparse.Namespace,
    rooms: Sequence[Room],
    counts: Mapping[str, Count],
) -> int:
    from tunlb.bench.micro import gate, report

    tools = gate.toolchain()
    source = options.check or options.update
    try:
        known = options.check is not None or source.exists()
        old = gate.read(source) if known else gate.Baseline()
    except gate.BaselineError as error:
        console.print(f"tunlb bench micro: {error}")
        return 1
    wanted = {room.name for room in rooms}
    if options.only is None:
        wanted |= old.rooms.keys()
    findings = gate.compare(old.rooms, counts, wanted)
    if known:
        report.show_findings(console, findings, gate.differing(old.toolchain, tools))
    show_top(console, options, counts)
    failed = False
    if options.check is not None:
        report.show_verdict(console, findings)
        failed = any(finding.failed for finding in findings)
    if options.update is not None and not failed:
        kept = {name: room for name, room in old.rooms.items() if name not in wanted}
        gate.write(options.update, tools, {**kept, **counts})
        console.print(f"{len(counts)} rooms recorded in {options.update}")
    return int(failed)
