"""What is printed: the rooms, the goals, and the gate's findings."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table

from tunlb.bench.micro.callgrind import Count
from tunlb.bench.micro.gate import TOLERANCE, Finding
from tunlb.bench.micro.rooms import Room
from tunlb.bench.micro.size import Size
from tunlb.bench.micro.timing import Times

ESTABLISHED: Final = "packet-nat-v4-tcp"
NAMED: Final = 8  # functions named for a room that costs more

PACKET_NS: Final = 200.0
LOOKUP_RATIO: Final = 1.3
CONN_BYTES: Final = 160.0
MAGLEV_NS: Final = 50e6


@dataclass(frozen=True)
class Goal:
    """``limit`` is the most that ``value`` may be."""

    title: str
    value: float
    limit: float
    shown: str

    @property
    def reached(self) -> bool:
        return self.value <= self.limit


def goals(times: Mapping[str, Times], size: Size | None) -> Iterator[Goal]:
    """Those of which something was measured."""
    if found := times.get(ESTABLISHED):
        yield Goal("established NAT packet", found.median, PACKET_NS, "{:.0f} ns")
    if "lookup-1k" in times and "lookup-1m" in times:
        pairs = zip(times["lookup-1m"].turns, times["lookup-1k"].turns, strict=True)
        ratio = statistics.median(many / few for many, few in pairs)
        yield Goal("lookup among 1 M conns over 1 k", ratio, LOOKUP_RATIO, "{:.2f}")
    if size is not None:
        yield Goal("memory of a conn", size.tables, CONN_BYTES, "{:.0f} bytes")
    if found := times.get("maglev-build"):
        yield Goal("Maglev, 65537 slots x 1000 dests", found.median, MAGLEV_NS, "{:,.0f} ns")


def show_rooms(
    console: Console,
    rooms: Sequence[Room],
    counts: Mapping[str, Count],
    times: Mapping[str, Times],
) -> None:
    table = Table("room", "what", title="The pipeline by room")
    for column in ("instructions", "ns", "middle half"):
        table.add_column(column, justify="right")
    for room in rooms:
        count, taken = counts.get(room.name), times.get(room.name)
        if count is None and taken is None:
            continue
        figures = ["" if count is None else number(count.instructions)]
        if taken is None:
            figures += ["", ""]
        else:
            low, high = taken.spread
            figures += [number(taken.median), f"{number(low)}-{number(high)}"]
        table.add_row(room.name, room.title, *figures)
    console.print(table)


def number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def show_functions(console: Console, name: str, count: Count, top: int) -> None:
    table = Table("function (itself)", title=f"{name}: where its instructions go")
    table.add_column("instructions", justify="right")
    table.add_column("share", justify="right")
    for function, cost in list(count.functions.items())[:top]:
        table.add_row(function, f"{cost:.1f}", f"{cost / count.instructions:.1%}")
    console.print(table)


def show_size(console: Console, size: Size) -> None:
    console.print(
        f"memory of a conn: {size.row:.0f} bytes of row + {size.heads:.1f} of hash heads + "
        f"{size.timers:.1f} of timer; the process grew by {size.resident:.0f} bytes for each of "
        "1,000,000 NAT conns"
    )


def show_goals(console: Console, found: Sequence[Goal]) -> None:
    for goal in found:
        verdict = "reached" if goal.reached else "missed"
        value, limit = goal.shown.format(goal.value), goal.shown.format(goal.limit)
        console.print(f"goal {verdict}: {goal.title}: {value}, at most {limit}")


def show_findings(
    console: Console, findings: Sequence[Finding], other_tools: Sequence[str]
) -> None:
    """Everything that is not as in the baseline."""
    for finding in findings:
        for line in lines_of(finding):
            console.print(line)
    if other_tools:
        console.print("The toolchain is not the baseline's; what changed may be its doing:")
    for line in other_tools:
        console.print(f"  {line}")


def show_verdict(console: Console, findings: Sequence[Finding]) -> None:
    failed = [finding.room for finding in findings if finding.failed]
    if failed:
        console.print(f"{len(failed)} of {len(findings)} rooms failed: {', '.join(failed)}")
    else:
        console.print(f"{len(findings)} rooms within {TOLERANCE:.0%} of the baseline, or below")


def lines_of(finding: Finding) -> Iterator[str]:
    before, after = finding.before, finding.after
    if finding.state == "missing":
        yield f"{finding.room}: in the baseline, but not measured; was the room removed? --update"
    elif finding.state == "new":
        yield f"{finding.room}: not in the baseline; --update records it"
    elif finding.state != "same":
        assert before is not None
        assert after is not None
        yield (
            f"{finding.room}: {finding.state} by {abs(after / before - 1):.1%}, "
            f"from {number(before)} to {number(after)} instructions"
        )
        for name, old, new in finding.functions[:NAMED]:
            yield f"  {name}: {number(old)} -> {number(new)}"
