from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Imports a script of bench/, which is no package."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # dataclasses look their module up there
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the C programs, compiled so that every warning fails."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("bench-tools")
    for name in ("reflector", "crr", "udpflood"):
        source = BENCH / f"{name}.c"
        flags = ["-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
        subprocess.run([compiler, *flags, "-o", made / name, source], check=True)
    return made
