"""What a reader has to know of the machine and the programs before believing a figure."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import tunlb
from tunlb.bench.samples import Head

# How each program is asked for its version.
ASKED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "iperf3": ("--version",),
        "wrk": ("--version",),
        "sockperf": ("--version",),
        "haproxy": ("-v",),
        "nginx": ("-v",),
        "nft": ("--version",),
        "valgrind": ("--version",),
    }
)
NUMBER: Final = re.compile(r"\d+(?:\.\d+)+[\w.+~-]*")
CONTAINER_MARKS: Final = ("/.dockerenv", "/run/.containerenv")
ASK_S: Final = 5.0


def head(
    *,
    command: Sequence[str],
    seconds: float,
    rounds: int,
    pinned: bool,
    subjects: Sequence[str],
    loads: Sequence[str],
    skipped: Mapping[str, str],
) -> Head:
    """The head of a run that starts now, on this machine."""
    return Head(
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        command=shlex.join(command),
        cpu=cpu_model(_text(Path("/proc/cpuinfo"))),
        cores=len(os.sched_getaffinity(0)),
        virtualised=virtualised(),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        load_average=os.getloadavg()[0],
        python=f"{platform.python_implementation()} {platform.python_version()}",
        tunlb=tunlb.__version__,
        commit=commit(Path(tunlb.__file__).resolve().parents[1]),
        build=tunlb.build(),
        compiler=_said("cc", "--version").partition("\n")[0],
        programs=versions(),
        seconds=seconds,
        rounds=rounds,
        pinned=pinned,
        subjects=tuple(subjects),
        loads=tuple(loads),
        skipped=dict(skipped),
    )


def cpu_model(cpuinfo: str) -> str:
    """From the text of /proc/cpuinfo; the machine's type where it names no model (arm64)."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def virtualised() -> str:
    """The kinds as systemd names them; without it, what can be seen; "" for bare metal."""
    said = [_said("systemd-detect-virt", what).strip() for what in ("--vm", "--container")]
    if any(said):
        return ", ".join(kind for kind in said if kind != "none")
    kinds = []
    if re.search(r"^flags\s*:.*\bhypervisor\b", _text(Path("/proc/cpuinfo")), flags=re.MULTILINE):
        kinds.append("virtual machine")
    if any(Path(mark).exists() for mark in CONTAINER_MARKS):
        kinds.append("container")
    return ", ".join(kinds)


def commit(tree: Path) -> str:
    """Short hash of the tree's commit, with a + if files differ from it; "" for an installation."""
    if not (tree / ".git").exists():
        return ""
    found = _said("git", "-C", str(tree), "rev-parse", "--short", "HEAD").strip()
    changed = _said("git", "-C", str(tree), "status", "--porcelain", "--untracked-files=no")
    return f"{found}+" if found and changed.strip() else found


def versions() -> Mapping[str, str]:
    """Of each program that is there; "?" when what it says holds no number."""
    found = {}
    for name, argv in ASKED.items():
        if shutil.which(name, path=_path()) is not None:
            number = NUMBER.search(_said(name, *argv))
            found[name] = number[0] if number else "?"
    return found


def _path() -> str:
    """PATH, and where Debian puts haproxy, nginx and nft, which a user's PATH may leave out."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _said(name: str, *argv: str) -> str:
    """What a program writes to either output; "" when it is not there. Its status says nothing:
    some programs end with 1 after --version."""
    program = shutil.which(name, path=_path())
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
