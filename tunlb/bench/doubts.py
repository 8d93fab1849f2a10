"""Why a reader may doubt a run: what was seen, and what it does to the figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from tunlb.bench.figures import CUT_LIMIT, LIMIT, Row, cpu_cores
from tunlb.bench.samples import Head, Sample

ENOUGH_ROUNDS: Final = 5
NOISY: Final = 1.3  # highest by lowest of the reflector's own rounds
STOLEN: Final = 0.02
IDLE_LOAD: Final = 0.5
FULL: Final = 0.95  # of the CPU time that the generator's busiest program could have used
SPARE: Final = 0.9  # cores; a subject that used less was not at the end of one
PROGRAMS: Final = 3  # client, subject and server are busy at the same time
FIGURE: Final = re.compile(r"\d[\d.,]*")
NAMED: Final = 4  # as many culprits are named in one sentence


def doubts(head: Head, samples: Sequence[Sample], rows: Sequence[Row]) -> list[str]:
    """All of them, what concerns the whole run first."""
    return [
        *_of_the_run(head, samples),
        *_noise(rows),
        *_stolen(samples),
        *_generators(samples),
        *_notes(samples),
    ]


def _of_the_run(head: Head, samples: Sequence[Sample]) -> list[str]:
    found = []
    rounds = len({sample.round for sample in samples})
    if rounds < ENOUGH_ROUNDS:
        planned = f" of {head.rounds} planned" if rounds < head.rounds else ""
        found.append(
            f"{rounds} {'round' if rounds == 1 else 'rounds'}{planned}: a median needs at least"
            f" {ENOUGH_ROUNDS}"
        )
    if head.load_average > IDLE_LOAD:
        found.append(f"load average {head.load_average:.2f} at the start: other programs took part")
    if head.cores < PROGRAMS:
        found.append(
            f"{head.cores} {'core' if head.cores == 1 else 'cores'} for client, subject and"
            " server: they wait for each other, and subjects that spare CPU time gain by it"
        )
    if head.build != "compiled":
        found.append(f"tunlb is {head.build} here: every subject of tunlb ran that build")
    return found


def _noise(rows: Sequence[Row]) -> list[str]:
    found = []
    for row in rows:
        if row.subject in (LIMIT, CUT_LIMIT) and row.figure.factor > NOISY:
            what = f"{row.load} {row.title}".rstrip()
            found.append(
                f"{what}: the {row.subject}'s own rounds differ by {row.figure.factor:.2f}x"
                f" ({row.shown(row.figure.low)} to {row.shown(row.figure.high)}"
                f" {row.scale.unit}): the machine was noisy, look at the spread of the ratios"
            )
    return found


def _stolen(samples: Sequence[Sample]) -> list[str]:
    shares = [sample.details.get("steal_share", 0.0) for sample in samples]
    over = [share for share in shares if share > STOLEN]
    if not over:
        return []
    return [
        f"the host gave CPU time to others during {len(over)} of {len(shares)} samples"
        f" (up to {max(over):.0%})"
    ]


def _generators(samples: Sequence[Sample]) -> list[str]:
    """Loads whose programs were at their end in most rounds, while the subject was not."""
    limited: Counter[tuple[str, str]] = Counter()
    rounds: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        which = (sample.load, sample.subject)
        rounds[which] += 1
        used = cpu_cores(sample)
        limited[which] += sample.details.get("peers_busy", 0.0) > FULL and (
            used is None or used < SPARE
        )
    by_load: dict[str, list[str]] = {}
    for (load, subject), count in limited.items():
        if 2 * count > rounds[load, subject]:
            by_load.setdefault(load, []).append(subject)
    return [
        f"{load}: the generator was the limit for {_some(subjects)}: they may be faster than shown"
        for load, subjects in by_load.items()
    ]


def _notes(samples: Sequence[Sample]) -> list[str]:
    """The loads' own notes, with who and how often; those that differ in figures only, once."""
    where: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for sample in samples:
        for note in sample.notes:
            key = (sample.load, FIGURE.sub("#", note))
            where.setdefault(key, []).append((note, sample.subject))
    found = []
    for (load, _), notes in where.items():
        who = _some(dict.fromkeys(subject for _, subject in notes))
        often = f"; {len(notes)} samples, the first is quoted" if len(notes) > 1 else ""
        found.append(f"{load}: {notes[0][0]} ({who}{often})")
    return found


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - NAMED
    return ", ".join(found[:NAMED]) + (f" and {more} more" if more > 0 else "")
