"""From samples to rows: medians over the rounds, and ratios taken within a round.

A machine's absolute figures move from minute to minute, for every subject alike. What two subjects
did within one round, a minute apart, can be compared; so a ratio is taken there, and the median of
the rounds' ratios is what a row shows, with the lowest and the highest of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tunlb.bench.samples import Head, Sample

LIMIT: Final = "reflector"
# A tunnel takes no offloaded frame: its kernel's limit is that of frames which are cut, under the
# loads that have large ones on their way to the server.
CUT_LIMIT: Final = "reflector-mtu"
CUT: Final = ("bulk", "bulk-8")
TUNNEL: Final = "tunnel"  # what the names of its subjects begin with
RIVALS: Final = ("haproxy", "nginx", "nftables", "direct")
AGAINST: Final = (LIMIT, CUT_LIMIT, *RIVALS)

# What is shown of a latency whose percentiles are in the details: (detail, title).
PERCENTILES: Final = (("p50_s", "p50"), ("p99_s", "p99"), ("p999_s", "p99.9"))
VALUE: Final = "value"
MAIN: Final = frozenset({VALUE, "p99_s"})  # what a load is judged by


def limit_of(subject: str, load: str) -> str:
    """The subject that is the limit of another one under a load."""
    return CUT_LIMIT if load in CUT and subject.partition("-")[0] == TUNNEL else LIMIT


class Scale(Protocol):
    """What a load says of its own figures: the part of `loads.Load` that is needed here."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def per_unit(self) -> float: ...  # base units in one unit that is shown
    @property
    def better(self) -> str: ...  # "higher" or "lower"


@dataclass(frozen=True)
class BareScale:
    """Of a load in a raw file that this version of tunlb no longer has: shown in base units."""

    name: str
    title: str
    unit: str = ""
    per_unit: float = 1.0
    better: str = "higher"


@dataclass(frozen=True)
class Spread:
    """Of the rounds: the median, the lowest and the highest."""

    median: float
    low: float
    high: float
    n: int

    @property
    def factor(self) -> float:
        """How far the rounds lie apart: highest by lowest; 1.0 when they agree or are all 0."""
        if self.low == self.high:
            return 1.0
        return self.high / self.low if self.low > 0 else float("inf")

    def __str__(self) -> str:
        """Of a ratio; one round alone has no spread."""
        if self.n == 1:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one subject under one load."""

    scale: Scale
    subject: str
    metric: str  # VALUE, or the name of a detail
    title: str  # of the metric: "p99"; "" for VALUE
    figure: Spread  # base units
    ratios: Mapping[str, Spread] = field(default_factory=dict)  # by the subject compared with
    cpu_ns: float | None = None  # the subject's CPU time for one packet
    cpu_cores: float | None = None  # the subject's CPU time over the load's
    notes: tuple[str, ...] = ()

    @property
    def load(self) -> str:
        return self.scale.name

    @property
    def limit(self) -> str:
        return limit_of(self.subject, self.load)

    def shown(self, figure: float) -> str:
        """A figure in the load's unit, without the unit."""
        return number(figure / self.scale.per_unit)

    @property
    def extent(self) -> str:
        """The lowest and the highest of the rounds, if there are several."""
        if self.figure.n == 1:
            return ""
        return f"{self.shown(self.figure.low)}-{self.shown(self.figure.high)}"

    def ratio(self, against: str) -> Spread | None:
        """None also for a subject beside itself."""
        return None if against == self.subject else self.ratios.get(against)


def rows(head: Head, samples: Sequence[Sample], scales: Iterable[Scale]) -> list[Row]:
    """A row for each load, metric and subject that has a sample, in the order of the turns."""
    known = {scale.name: scale for scale in scales}
    found = []
    for load in _ordered(head.loads, (sample.load for sample in samples)):
        scale = known.get(load) or BareScale(load, load)
        of_load = [sample for sample in samples if sample.load == load]
        subjects = _ordered(head.subjects, (sample.subject for sample in of_load))
        for metric, title in _metrics(scale, of_load):
            by_subject = {name: _by_round(of_load, name, metric) for name in subjects}
            for name in subjects:
                if by_subject[name]:
                    own = [sample for sample in of_load if sample.subject == name]
                    found.append(_row(scale, metric, title, name, by_subject, own))
    return found


def _row(
    scale: Scale,
    metric: str,
    title: str,
    subject: str,
    by_subject: Mapping[str, Mapping[int, float]],
    own: Sequence[Sample],
) -> Row:
    mine = by_subject[subject]
    compared = {other: _ratio(mine, by_subject.get(other, {})) for other in AGAINST}
    return Row(
        scale=scale,
        subject=subject,
        metric=metric,
        title=title,
        figure=spread(mine.values()),
        ratios={other: ratio for other, ratio in compared.items() if ratio is not None},
        cpu_ns=_median(cpu_ns(sample) for sample in own),
        cpu_cores=_median(cpu_cores(sample) for sample in own),
        notes=tuple(dict.fromkeys(note for sample in own for note in sample.notes)),
    )


def spread(figures: Iterable[float]) -> Spread:
    found = list(figures)
    return Spread(statistics.median(found), min(found), max(found), len(found))


def cpu_ns(sample: Sample) -> float | None:
    """The subject's CPU time for one packet, where both are known."""
    cpu_s, packets = sample.details.get("cpu_s"), sample.details.get("packets")
    return cpu_s / packets * 1e9 if cpu_s is not None and packets else None


def cpu_cores(sample: Sample) -> float | None:
    """How many cores the subject kept busy, where it is known."""
    cpu_s, elapsed_s = sample.details.get("cpu_s"), sample.details.get("elapsed_s")
    return cpu_s / elapsed_s if cpu_s is not None and elapsed_s else None


def grouped(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each load, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.load, []).append(row)
    return list(found.values())


def number(figure: float) -> str:
    """Three digits that count, and never an exponent: 0.0123, 1.23, 12.3, 123, 12,345."""
    rounded = abs(float(f"{figure:.3g}"))
    if rounded == 0 or rounded >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.{2 - math.floor(math.log10(rounded))}f}"


def _ordered(first: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that occur: those of `first` in its order, then the others."""
    seen = dict.fromkeys(names)
    return [name for name in first if name in seen] + [name for name in seen if name not in first]


def _metrics(scale: Scale, samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    """A rate's percentiles, which some generators print too, stay in the raw file."""
    if scale.better == "higher":
        return ((VALUE, ""),)
    present = {name for sample in samples for name in sample.details}
    percentiles = tuple(each for each in PERCENTILES if each[0] in present)
    return percentiles or ((VALUE, ""),)


def _by_round(samples: Sequence[Sample], subject: str, metric: str) -> dict[int, float]:
    """A subject's figure in each round; where a round was measured twice, the later one."""
    found = {}
    for sample in samples:
        figure = sample.value if metric == VALUE else sample.details.get(metric)
        if sample.subject == subject and figure is not None:
            found[sample.round] = figure
    return found


def _ratio(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    """None when no round has both, or the other one's figure was always 0."""
    ratios = [mine[turn] / theirs[turn] for turn in mine if theirs.get(turn)]
    return spread(ratios) if ratios else None


def _median(figures: Iterable[float | None]) -> float | None:
    found = [figure for figure in figures if figure is not None]
    return statistics.median(found) if found else None
