"""What a run measured, and the raw file that keeps all of it: JSON lines, one sample a line.

Every figure is in base units (bits/s, packets/s, exchanges/s, seconds, connections). How it is
shown is the load's business, so a raw file can be read again when the tables have changed.

Details that mean the same under every load, when the load or the subject can tell:

    elapsed_s            the time over which the rest was counted
    packets              frames that the subject moved
    cpu_s                CPU time of the subject's processes
    peers_busy           0..1: CPU time of the busiest program of the load over what it could have
                         used (its threads or the CPUs, whichever are fewer); 1 = no faster
    steal_share          0..1: CPU time that the machine's host gave to somebody else
    loss_share           0..1: packets lost
    p50_s p99_s p999_s   latencies
    rss_bytes            memory of the subject's processes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec
import orjson

# A name in Head.skipped or in a line "skipped": a subject, a load, or one subject under one load.
PAIR: Final = "{subject}/{load}"

T = TypeVar("T")


def first_line(why: str) -> str:
    """Of a reason that quotes a program; all of it is in the raw file."""
    return why.strip().partition("\n")[0]


class BenchError(Exception):
    """The run, or one load of it, cannot go on; the text says what happened, where, what to do."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run of one load gave.

    Raises:
        BenchError: a figure is not a finite number, so what the generator printed was misread.
    """

    value: float  # in the load's base unit
    details: Mapping[str, float] = field(
        default_factory=dict
    )  # further figures, by the names above
    distribution: tuple[tuple[float, float], ...] = ()  # (quantile 0..1, seconds), ascending
    notes: tuple[str, ...] = ()  # what makes this figure doubtful

    def __post_init__(self) -> None:
        for name, figure in (("value", self.value), *self.details.items()):
            if not math.isfinite(figure):
                raise BenchError(f"the load gave {figure} as its {name}")


@dataclass(frozen=True, kw_only=True)
class Sample(Outcome):
    """An outcome, and which one it is."""

    round: int  # from 1
    load: str
    subject: str
    at: float  # when it ended, Unix time in seconds


@dataclass(frozen=True, kw_only=True)
class Head:
    """On what machine, with what programs and how a run was made. `machine.head` fills it."""

    date: str  # ISO 8601, with the zone
    command: str  # as it was typed, quoted for a shell
    cpu: str
    cores: int  # that the run may use
    virtualised: str  # kind of the virtual machine or container; "" where none was found
    kernel: str
    load_average: float  # of one minute, at the start
    python: str
    tunlb: str  # version
    commit: str  # "" where it is not known; ends in "+" when the tree had changes
    build: str  # "compiled" or "uncompiled"
    compiler: str  # "" where there is none
    programs: Mapping[str, str]  # version of each that was found
    seconds: float  # each load's time
    rounds: int
    pinned: bool
    subjects: tuple[str, ...]  # in the order of their turns
    loads: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)  # name, or subject/load: why


class Writer:
    """Appends lines to a raw file, each on disk before the next load starts."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def head(self, head: Head) -> None:
        self._line("head", _plain(head))

    def sample(self, sample: Sample) -> None:
        self._line("sample", _plain(sample))

    def skipped(self, subject: str, load: str, why: str) -> None:
        """A subject failed under one load: no sample, but the reason is kept."""
        self._line("skipped", {"name": PAIR.format(subject=subject, load=load), "why": why})

    def _line(self, kind: str, values: Mapping[str, object]) -> None:
        self._file.write(orjson.dumps({"kind": kind, **values}) + b"\n")
        self._file.flush()


def _plain(line: Head | Sample) -> dict[str, object]:
    """The fields, with mappings of any sort as dicts, which is what orjson takes."""
    values = {each.name: getattr(line, each.name) for each in fields(line)}
    return {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}


def read(path: Path) -> tuple[Head, list[Sample]]:
    """A raw file; what failed during the run is in the head's `skipped` too.

    A last line without its end is left out: the run was killed while it wrote.

    Raises:
        BenchError: the file cannot be read, or is not the raw file of one run; with the line.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from None
    head: Head | None = None
    samples: list[Sample] = []
    skipped: dict[str, str] = {}
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        where = f"{path}:{number}"
        try:
            found = orjson.loads(line)
            kind = found.pop("kind")
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
            raise BenchError(f"{where}: not a line of a raw file of `tunlb bench`") from None
        if kind == "sample" and head is not None:
            samples.append(_parsed(where, found, Sample))
        elif kind == "skipped" and head is not None:
            skipped[str(found.get("name"))] = str(found.get("why"))
        elif kind == "head" and head is None:
            head = _parsed(where, found, Head)
        else:
            raise BenchError(
                f"{where}: a line {kind!r} has no place here: one head comes first, then samples;"
                " each run needs a file of its own"
            )
    if head is None:
        raise BenchError(f"{path}: holds no run")
    return replace(head, skipped={**head.skipped, **skipped}), samples


def _parsed(where: str, found: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise BenchError(f"{where}: {error}") from None
