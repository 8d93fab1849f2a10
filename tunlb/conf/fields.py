"""Every problem of one line's keys.

msgspec reads a good line fast but stops at a bad line's first error. Only a line that it refused is
walked here, key by key and element by element, along the types of its struct.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, UnsetType

from tunlb.conf.errors import Problems, did_you_mean, one_of, shown
from tunlb.conf.values import READERS, RefusedError, parse

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def explain(
    problems: Problems,
    line: int,
    kind: type[msgspec.Struct],
    raw: Mapping[str, Any],
    skip: Container[str] = (),
) -> None:
    """Adds a problem for each key of `raw` that `kind` does not take, and each that it misses.

    The keys in `skip` have been spoken of: they are not missing.
    """
    _Walk(problems, line, skip).struct(kind, raw, "$")


def key_path(path: str, key: str) -> str:
    return f"{path}.{key}" if _PLAIN_KEY.fullmatch(key) else f"{path}[{json.dumps(key)}]"


class _Walk:
    def __init__(self, problems: Problems, line: int, skip: Container[str]) -> None:
        self.problems = problems
        self.line = line
        self.skip = skip

    def struct(self, kind: type[msgspec.Struct], raw: Mapping[str, Any], path: str) -> None:
        types = _types(kind)
        for key, value in raw.items():
            if key in types:
                self.value(types[key], value, key_path(path, key))
            elif not (path == "$" and key == "kind"):
                hint = did_you_mean(key, types) or f"the keys are {', '.join(types)}"
                self.problems.add(self.line, key_path(path, key), "unknown key", hint=hint)
        for field in msgspec.structs.fields(kind):
            spoken_of = path == "$" and field.name in self.skip
            if field.required and field.name not in raw and not spoken_of:
                self.problems.add(
                    self.line,
                    key_path(path, field.name),
                    "missing",
                    expected=expected(types[field.name]),
                )

    def value(self, kind: Any, value: Any, path: str) -> None:
        plain, _ = _unwrap(kind)
        if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
            if isinstance(value, dict):
                self.struct(plain, value, path)
            else:
                self._refuse(kind, value, path)
        elif get_origin(plain) is tuple:
            if isinstance(value, list):
                element = get_args(plain)[0]
                for index, item in enumerate(value):
                    self.value(element, item, f"{path}[{index}]")
            else:
                self._refuse(kind, value, path)
        elif plain in READERS:
            if value is None and _optional(kind):
                return
            try:
                parse(plain, value)
            except RefusedError as refused:
                self._add(path, str(refused), expected(kind), refused.hint)
        else:
            self._leaf(kind, value, path)

    def _leaf(self, kind: Any, value: Any, path: str) -> None:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            self._refuse(kind, value, path)

    def _refuse(self, kind: Any, value: Any, path: str) -> None:
        hint = did_you_mean(value, _words(kind)) if isinstance(value, str) else ""
        self._add(path, f"{shown(value)} {_complaint(kind, value)}", expected(kind), hint)

    def _add(self, path: str, message: str, wanted: str, hint: str) -> None:
        self.problems.add(self.line, path, message, expected=wanted, hint=hint)


@cache
def _types(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Field names to their types, Annotated included, in the struct's order."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in msgspec.structs.fields(kind)}


def _members(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have, None and UNSET (a key left out) aside."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(arm for arm in get_args(kind) if arm not in (NoneType, UnsetType))
    return (kind,)


def _optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _unwrap(kind: Any) -> tuple[Any, Meta]:
    """The bare type of a field's first arm, and its limits."""
    first = _members(kind)[0]
    if get_origin(first) is Annotated:
        bare, *extras = get_args(first)
        return bare, next((extra for extra in extras if isinstance(extra, Meta)), Meta())
    return first, Meta()


def _words(kind: Any) -> tuple[str, ...]:
    """The words that a field takes."""
    arms = [arm for arm in _members(kind) if get_origin(arm) is Literal]
    return tuple(word for arm in arms for word in get_args(arm) if isinstance(word, str))


def _complaint(kind: Any, value: Any) -> str:
    plain, _ = _unwrap(kind)
    if get_origin(plain) is Literal or (isinstance(value, str) and _words(kind)):
        return "is not known"
    right: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}
    if plain is int and type(value) is float:
        return "is not an integer"
    if type(value) not in right.get(plain, ()):
        return f"is {_json_type(value)}"
    return "does not fit" if plain is str else "is out of range"


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def expected(kind: Any) -> str:
    """What a field takes, in words."""
    return " or ".join(_expected_arm(arm) for arm in _members(kind))


def _expected_arm(arm: Any) -> str:
    plain, limits = _unwrap(arm)
    if limits.description:
        return limits.description
    if plain in READERS:
        return READERS[plain][1]
    if get_origin(plain) is Literal:
        return one_of(get_args(plain))
    if get_origin(plain) is tuple:
        return f"a list, each {expected(get_args(plain)[0])}"
    if plain is bool:
        return "true or false"
    if plain in (int, float):
        low = f"above {limits.gt}" if limits.gt is not None else f"{limits.ge}"
        noun = "an integer" if plain is int else "a number"
        return f"{noun} {low}{' and up to ' if limits.gt is not None else '-'}{limits.le}"
    return "a string" if plain is str else "an object"
