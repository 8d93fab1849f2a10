"""Counts the instructions of rooms with valgrind's callgrind: the same on a busy machine as on an
idle one, so that a change of one per cent can be seen, with the functions that spend them.

What the kernel does is not counted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tunlb

# Below this a difference is the interpreter's own doing (it rewrites its code as it runs).
LEAST = 0.05  # instructions


class CallgrindError(Exception):
    """Nothing could be counted; the text says why and what to do."""


@dataclass(frozen=True)
class Count:
    """Instructions of one pass through a room: all, and those of each function itself."""

    instructions: float
    functions: dict[str, float]  # the costliest first


def missing() -> str | None:
    """Why nothing can be counted here, with what to do about it; None when it can be."""
    if tunlb.build() != "compiled":
        return "instructions are counted on the compiled build only; make build"
    if shutil.which("valgrind") is None:
        return "no valgrind; apt-get install valgrind"
    return None


def count(names: Sequence[str], done: Callable[[str], None]) -> dict[str, Count]:
    """Counts the rooms with these names; ``done`` hears of each. Raises CallgrindError."""
    why = missing()
    if why is not None:
        raise CallgrindError(why)
    with tempfile.TemporaryDirectory(prefix="tunlb-bench-") as scratch:
        profile = Path(scratch) / "profile"
        counts = _run(profile, names, done)
        return {
            name: difference(
                self_costs(_lines(profile, 4 * i + 2)),
                self_costs(_lines(profile, 4 * i + 4)),
                times,
            )
            for i, (name, times) in enumerate(counts)
        }


def _run(profile: Path, names: Sequence[str], done: Callable[[str], None]) -> list[tuple[str, int]]:
    """Runs the rooms; name and times of each, in the order of the files."""
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", "--dump-line=no"]
    argv += ["--dump-before=getppid", sys.executable, "-m", "tunlb.bench.micro.counted", *names]
    # Dicts take the same steps in every run, and no room pays for finding a library's function.
    # Our own tunlb, wherever we are started.
    tree = str(Path(tunlb.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (tree, os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONHASHSEED": "0", "LD_BIND_NOW": "1", "PYTHONPATH": path}
    counts: list[tuple[str, int]] = []
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                name, times = line.split()
                counts.append((name, int(times)))
                done(name)
        except BaseException:
            process.terminate()
            raise
        if process.wait():
            said.seek(0)
            raise CallgrindError(f"under valgrind, status {process.returncode}: {said.read()}")
    return counts


def _lines(profile: Path, number: int) -> Iterable[str]:
    path = profile.with_name(f"{profile.name}.{number}")
    try:
        with path.open(errors="replace") as lines:
            yield from lines
    except FileNotFoundError:
        raise CallgrindError(
            "callgrind did not see the marks between the rooms: it found no getppid() in the C "
            "library (Debian: apt-get install libc6-dbg)"
        ) from None


def difference(live: Counter[str], idle: Counter[str], times: int) -> Count:
    """What one pass costs, from the costs of ``times`` passes with the room and without it.

    Our own loops are left out: with a room they also pass its arguments.
    """
    spent: Counter[str] = Counter()
    for symbol in live.keys() | idle.keys():
        name = readable(symbol)
        if not name.startswith("bench.micro.drive.") or name.split(".")[3][0].isupper():
            spent[name] += live[symbol] - idle[symbol]
    each = {name: cost / times for name, cost in spent.items() if abs(cost) >= LEAST * times}
    functions = dict(sorted(each.items(), key=lambda item: (-item[1], item[0])))
    return Count(sum(functions.values()), functions)


def self_costs(profile: Iterable[str]) -> Counter[str]:
    """Instructions spent in each function itself, from a callgrind profile (its format 1).

    Names are compressed: "fn=(7) name" the first time, "fn=(7)" from then on. The line after a
    "calls=" line holds what the callee spent, so it is not ours.
    """
    costs: Counter[str] = Counter()
    names: dict[str, str] = {}
    function, callee_next = "", False
    for line in profile:
        if match := re.match(r"c?fn=(\(\d+\))(?: (.*))?", line):
            number, name = match.groups()
            if name:
                names[number] = name
            if line[0] == "f":
                function = names[number]
        elif line.startswith("calls="):
            callee_next = True
        elif line[:1] in "0123456789+-*" and line.strip():
            if not callee_next:
                costs[function] += int(line.split()[1])
            callee_next = False
    return costs


def readable(symbol: str) -> str:
    """`ipvs.conn.ConnTable.find` for `__pyx_f_5tunlb_4ipvs_4conn_9ConnTable_find`: Cython writes
    the length of each part before it. Other symbols stay as they are.
    """
    match = re.match(r"__pyx_(f|pf|pw)_5tunlb_(.*)", symbol)
    if match is None:
        return symbol
    kind, rest = match.groups()
    parts = []
    while part := re.match(r"(\d+)", rest):
        at, size = len(part[1]), int(part[1])
        if rest[at + size : at + size + 1] != "_":
            break
        parts.append(rest[at : at + size])
        rest = rest[at + size + 1 :]
    name = ".".join([*parts, rest if kind == "f" else rest.lstrip("0123456789")])
    return name if kind == "f" else f"{name} (from Python)"
