"""What `tunlb run` says about a configuration that it cannot take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.kit import Line, with_lines
from tunlb.lab import TOPOLOGIES
from tunlb.lab.process import environment

TEXT = TOPOLOGIES["one-arm"].config_text


def run(*words: str, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "tunlb", *words],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=environment(),
    )


LINES = [
    {"kind": "service", "name": "a", "proto": "tcp", "vaddr": "10.0.0.400", "vport": 80},
    {"kind": "dest", "service": "web-v4", "daddr": "10.0.0.14", "weigth": 2},
    {"kind": "servcie", "name": "b"},
]
TOGETHER = [
    {"kind": "dest", "service": "wbe-v4", "daddr": "10.0.0.11"},
    {"kind": "route", "dst": "10.9.0.0/16", "port": "lb1"},
    {"kind": "service", "name": "web-v4", "proto": "tcp", "vaddr": "10.0.0.100", "vport": 81},
]


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (LINES, ['"10.0.0.400"', 'did you mean "weight"?', 'did you mean "service"?']),
        (TOGETHER, ['did you mean "web-v4"?', '"lb1"', '"web-v4"']),
    ],
    ids=["each line for itself", "lines that do not fit together"],
)
def test_every_error_at_once_and_the_same_as_check(
    tmp_path: Path, lines: list[Line], parts: list[str]
) -> None:
    config = tmp_path / "bad.jsonl"
    config.write_text(with_lines(TEXT, *lines), encoding="utf-8")
    done = run("run", "-c", str(config))
    assert done.returncode == 78
    first = len(TEXT.splitlines()) + 1
    for number, part in enumerate(parts, first):
        told = [x for x in done.stderr.splitlines() if x.startswith(f"{config}:{number}")]
        assert [line for line in told if part in line], (number, part, done.stderr)
    checked = run("check", str(config))
    assert checked.returncode == 78
    assert checked.stderr.splitlines()[:-1] == done.stderr.splitlines()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = run("run", "-c", str(tmp_path / "none.jsonl"))
    assert done.returncode == 78
    assert str(tmp_path / "none.jsonl") in done.stderr
    assert "No such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("privileged")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    config = tmp_path / "secret.jsonl"
    config.write_text(TEXT, encoding="utf-8")
    config.chmod(0)
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    done = run("run", "-c", str(config), wrapper=drop)
    assert done.returncode == 78
    assert f"{config}: " in done.stderr
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("no_such_module:Hook", "No module named 'no_such_module'"),
        ("json:NoSuchClass", "no attribute 'NoSuchClass'"),
        ("json:JSONDecoder", "not a subclass of tunlb.hook.Hook"),
    ],
)
def test_a_hook_that_is_none(tmp_path: Path, call: str, message: str) -> None:
    config = tmp_path / "hook.jsonl"
    hook = {"kind": "hook", "point": "forward", "call": call}
    config.write_text(with_lines(TEXT, hook), encoding="utf-8")
    done = run("run", "-c", str(config))
    assert done.returncode == 78
    assert f"hook {call}: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_direct_routing_on_a_tun_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "dr-on-tun.jsonl"
    config.write_text(
        TOPOLOGIES["tun"].config_text.replace('"fwdmode":"nat"', '"fwdmode":"dr"'), encoding="utf-8"
    )
    done = run("run", "-c", str(config))
    assert done.returncode == 78
    assert "loop" in done.stderr
    assert "Traceback" not in done.stderr
