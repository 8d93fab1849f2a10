"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tunlb
from tunlb.counters import DropReason

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tunlb"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEADERS = sorted(PACKAGE.rglob("*.pxd"))

FILE_LINES = 560
FUNCTION_LINES = 80

MUTABLE_DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_TYPES = frozenset(
    {"list", "dict", "set", "bytearray", "array", "defaultdict", "deque", "Counter", "OrderedDict"}
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


each_module = pytest.mark.parametrize("path", MODULES, ids=relative)
each_header = pytest.mark.parametrize("path", HEADERS, ids=relative)


# ---- budgets ------------------------------------------------------------------------------------


@each_module
def test_file_is_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{relative(path)}: {lines} lines; make two rooms of it"


@each_module
def test_functions_are_short(path: Path) -> None:
    long = [
        f"{relative(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert not long


# ---- state --------------------------------------------------------------------------------------


def module_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run at import, those under if, try and with included."""
    found = []
    for node in body:
        found.append(node)
        for field in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for inner in getattr(node, field, []):
                    found += module_level(
                        inner.body if isinstance(inner, ast.ExceptHandler) else [inner]
                    )
    return found


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        callee = value.func
        name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
        return name in MUTABLE_TYPES
    return isinstance(value, MUTABLE_DISPLAYS)


def mutable_names(tree: ast.Module) -> list[str]:
    names = []
    for node in module_level(tree.body):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if is_mutable(value):
            names += [f"{node.lineno} {ast.unparse(target)}" for target in targets]
    return [name for name in names if not name.endswith(" __all__")]


@each_module
def test_no_mutable_module_state(path: Path) -> None:
    assert not mutable_names(parse(path)), (
        f"{relative(path)}: use a tuple, a frozenset or MappingProxyType, or give it an owner"
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("X = (1, 2)", 0),
        ("X = frozenset({1})", 0),
        ("X = MappingProxyType({1: 2})", 0),
        ("__all__ = ['a']", 0),
        ("def f():\n    x = []", 0),
        ("class C:\n    __slots__ = ['a']", 0),
        ("X = [1]", 1),
        ("x: dict[int, int] = {}", 1),
        ("x = collections.deque()", 1),
        ("if y:\n    x = {1}", 1),
        ("try:\n    x = 1\nexcept OSError:\n    x = []", 1),
    ],
)
def test_the_state_check_itself(source: str, found: int) -> None:
    assert len(mutable_names(ast.parse(source))) == found


# ---- one source, two builds ---------------------------------------------------------------------


def test_no_second_implementation() -> None:
    strays = [p for end in ("pyx", "c", "h", "cpp", "pxi") for p in PACKAGE.rglob(f"*.{end}")]
    assert not [relative(p) for p in strays], "rooms are .py with a .pxd; generated C is in build/"


@each_header
def test_header_has_its_room(path: Path) -> None:
    assert path.with_suffix(".py").exists(), f"{relative(path)}: a .pxd without its .py"


@each_header
def test_room_runs_the_build_under_test(path: Path) -> None:
    """TUNLB_BUILD is set by make; without it, all rooms must at least be of one build."""
    wanted = {"compiled": ".so", "pure": ".py"}.get(
        os.environ.get("TUNLB_BUILD", ""), ".so" if tunlb.build() == "compiled" else ".py"
    )
    spec = importlib.util.find_spec(dotted(path))
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).suffix == wanted
    assert Path(spec.origin).is_relative_to(ROOT), "another tree's tunlb is tested"


def test_packet_is_of_the_build_under_test() -> None:
    from tunlb import packet

    compiled = os.environ.get("TUNLB_BUILD", tunlb.build()) == "compiled"
    assert str(packet.__file__).endswith(".so" if compiled else ".py")
    assert tunlb.build() == ("compiled" if compiled else "uncompiled")


# ---- who may import whom, where import-linter cannot see it -------------------------------------


def layers() -> list[list[str]]:
    """The rooms of each layer, from the top, as pyproject.toml has them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in config["tool"]["importlinter"]["contracts"]:
        if contract["id"] == "layers":
            return [re.findall(r"\w+", layer) for layer in contract["layers"]]
    raise LookupError("pyproject.toml has no layers contract")


@each_header
def test_header_cimports_downwards(path: Path) -> None:
    """import-linter reads the .py only, and a cimport is an import as well."""
    rank = {room: number for number, rooms in enumerate(layers()) for room in rooms}
    own = dotted(path).split(".")[1]
    for other in re.findall(r"\btunlb\.(\w+)[\w.]* +cimport", path.read_text(encoding="utf-8")):
        assert other == own or rank[other] > rank[own], (
            f"{own} cimports {other}, which is not below"
        )


# ---- what is promised to people -----------------------------------------------------------------


@pytest.mark.parametrize("reason", list(DropReason), ids=lambda r: r.name)
def test_drop_reason_has_its_sentence(reason: DropReason) -> None:
    assert reason.sentence[0].isupper()
    assert reason.sentence.endswith(".")
    assert [r for r in DropReason if r.sentence == reason.sentence] == [reason]


def test_version_tells_the_build() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tunlb", "--version"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tunlb.__version__ in done.stdout
    assert tunlb.build() in done.stdout.replace("(", " ").replace(")", " ").split()


def test_console_script_is_the_package() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, function = config["project"]["scripts"]["tunlb"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def make_targets() -> list[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z][a-z0-9-]*):.*## ", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("target", make_targets())
def test_readme_names_make_target(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text(encoding="utf-8")
