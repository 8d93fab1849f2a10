"""The documentation is true: names exist, links resolve, tables are the code's, examples run."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunlb.conf import loads
from tunlb.counters import DropReason, Event
from tunlb.hook import Hook
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sched import names as scheduler_names
from tunlb.packet import Packet
from tunlb.testing.flow import Rig

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tunlb"
DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "bench" / "README.md",
    *sorted(DOCS.rglob("*.md")),
)

# Words of architecture.md in code style that are not names of the tree.
FOREIGN = frozenset({".py", ".pxd", "import-linter", "now", "ready"})

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_fences(source: str) -> str:
    return re.sub(r"^```.*?^```", "", source, flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)


# ---- names --------------------------------------------------------------------------------------


def defined(path: Path) -> set[str]:
    """What a file defines, with its module's name before it; attributes are those set on self."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    found = {module}

    def visit(body: list[ast.stmt], scope: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(f"{scope}.{node.name}")
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{scope}.{node.name}")
                for inner in ast.walk(node):
                    if (
                        isinstance(inner, ast.Attribute)
                        and isinstance(inner.ctx, ast.Store)
                        and isinstance(inner.value, ast.Name)
                        and inner.value.id == "self"
                    ):
                        found.add(f"{scope}.{node.name}.{inner.attr}")
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        found.add(f"{scope}.{name.id}")

    visit(ast.parse(text(path)).body, module)
    return found


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Every dotted name of the package, and every end of one: timers.Wheel.fire, Wheel.fire."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for name in defined(path):
            parts = name.split(".")
            found |= {".".join(parts[i:]) for i in range(len(parts))}
    return found


def missing(source: str, names: set[str]) -> list[str]:
    """What is in code style and neither a name, a path, a literal of several words nor FOREIGN."""
    absent = []
    for span in re.findall(r"`([^`\n]+)`", source):
        word = span.removesuffix("()")
        if span in FOREIGN or " " in span or hasattr(builtins, word):
            continue
        if "/" in span or span.endswith((".py", ".pxd", ".toml", ".md")):
            if not (ROOT / span).exists():
                absent.append(span)
        elif re.fullmatch(r"\w+(\.\w+)*", word) and word not in names:
            absent.append(span)
    return absent


def test_architecture_names_exist(names: set[str]) -> None:
    assert not missing(without_fences(text(DOCS / "architecture.md")), names)


def test_the_walk_names_exist(names: set[str]) -> None:
    """Its fence: dotted names, and the modules' functions."""
    walk = blocks(DOCS / "architecture.md", "")[0].replace("tcp/udp/icmp/sctp.", "icmp.")
    absent = [word for word in re.findall(r"(?<![\w/])[A-Za-z]\w*\.\w+", walk) if word not in names]
    assert not absent


@pytest.mark.parametrize(
    ("source", "absent"),
    [
        ("`Wheel.fire` and `tunlb/tap.py`", []),
        ("`Wheel.explode`", ["Wheel.explode"]),
        ("`tunlb/tapp.py`", ["tunlb/tapp.py"]),
        ("`WINDOW_MSS`", ["WINDOW_MSS"]),
        ("`some words`", []),
    ],
)
def test_the_name_check_itself(source: str, absent: list[str], names: set[str]) -> None:
    assert missing(source, names) == absent


def test_architecture_draws_every_room() -> None:
    page = text(DOCS / "architecture.md")
    rooms = {
        path.name
        for path in PACKAGE.iterdir()
        if (path.is_dir() and (path / "__init__.py").exists())
        or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert not sorted(room for room in rooms if f"`tunlb/{room}`" not in page)


# ---- links --------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", without_fences(text(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken(source: str, page: Path) -> list[str]:
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_fences(source)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@each_page
def test_links_resolve(page: Path) -> None:
    assert not broken(text(page), page)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("[x](docs/lab.md#tun)", []),
        ("[x](docs/lab.md#nowhere)", ["docs/lab.md#nowhere"]),
        ("[x](docs/nothing.md)", ["docs/nothing.md"]),
        ("[x](#try-it)", []),
    ],
)
def test_the_link_check_itself(source: str, found: list[str]) -> None:
    assert broken(source, ROOT / "README.md") == found


def test_every_page_is_reachable() -> None:
    """From README.md, so that no page is forgotten."""
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen:
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)[^)]*\)", text(page))
        todo += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert not sorted(str(page) for page in set(PAGES) - seen)


def test_adrs_are_numbered_and_listed() -> None:
    pages = sorted(p.name for p in (DOCS / "adr").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    rows = re.findall(r"\[(\d{4})\]\((\S+)\) \| (.*) \|", text(DOCS / "adr" / "README.md"))
    assert [name for _, name, _ in rows] == pages
    for number, name, title in rows:
        assert text(DOCS / "adr" / name).startswith(f"# {number}: {title}\n")


# ---- tables -------------------------------------------------------------------------------------


def table(page: Path, head: str) -> list[list[str]]:
    """The rows of the table whose first column is called ``head``."""
    found = re.search(rf"^\| {head} \|.*\n\|[-| ]+\n((?:\|.*\n)+)", text(page), flags=re.MULTILINE)
    assert found is not None, f"{page.name} has no table of {head}"
    return [[c.strip() for c in row.split("|")[1:-1]] for row in found[1].splitlines()]


@pytest.mark.parametrize(("head", "enum"), [("reason", DropReason), ("event", Event)])
def test_counters_have_their_sentences(head: str, enum: type[DropReason] | type[Event]) -> None:
    page = text(DOCS / "operations.md")
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*) \|$", page, flags=re.MULTILINE))
    assert {member.name: rows.get(member.name) for member in enum} == {
        member.name: member.sentence for member in enum
    }
    assert f"| {head} | |" in page


