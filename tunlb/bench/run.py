"""A run of real traffic: who is measured under what, in which turns, and what becomes of it.

Within a round the subjects follow each other under one load, so that what is compared was measured
seconds apart. A subject that fails under a load is reported and left out there; the run goes on.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from tunlb.bench import machine, proc, progress, report, tools
from tunlb.bench.goals import judge
from tunlb.bench.network import Ends, Network, Pins, apart
from tunlb.bench.plan import Plan, Turn, plan
from tunlb.bench.samples import BenchError, Head, Sample, Writer, read
from tunlb.lab.ending import orderly_end
from tunlb.lab.host import LabError
from tunlb.lab.process import TunlbError

RAW: Final = "raw.jsonl"
# A subject that failed so often under a load is not tried there again.
TRIES: Final = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was asked for; empty tuples stand for all. `command` is how it was typed."""

    subjects: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()
    rounds: int = 5
    seconds: float = 2.0
    pin: bool = False
    goals: bool = False
    name: str = "bench"
    out: Path
    command: tuple[str, ...] = ()


def take(network: Network, turn: Turn, capacity: dict[str, float], seconds: float) -> Sample:
    """One subject under one load. Raises BenchError when it fails, with what was written."""
    protos = ("tcp",) if turn.load.proto == "tcp" else ("tcp", "udp")
    name = turn.load.name
    try:
        with turn.subject.stand(network) as standing:
            network.prove(standing.target, protos)
            before = proc.ticks()
            ends = Ends(network=network, capacity=capacity)
            outcome = turn.load.run(ends, standing, seconds)
            steal = proc.ticks().steal_share(before)
            remark = standing.remarks.get(name)
    except (LabError, TunlbError, OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"{type(error).__name__}: {error}") from error
    finally:
        network.clear()
    return Sample(
        round=turn.round,
        load=name,
        subject=turn.subject.name,
        at=time.time(),
        value=outcome.value,
        details={**outcome.details, "steal_share": steal},
        distribution=outcome.distribution,
        notes=(*outcome.notes, *([remark] if remark else [])),
    )


def measure(
    network: Network, turns: Sequence[Turn], seconds: float, view: progress.View
) -> Iterator[tuple[Turn, Sample | BenchError]]:
    """Every turn's sample, or why there is none, as they come."""
    capacities: dict[tuple[int, str], dict[str, float]] = {}
    failed: dict[tuple[str, str], int] = {}
    for turn in turns:
        pair = turn.subject.name, turn.load.name
        if failed.get(pair, 0) >= TRIES:
            view.given_up(turn)
            continue
        capacity = capacities.setdefault((turn.round, turn.subject.name), {})
        view.begins(turn)
        result: Sample | BenchError
        try:
            result = take(network, turn, capacity, seconds)
        except BenchError as error:
            failed[pair] = failed.get(pair, 0) + 1
            result = error
        view.ended(turn, result)
        yield turn, result


def traffic(options: Options, console: Console) -> int:
    """A whole run. 0: done; 1: somebody failed, or a goal was missed and goals were asked for."""
    raw = options.out / RAW
    if raw.exists():
        raise BenchError(f"{raw} is there already: each run needs a folder of its own (--out)")
    if options.pin and (problem := tools.missing("taskset")):
        raise BenchError(f"--pin: {problem}")
    helpers = tools.build()
    planned = plan(options.subjects, options.loads, helpers)
    for name, why in planned.skipped.items():
        console.print(f"skipped: {name}: {why}", markup=False, soft_wrap=True)
    counts = Counter[str]()
    try:
        _run(options, planned, helpers, console, counts)
    except BaseException:
        if counts["samples"]:
            print(f"{counts['samples']} samples are in {raw}; a report of them:", file=sys.stderr)
            print(f"  tunlb bench --report {raw}", file=sys.stderr)
        raise
    status = conclude(raw, options.out, options.goals, console) if counts["samples"] else 1
    return max(int(counts["failures"] > 0), status)


def _run(
    options: Options,
    planned: Plan,
    helpers: tools.Helpers,
    console: Console,
    counts: Counter[str],
) -> None:
    """The turns, from a network that is made to one that is removed; `counts` what came of them."""
    turns = planned.turns(options.rounds)
    head = _head(options, planned)
    with contextlib.ExitStack() as stack:
        ignore_signals = stack.enter_context(orderly_end())
        network = Network(options.name, helpers, apart() if options.pin else Pins())
        stack.enter_context(network.up())
        stack.callback(ignore_signals)
        writer = stack.enter_context(Writer(options.out / RAW))
        writer.head(head)
        view = stack.enter_context(progress.show(console, turns, options.seconds))
        for turn, result in measure(network, turns, options.seconds, view):
            if isinstance(result, Sample):
                writer.sample(result)
                counts["samples"] += 1
            else:
                writer.skipped(turn.subject.name, turn.load.name, str(result))
                counts["failures"] += 1


def _head(options: Options, planned: Plan) -> Head:
    return machine.head(
        command=options.command,
        seconds=options.seconds,
        rounds=options.rounds,
        pinned=options.pin,
        subjects=[subject.name for subject in planned.subjects],
        loads=[load.name for load in planned.loads],
        skipped=planned.skipped,
    )


def conclude(raw: Path, folder: Path, goals: bool, console: Console) -> int:
    """The report of a raw file. 1 when goals were asked for and one is missed or not measured."""
    head, samples = read(raw)
    if not samples:
        raise BenchError(f"{raw} has no sample: nothing to report")
    folder.mkdir(parents=True, exist_ok=True)
    report.show(console, head, samples)
    for path in report.write_report(folder, head, samples):
        console.print(f"written: {path}", markup=False)
    return int(goals and not all(v.reached for v in judge(head, report.rows_of(head, samples))))
