"""The gate: counted instructions beside a baseline that is committed.

A room that costs more than 3 % more than its baseline fails, and so does one that is missing from
either side. What a room spends in each function is kept too, so that a failure names what grew. The
toolchain is kept, because another compiler makes other instructions of the same source: a failure
after such a change may be its doing.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import orjson

from tunlb.bench.micro.callgrind import Count

TOLERANCE: Final = 0.03
NOISE: Final = 0.5  # instructions: a smaller difference is none, whatever its share
KEPT_SHARE: Final = 0.001  # functions below this share of their room are not kept

State = Literal["same", "rose", "fell", "missing", "new"]
FAILURES: Final = frozenset({"rose", "missing", "new"})


class BaselineError(Exception):
    """The baseline cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Baseline:
    """What the rooms cost when it was made, and with which toolchain."""

    toolchain: Mapping[str, str] = field(default_factory=dict)
    rooms: Mapping[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One room beside its baseline; ``before`` or ``after`` is None when it is missing there.

    ``functions`` are those whose own cost changed with the room's: (name, before, after), most
    changed first.
    """

    room: str
    state: State
    before: float | None
    after: float | None
    functions: tuple[tuple[str, float, float], ...] = ()

    @property
    def failed(self) -> bool:
        return self.state in FAILURES


def compare(
    baseline: Mapping[str, Count], counts: Mapping[str, Count], wanted: Collection[str]
) -> list[Finding]:
    """Every room of ``wanted`` on either side, in the order of the counts, missing ones last."""
    names = [name for name in (*counts, *baseline) if name in wanted]
    return [_finding(name, baseline.get(name), counts.get(name)) for name in dict.fromkeys(names)]


def _finding(room: str, before: Count | None, after: Count | None) -> Finding:
    if after is None:
        assert before is not None
        return Finding(room, "missing", before.instructions, None)
    if before is None:
        return Finding(room, "new", None, after.instructions)
    change = after.instructions - before.instructions
    state: State = "same"
    if abs(change) > max(NOISE, TOLERANCE * before.instructions):
        state = "rose" if change > 0 else "fell"
    moved = _moved(before, after, 1 if change > 0 else -1) if state != "same" else ()
    return Finding(room, state, before.instructions, after.instructions, moved)


def _moved(before: Count, after: Count, sign: int) -> tuple[tuple[str, float, float], ...]:
    """The functions that moved in the direction ``sign``, by more than one that is not kept may."""
    names = before.functions.keys() | after.functions.keys()
    pairs = [(n, before.functions.get(n, 0.0), after.functions.get(n, 0.0)) for n in names]
    moved = [pair for pair in pairs if sign * (pair[2] - pair[1]) > least(before)]
    return tuple(sorted(moved, key=lambda pair: (-abs(pair[2] - pair[1]), pair[0])))


def least(count: Count) -> float:
    """Instructions that a function must spend to be kept."""
    return max(NOISE, KEPT_SHARE * count.instructions)


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is not the same about two toolchains, as text."""
    return [
        f"{name}: {before.get(name, 'unknown')} then, {now.get(name, 'unknown')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def toolchain() -> dict[str, str]:
    """What made the instructions that are counted here, and what counts them."""
    return {
        "arch": platform.machine(),
        "compiler": _compiler(),
        "cython": _cython(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "valgrind": _valgrind(),
    }


def _compiler() -> str:
    """As it signs what it compiles (ELF section .comment), which is not always the cc of today."""
    from tunlb import packet

    path = Path(packet.__file__ or "")
    if path.suffix != ".so":
        return "none"
    signed = re.search(rb"GCC: \([^)\0]*\) ([\d.]+)|(clang version [\d.]+)", path.read_bytes())
    if signed is None:
        return "unknown"
    gcc, clang = signed.groups()
    return f"gcc {gcc.decode()}" if gcc else str(clang.decode())


def _cython() -> str:
    """Compiled rooms share a module that is named for the Cython that made them."""
    names = (name for name in sys.modules if re.fullmatch(r"_cython_[\d_]+\w*", name))
    return next(names, "none").removeprefix("_cython_").replace("_", ".")


def _valgrind() -> str:
    try:
        asked = subprocess.run(
            ["valgrind", "--version"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return asked.stdout.strip().removeprefix("valgrind-")


def read(path: Path) -> Baseline:
    """Raises BaselineError."""
    try:
        data = orjson.loads(path.read_bytes())
        rooms = {
            name: Count(float(room["instructions"]), dict(room["functions"]))
            for name, room in data["rooms"].items()
        }
        return Baseline(dict(data["toolchain"]), rooms)
    except FileNotFoundError:
        raise BaselineError(f"there is no baseline {path}; --update {path} makes one") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaselineError(f"{path} is no baseline: {error!r}; --update makes a new one") from None


def write(path: Path, made_with: Mapping[str, str], rooms: Mapping[str, Count]) -> None:
    """One line a function, so that a diff of two baselines can be read."""
    data = {
        "toolchain": dict(made_with),
        "rooms": {name: _kept(count) for name, count in sorted(rooms.items())},
    }
    path.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _kept(count: Count) -> dict[str, object]:
    floor = least(count)
    functions = {name: round(n, 1) for name, n in count.functions.items() if abs(n) >= floor}
    return {"instructions": round(count.instructions, 1), "functions": functions}
