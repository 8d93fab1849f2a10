"""Compiles the rooms: every module of tunlb with a .pxd beside it. All else is in pyproject.toml.

Without Cython or a C compiler the same version installs uncompiled: all rooms or none, because a
compiled room that meets an uncompiled one cannot be imported. Environment: TUNLB_PURE=1 builds
nothing; TUNLB_DEBUG=1 checks every index and writes Cython's annotated pages under build/cython;
TUNLB_REQUIRE_COMPILED=1 makes a build that fails an error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

PURE, DEBUG, REQUIRED = (
    os.environ.get(f"TUNLB_{name}") == "1" for name in ("PURE", "DEBUG", "REQUIRE_COMPILED")
)
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "cdivision": True,
    "initializedcheck": DEBUG,
    # Nothing pickles a room's objects, and the code for it is a tenth of all.
    "auto_pickle": False,
}
# Fixed here, so that instruction counts do not depend on how the interpreter was configured.
# The checked build is compiled more often than it is waited for: no optimiser, lines only.
CFLAGS = ["-O0", "-g1"] if DEBUG else ["-O2", "-g0"]


def rooms() -> list[Extension]:
    headers = sorted(Path("tunlb").rglob("*.pxd"))
    sources = [header.with_suffix(".py") for header in headers]
    return [
        Extension(".".join(s.with_suffix("").parts), [str(s)], extra_compile_args=CFLAGS)
        for s in sources
    ]


class BuildRooms(build_ext):
    def run(self) -> None:
        inplace = self.inplace
        self.parallel = self.parallel or os.cpu_count()
        try:
            self.translate()
            super().run()
        except (ImportError, BaseError, CCompilerError) as error:
            if REQUIRED:
                raise
            print(f"tunlb: not compiled, it will run uncompiled: {error}", file=sys.stderr)
            for self.inplace in (False, inplace):
                for room in self.extensions:
                    Path(self.get_ext_fullpath(room.name)).unlink(missing_ok=True)
            self.extensions = []

    def translate(self) -> None:
        """Turns `sources` into C only here, so that an sdist lists the .py and no generated C."""
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError

        # Cython does not follow `from cython.cimports...`: after a change of a header it leaves
        # the rooms that call by it as they are, and they do not import. So all are made anew.
        built = [Path(self.get_ext_fullpath(room.name)) for room in self.extensions]
        oldest = min((lib.stat().st_mtime for lib in built if lib.exists()), default=0.0)
        headers = (path.stat().st_mtime for path in Path("tunlb").rglob("*.pxd"))
        self.force = self.force or max(headers) > oldest
        try:
            translated = cythonize(
                [Extension(room.name, list(room.sources)) for room in self.extensions],
                build_dir="build/cython",
                compiler_directives=DIRECTIVES,
                annotate=DEBUG,
                force=bool(self.force),
                nthreads=os.cpu_count(),
                quiet=True,
            )
        except CompileError as error:
            # Our mistake, not a property of the machine: never answered by going on uncompiled.
            raise SystemExit(f"tunlb: Cython refuses the source, see above: {error}") from None
        sources = {room.name: room.sources for room in translated}
        for room in self.extensions:
            room.sources = sources[room.name]


if __name__ == "__main__":
    setup(ext_modules=[] if PURE else rooms(), cmdclass={"build_ext": BuildRooms})
