"""What the operator is told when a configuration is wrong: its problems at once, one line each."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence

import msgspec

_SHOWN = 60  # characters of a wrong value that a message quotes
PROBLEMS_SHOWN = 20  #: problems that an operator is told at once: what repeats says nothing new


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong. `line` and `column` count from 1; 0 = it has no such place.

    `path` is a JSON path in the line, `$.laddrs[2]`, or "" when the whole line or file is meant.
    """

    file: str
    line: int
    path: str
    message: str
    hint: str = ""
    expected: str = ""
    column: int = 0

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}"
        if self.column:
            place += f":{self.column}"
        notes = []
        if self.expected:
            notes.append(f"expected {self.expected}")
        if self.hint:
            notes.append(f"hint: {self.hint}")
        path = f"{self.path}: " if self.path else ""
        tail = f" ({'; '.join(notes)})" if notes else ""
        return f"{place}: {path}{self.message}{tail}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds all, by line, then those of no line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.line == 0, p.line))
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """The first PROBLEMS_SHOWN of them as text, and how many more there are."""
        return first_lines(self.problems)


def first_lines(problems: Sequence[object]) -> list[str]:
    shown = [str(problem) for problem in problems[:PROBLEMS_SHOWN]]
    more = len(problems) - PROBLEMS_SHOWN
    return [*shown, f"and {more} more"] if more > 0 else shown


class Problems:
    """Collects the problems of one file while it is read."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Problem] = []

    def add(
        self,
        line: int,
        path: str,
        message: str,
        *,
        expected: str = "",
        hint: str = "",
        column: int = 0,
    ) -> None:
        self.found.append(
            Problem(
                file=self.file,
                line=line,
                path=path,
                message=message,
                hint=hint,
                expected=expected,
                column=column,
            )
        )


def shown(value: object) -> str:
    """A value as the operator wrote it (JSON, ASCII so that any terminal prints it), shortened."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def one_of(words: Iterable[str]) -> str:
    """`"a", "b" or "c"`."""
    quoted = [shown(word) for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The hint for a word that is near a known one, "" when none is."""
    near = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.6)
    return f"did you mean {shown(near[0])}?" if near else ""
