"""Both builds agree on every frame: same verdicts, same bytes, same counters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tunlb
from tests.property.corpus import EDITS, KINDS, Step
from tests.property.replay import replay

ROOT = Path(__file__).resolve().parents[2]

numbers = st.integers(0, 65535)
edits = st.lists(st.tuples(st.sampled_from(EDITS), numbers, numbers), max_size=3)
steps = st.lists(
    st.tuples(st.integers(0, 220), edits, st.sampled_from((0, 0, 0, 30, 1000, 20_000))),
    min_size=1,
    max_size=20,
)


def fresh(top: Path) -> bool:
    """Was every room under ``top`` compiled after its source was last changed?"""
    rooms = list((top / "tunlb").rglob("*.so"))
    sources = {room: room.with_name(room.name.partition(".")[0] + ".py") for room in rooms}
    return bool(rooms) and all(
        source.exists() and room.stat().st_mtime >= source.stat().st_mtime
        for room, source in sources.items()
    )


def same_sources(one: Path, other: Path) -> bool:
    names = {path.relative_to(one) for path in (one / "tunlb").rglob("*.p[yx]*")}
    names = {name for name in names if name.suffix in (".py", ".pxd")}
    return all(
        (other / name).exists() and (one / name).read_bytes() == (other / name).read_bytes()
        for name in names
    )


@pytest.fixture(scope="module")
def other_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of the build that this process does not run.

    An uncompiled one is a copy without the compiled rooms. A compiled one must be there already:
    the tree that this one was mirrored from (`make pure`).
    """
    if tunlb.build() == "compiled":
        tree = tmp_path_factory.mktemp("uncompiled")
        skip = shutil.ignore_patterns("*.so", "__pycache__")
        for name in ("tunlb", "tests/flow", "tests/property"):
            shutil.copytree(ROOT / name, tree / name, ignore=skip)
        return tree
    tree = ROOT.parents[1]
    if not fresh(tree) or not same_sources(ROOT, tree):
        message = "no compiled build of these sources beside this one; `make test` makes both"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    return tree


@pytest.fixture(scope="module")
def other(other_tree: Path) -> Iterator[subprocess.Popen[str]]:
    """The replay program on the other build, ready to be asked."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.property.replay"],
        cwd=other_tree,
        env={**os.environ, "PYTHONPATH": str(other_tree)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    assert {said, tunlb.build()} == {"compiled", "uncompiled"}
    yield process
    process.communicate(timeout=30)
    assert process.returncode == 0


def ask(process: subprocess.Popen[str], kind: str, taken: list[Step]) -> list[object]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([kind, taken]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, "the other build died on these steps"
    found: list[object] = json.loads(answer)
    return found


def compare(process: subprocess.Popen[str], kind: str, taken: list[Step]) -> None:
    here = replay(kind, taken)
    there = ask(process, kind, taken)
    for i, (mine, its) in enumerate(zip(here, there, strict=True)):
        assert mine == its, f"step {i} of {len(taken)}"


@pytest.mark.parametrize("kind", KINDS)
def test_both_builds_agree_on_good_frames(other: subprocess.Popen[str], kind: str) -> None:
    everything: list[Step] = [(i, [], 0) for i in range(len(KINDS[kind].frames))]
    compare(other, kind, everything)


@given(kind=st.sampled_from(sorted(KINDS)), taken=steps)
@settings(max_examples=2 * settings().max_examples, deadline=None)
def test_both_builds_agree_on_every_frame(
    other: subprocess.Popen[str], kind: str, taken: list[Step]
) -> None:
    compare(other, kind, taken)
