"""Who is to be measured under what, in which turns, and who cannot be here, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console

from tunlb.bench import tools
from tunlb.bench.loads import LOADS, Load
from tunlb.bench.samples import BenchError
from tunlb.bench.subjects import SUBJECTS, Subject


class Turn(NamedTuple):
    round: int
    load: Load
    subject: Subject


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who and what can be measured here, and why the others cannot: by name."""

    subjects: tuple[Subject, ...]
    loads: tuple[Load, ...]
    skipped: Mapping[str, str]

    def turns(self, rounds: int) -> list[Turn]:
        return [
            Turn(number, load, subject)
            for number in range(1, rounds + 1)
            for load in self.loads
            for subject in self.subjects
            if subject.takes(load.name, load.proto)
        ]


def missing_need(need: str, helpers: tools.Helpers) -> str | None:
    """Why a program or helper that somebody needs is not to be had."""
    return helpers.missing.get(need) if need in tools.HELPERS else tools.missing(need)


def why_not(what: Subject | Load, helpers: tools.Helpers) -> str | None:
    """Why a subject or load cannot be measured here; None when it can."""
    for need in what.needs:
        problem = missing_need(need, helpers)
        if problem is not None:
            return problem
    return what.missing() if isinstance(what, Subject) else None


def plan(subjects: Sequence[str], loads: Sequence[str], helpers: tools.Helpers) -> Plan:
    """Of what was asked for, by name (nothing: everything), what is possible here.

    Raises:
        BenchError: nothing is; with every reason.
    """
    skipped: dict[str, str] = {}
    chosen_subjects = [s for s in SUBJECTS if not subjects or s.name in subjects]
    chosen_loads = [load for load in LOADS if not loads or load.name in loads]
    chosen: list[Subject | Load] = [*chosen_subjects, *chosen_loads]
    for what in chosen:
        problem = why_not(what, helpers)
        if problem is not None:
            skipped[what.name] = problem
    found = Plan(
        subjects=tuple(s for s in chosen_subjects if s.name not in skipped),
        loads=tuple(load for load in chosen_loads if load.name not in skipped),
        skipped=skipped,
    )
    if not found.turns(1):
        reasons = [f"{name}: {why}" for name, why in skipped.items()]
        raise BenchError("; ".join(["nothing is left to measure", *reasons]))
    return found


def listing(console: Console) -> None:
    """Every subject and load, and what is missing for it here."""
    helpers = tools.build()
    groups: tuple[tuple[str, Sequence[Subject | Load]], ...] = (
        ("subjects", SUBJECTS),
        ("loads", LOADS),
    )
    for heading, group in groups:
        console.print(f"{heading}:")
        for what in group:
            problem = why_not(what, helpers)
            remark = f"  (not here: {problem})" if problem else ""
            console.print(f"  {what.name:<16} {what.title}{remark}", markup=False, soft_wrap=True)
