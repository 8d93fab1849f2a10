"""What tunlb is to reach, as ratios within one run, and whether it did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tunlb.bench.figures import LIMIT, VALUE, Row, Spread, limit_of
from tunlb.bench.samples import PAIR, Head, first_line

# Compiled, one worker. The first two by everybody's figures, the other modes by the limit's alone.
JUDGED: Final = ("nat", "fnat")
JUDGED_BY_LIMIT: Final = (*JUDGED, "dr", "snat", "tunnel", "tunnel-gre", "tunnel-gue")


@dataclass(frozen=True)
class Goal:
    """A judged subject's figure over that of `against` is at least, or at most, a factor.

    Against the reflector, each subject is held to what is the limit of its own.
    """

    load: str
    against: str
    factor: float
    at_least: bool = True
    metric: str = VALUE

    def holds(self, ratio: float) -> bool:
        return ratio >= self.factor if self.at_least else ratio <= self.factor

    @property
    def subjects(self) -> tuple[str, ...]:
        return JUDGED_BY_LIMIT if self.against == LIMIT else JUDGED

    def of(self, subject: str) -> Goal:
        """The goal with what is the limit of this subject."""
        limited = self.against == LIMIT
        return replace(self, against=limit_of(subject, self.load)) if limited else self

    def __str__(self) -> str:
        metric = "" if self.metric == VALUE else f" {self.metric.removesuffix('_s')}"
        sign = ">=" if self.at_least else "<="
        return f"{self.load}{metric} {sign} {self.factor:.2f} x {self.against}"


GOALS: Final = (
    Goal("bulk", LIMIT, 0.95),
    Goal("bulk", "haproxy", 1.4),
    Goal("pps", LIMIT, 0.95),
    Goal("pps-lossless", LIMIT, 0.95),
    Goal("crr", LIMIT, 0.9),
    Goal("crr", "haproxy", 1.4),
    Goal("crr", "nftables", 1.0),
    Goal("latency", LIMIT, 1.10, at_least=False, metric="p99_s"),
    Goal("latency-70", LIMIT, 1.10, at_least=False, metric="p99_s"),
)


@dataclass(frozen=True)
class Verdict:
    """What came of one goal for one subject."""

    goal: Goal
    subject: str
    ratio: Spread | None  # None: not measured
    why: str = ""  # it was not measured

    @property
    def reached(self) -> bool | None:
        """By the median of the rounds; None when it was not measured."""
        return None if self.ratio is None else self.goal.holds(self.ratio.median)

    @property
    def unanimous(self) -> bool:
        """Every round by itself says the same as the median."""
        return self.ratio is not None and self.goal.holds(self.ratio.low) == self.goal.holds(
            self.ratio.high
        )

    @property
    def sentence(self) -> str:
        if self.reached is None:
            return f"not measured: {self.why}"
        word = "reached" if self.reached else "missed"
        return word if self.unanimous else f"{word}, but not in every round"


def judge(head: Head, rows: Sequence[Row], goals: Iterable[Goal] = GOALS) -> list[Verdict]:
    """One verdict for each goal and subject it is for."""
    found = {(row.load, row.subject, row.metric): row for row in rows}
    verdicts = []
    for each in goals:
        for subject in each.subjects:
            goal = each.of(subject)
            row = found.get((goal.load, subject, goal.metric))
            ratio = row.ratios.get(goal.against) if row is not None else None
            why = "" if ratio is not None else _why(head, goal, subject)
            verdicts.append(Verdict(goal, subject, ratio, why))
    return verdicts


def _why(head: Head, goal: Goal, subject: str) -> str:
    if goal.load not in head.loads:
        reason = head.skipped.get(goal.load)
        return f"{goal.load}: {reason}" if reason else f"{goal.load} was not asked for"
    for name in (subject, goal.against):
        reason = head.skipped.get(name) or head.skipped.get(
            PAIR.format(subject=name, load=goal.load)
        )
        if reason:
            return f"{name}: {first_line(reason)}"
        if name not in head.subjects:
            return f"{name} was not asked for"
    return f"no round has both {subject} and {goal.against}"
