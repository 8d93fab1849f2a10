"""Programs that the bench calls: helpers in C, which it compiles, and programs of the system."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import tunlb
from tunlb.bench.samples import BenchError

HELPERS: Final = ("reflector", "crr", "udpflood", "hold")
PACKAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cc": "gcc",
        "haproxy": "haproxy",
        "iperf3": "iperf3",
        "nft": "nftables",
        "nginx": "nginx",
        "sockperf": "sockperf",
        "taskset": "util-linux",
        "wrk": "wrk",
    }
)

_FLAGS: Final = ("-O2", "-Wall", "-Wextra")
_COMPILE_S: Final = 60.0
# Where Debian puts haproxy, nginx and nft, which a user's PATH may leave out.
_ALSO: Final = ("/usr/sbin", "/sbin")
_SHARE: Final = Path("share/tunlb/bench")


def which(program: str) -> str | None:
    """The path of a program of the system, or None."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_ALSO))
    return shutil.which(program, path=path)


def missing(program: str) -> str | None:
    """That a program is not there, and which package has it; None when it is there."""
    if which(program) is not None:
        return None
    return f"the command `{program}` is not there: install the package {PACKAGES[program]}"


def _tree() -> Path:
    """The folder that holds the package: a source tree, or site-packages."""
    return Path(tunlb.__path__[0]).resolve().parent


def sources() -> Path | None:
    """The folder with the helpers' C files: in the tree beside the package, else as installed."""
    for folder in (_tree() / "bench", Path(sys.prefix) / _SHARE):
        if (folder / "reflector.c").exists():
            return folder
    return None


def cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Where compiled helpers are kept: build/bench of a source tree, else the user's cache."""
    tree = _tree()
    if (tree / "pyproject.toml").exists():
        return tree / "build" / "bench"
    home = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "tunlb" / "bench"


class Helpers:
    """The compiled helpers. One that cannot be had is named, and what needs it is left out."""

    def __init__(self, folder: Path, missing: Mapping[str, str]) -> None:
        self.missing = MappingProxyType(dict(missing))
        self._folder = folder

    def path(self, name: str) -> Path:
        """Raises BenchError, with the reason, when there is no such helper."""
        if name in self.missing:
            raise BenchError(self.missing[name])
        return self._folder / name


def build(names: Iterable[str] = HELPERS) -> Helpers:
    """Compiles the helpers whose source is newer to us than their program."""
    names = tuple(names)
    folder, found = cache(), sources()
    if found is None:
        why = f"its source is neither in {_tree() / 'bench'} nor in {Path(sys.prefix) / _SHARE}"
        return Helpers(folder, {name: f"the helper `{name}` is not there: {why}" for name in names})
    problems = {}
    for name in names:
        problem = _build_one(found / f"{name}.c", folder / name)
        if problem is not None:
            problems[name] = f"the helper `{name}` is not there: {problem}"
    return Helpers(folder, problems)


def _build_one(source: Path, program: Path) -> str | None:
    """Why there is no program; None when it is there and made of this source."""
    try:
        wanted = hashlib.sha256(source.read_bytes() + repr(_FLAGS).encode()).hexdigest()
    except OSError as error:
        return f"{source}: {error.strerror}"
    stamp = program.with_suffix(".made-of")
    if program.exists() and stamp.exists() and stamp.read_text() == wanted:
        return None
    compiler = which("cc")
    if compiler is None:
        return f"no C compiler; install the package {PACKAGES['cc']}"
    # Under a name of its own first: another run may be using the one that is there.
    fresh = program.with_suffix(f".{os.getpid()}")
    try:
        program.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [compiler, *_FLAGS, "-o", str(fresh), str(source)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMPILE_S,
        )
        if done.returncode:
            return f"cc refuses {source}: {done.stderr.strip()[-500:]}"
        fresh.replace(program)
        stamp.write_text(wanted)
    except OSError as error:
        return f"{program.parent}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"cc took more than {_COMPILE_S:g} s for {source}"
    finally:
        fresh.unlink(missing_ok=True)
    return None