def test_no_counter_is_invented() -> None:
    known = {member.name for member in (*DropReason, *Event)}
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|", text(DOCS / "operations.md"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(known)


@pytest.mark.parametrize(
    "row", table(DOCS / "operations.md", "name"), ids=lambda row: row[0].strip("`")
)
def test_bound_is_the_codes(row: list[str]) -> None:
    module, _, constant = row[0].strip("`").rpartition(".")
    assert str(getattr(importlib.import_module(module), constant)) == row[1]


def logged() -> set[str]:
    """The first argument of every call of a logger's method."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(text(path))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("debug", "info", "warning", "error", "critical")
                and ast.unparse(node.func.value) in ("self.log", "self._log", "log")
                and node.args
                and isinstance(event := node.args[0], ast.Constant)
            ):
                found.add(f"{event.value!s} {node.func.attr}")
    return found


def test_log_events_are_the_codes() -> None:
    page = text(DOCS / "operations.md")
    section = page[page.index("## Logs") : page.index("## Why was it dropped")]
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|", section, flags=re.MULTILINE)
    assert {f"{name} {level}" for name, levels in rows for level in levels.split(", ")} == logged()


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md", "docs/glossary.md"])
def test_page_names_every_scheduler(page: str) -> None:
    assert not [name for name in scheduler_names() if f"`{name}`" not in text(ROOT / page)]


def test_schedulers_have_their_rows() -> None:
    rows = [row[0].strip("`") for row in table(DOCS / "schedulers.md", "name")]
    assert sorted(rows) == scheduler_names()


def test_readme_has_every_make_target() -> None:
    shown = re.findall(r"^\| `make ([\w-]+)` \|", text(ROOT / "README.md"), flags=re.MULTILINE)
    helped = re.findall(r"^([\w-]+):.*## ", text(ROOT / "Makefile"), flags=re.MULTILINE)
    assert sorted(shown) == sorted(helped)


def our_hooks() -> Iterator[type[Hook]]:
    """Those that tunlb itself registers. One of a user's has a place of its own."""
    for path in sorted(PACKAGE.glob("ipvs/*.py")) + sorted(PACKAGE.glob("pipeline/*.py")):
        importlib.import_module(f"tunlb.{path.parent.name}.{path.stem}")
    for cls in Hook.__subclasses__():
        if cls.__module__.startswith(("tunlb.ipvs.", "tunlb.pipeline.")):
            yield cls


def test_hooks_page_has_our_own() -> None:
    rows = {row[0].strip("`"): row[2] for row in table(DOCS / "hooks.md", "point")}
    found = {(cls.point.name.lower(), f"`{cls.__name__}` at {cls.priority}") for cls in our_hooks()}
    told = {
        (point, own) for point, cell in rows.items() for own in re.findall(r"`\w+` at \d+", cell)
    }
    assert told == found
    assert len(found) >= 5


# ---- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("example", blocks(ROOT / "README.md", "jsonl"))
def test_readme_configuration_is_valid(example: str) -> None:
    assert loads(example).services[0].dests


def test_hook_example_works() -> None:
    hook, _, rig = blocks(DOCS / "hooks.md", "python")
    module = types.ModuleType("deny")
    exec(compile(hook, "docs/hooks.md", "exec"), module.__dict__)
    exec(compile(rig, "docs/hooks.md", "exec"), module.__dict__)
    line_text, _ = blocks(DOCS / "hooks.md", "jsonl")
    (line,) = loads("\n".join([line_text, module.CONFIG])).hooks
    name, _, attribute = line.call.partition(":")
    assert (name, getattr(module, attribute).priority) == ("deny", line.priority)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The scheduler of the page, installed with the entry point of the page."""
    (source,) = (block for block in blocks(DOCS / "hooks.md", "python") if "(Scheduler)" in block)
    (tmp_path / "first.py").write_text(source)
    (toml,) = blocks(DOCS / "hooks.md", "toml")
    groups = tomllib.loads(toml)["project"]["entry-points"]
    info = tmp_path / "first-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in groups.items()
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("first")
    del sys.modules["first"]


def test_scheduler_example_works(first: types.ModuleType) -> None:
    active, standby = (Dest(i, 4, 0, 0xFFFF_0A00_000B + i, 80) for i in range(2))
    scheduler = first.First(1, 65537)
    scheduler.update([active, standby])
    assert scheduler.schedule(Packet(), 0) is active
    active.weight = 0
    assert scheduler.schedule(Packet(), 0) is standby


@pytest.mark.usefixtures("first")
def test_hook_example_has_its_entry_point() -> None:
    port = '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}'
    line, _ = blocks(DOCS / "hooks.md", "jsonl")
    assert '"deny:Deny"' in line
    (hook,) = loads("\n".join([port, line.replace("deny:Deny", "deny")])).hooks
    assert hook.call == "deny:Deny"


@pytest.mark.parametrize("name", ["first:First", "first"])
def test_scheduler_example_is_configured(name: str, first: types.ModuleType) -> None:
    """By its class, as the page writes it, and by its entry point."""
    port = '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}'
    _, line = blocks(DOCS / "hooks.md", "jsonl")
    assert '"first:First"' in line
    rig = Rig("\n".join([port, line.replace("first:First", name)]))
    (service,) = rig.director.services()
    assert type(service.scheduler) is first.First


def test_every_test_that_the_features_name_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", text(DOCS / "features.md")))
    assert len(named) > 50
    assert not sorted(name for name in named if not (ROOT / name).exists())
