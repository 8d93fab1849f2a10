"""The lines of one file, filed by kind.

A line that could not be read is left out, and nothing is called missing that it may have declared:
one mistake gives one problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from tunlb.conf.errors import Problems, shown
from tunlb.conf.schema import Hook, Line

_L = TypeVar("_L", bound=msgspec.Struct)


class Parsed:
    """The lines that could be read, by kind, and what is known of those that could not."""

    def __init__(self) -> None:
        self.unreadable = False  # some line may have been of any kind
        self._lines: dict[type, list[tuple[int, Any]]] = {}
        self._broken: set[str] = set()
        self._first: dict[tuple[str, Any], int] = {}

    def add(self, problems: Problems, number: int, kind: str, line: Line) -> None:
        self._lines.setdefault(type(line), []).append((number, line))
        self._declare(problems, number, kind, getattr(line, "name", None))
        if isinstance(line, Hook):
            what = f"hook {shown(line.call)} at {line.point}"
            self._once(problems, number, "$.call", what, ("hook", (line.point, line.call)))

    def add_broken(
        self, problems: Problems, number: int, kind: str, raw: Mapping[str, Any]
    ) -> None:
        self._broken.add(kind)
        self._declare(problems, number, kind, raw.get("name"))

    def _declare(self, problems: Problems, number: int, kind: str, name: object) -> None:
        if kind in ("tunlb", "timeouts"):
            self._once(problems, number, "$.kind", f"a {shown(kind)} line", (kind, None))
        elif kind in ("port", "service") and isinstance(name, str):
            self._once(problems, number, "$.name", f"{kind} {shown(name)}", (kind, name))

    def _once(
        self, problems: Problems, number: int, path: str, what: str, key: tuple[str, Any]
    ) -> None:
        first = self._first.setdefault(key, number)
        if first != number:
            problems.add(number, path, f"{what} is already on line {first}", hint="keep one")

    def of(self, kind: type[_L]) -> list[_L]:
        return [line for _, line in self.numbered(kind)]

    def numbered(self, kind: type[_L]) -> list[tuple[int, _L]]:
        return self._lines.get(kind, [])

    def whole(self, *kinds: str) -> bool:
        """Whether every line of these kinds could be read, so that what is absent is missing."""
        return not self.unreadable and self._broken.isdisjoint(kinds)

    def declares(self, kind: str, name: str) -> bool:
        return (kind, name) in self._first

    def names(self, kind: str) -> list[str]:
        return [name for known, name in self._first if known == kind]
