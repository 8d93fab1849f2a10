"""Users' classes by name. Entry points of schedulers: tests/unit/ipvs/sched/test_registry.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunlb import plugins
from tunlb.conf import ConfigError, loads

LINES = (
    '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}\n'
    '{"kind":"hook","point":"forward","call":"%s"}'
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where packages are installed that offer hooks."""
    for number, points in enumerate(("plug-one = plug.mod:One\nplug-two = a:B\nplug-mod = plug\n",
                                     "plug-two = c:D\n")):  # fmt: skip
        info = tmp_path / f"plug{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plug{number}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{plugins.HOOKS}]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"), [("plug-one", "plug.mod:One"), ("some.module:Class", "some.module:Class")]
)
def test_a_hook_by_name(site: Path, name: str, found: str) -> None:
    assert plugins.resolve(plugins.HOOKS, name) == found
    (hook,) = loads(LINES % name).hooks
    assert hook.call == found
    assert "plug.mod" not in sys.modules


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("plug-none", '"plug-none" is not known'),
        ("plug-two", "installed packages offer two of that name: a:B, c:D"),
        ("plug-mod", 'its entry point is plug, and not "package.module:Class"'),
        ("", '"" is not known'),
    ],
)
def test_names_that_cannot_be_used(site: Path, name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(LINES % name)
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (2, "$.call")
    assert told in str(problem)


def test_a_package_that_is_broken(site: Path) -> None:
    """Nobody's fault here, and told instead of a traceback."""
    (site / "plug0-1.0.dist-info" / "entry_points.txt").write_text(f"[{plugins.HOOKS}]\nno value\n")
    with pytest.raises(ConfigError) as caught:
        loads(LINES % "plug-broken")
    assert "entry points of an installed package cannot be read" in str(caught.value)
    (hook,) = loads(LINES % "some.module:Class").hooks
    assert hook.call == "some.module:Class"


def test_the_groups_are_kept_apart(site: Path) -> None:
    with pytest.raises(KeyError):
        plugins.resolve(plugins.SCHEDULERS, "plug-one")
