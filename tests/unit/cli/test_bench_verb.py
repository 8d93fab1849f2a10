"""The command line of `tunlb bench`; nothing is measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tunlb.bench.samples import BenchError
from tunlb.cli import bench, build_parser, main
from tunlb.lab import rootless


def parse(*words: str) -> argparse.Namespace:
    return build_parser(["bench"]).parse_args(["bench", *words])


@pytest.mark.parametrize(
    ("words", "rounds", "seconds", "pin"),
    [
        ((), 5, 2.0, False),
        (("traffic",), 5, 2.0, False),
        (("--rounds", "3", "--pin"), 3, 2.0, True),
        (("traffic", "--rounds", "3", "--pin"), 3, 2.0, True),
        (("--rounds", "3", "traffic", "--seconds", "1"), 3, 1.0, False),
    ],
    ids=["nothing", "suite", "options", "options of the suite", "both"],
)
def test_options_before_and_after_the_suite(
    words: tuple[str, ...], rounds: int, seconds: float, pin: bool
) -> None:
    args = parse(*words)
    assert (args.suite, args.rounds, args.seconds, args.pin) == ("traffic", rounds, seconds, pin)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds is 1 or more"),
        (["--seconds", "0.1"], "--seconds is 0.2 or more"),
        (["--subjects", "nat,nothing"], "--subjects: there is no nothing; there are direct, "),
        (["--loads", "bulk,crx"], "--loads: there is no crx; there are bulk, "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tunlb bench: {said}")


def test_micro_is_the_other_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunlb.bench.micro import run

    called: list[argparse.Namespace] = []

    def fake(args: argparse.Namespace) -> int:
        called.append(args)
        return 1

    monkeypatch.setattr(run, "main", fake)
    assert main(["bench", "micro"]) == 1
    assert [args.suite for args in called] == ["micro"]


def test_where_it_cannot_run_the_status_is_77(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def enter(argv: list[str], **more: object) -> int:
        asked.update(more)
        return rootless.EXIT_NOT_POSSIBLE

    monkeypatch.setattr(rootless, "enter", enter)
    assert main(["bench", "--rootless"]) == 77
    # iperf3 is a load's need, not the bench's.
    assert asked == {"wanted": True, "tools": ("ip", "unshare")}


def test_an_error_is_printed_with_what_was_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = BenchError("it broke")
    error.add_note("`crr` wrote: no")

    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(bench, "_traffic_run", fail)
    assert main(["bench"]) == 1
    assert capsys.readouterr().err == "tunlb bench: it broke\n`crr` wrote: no\n"


@pytest.mark.parametrize("name", ["", "UPPER", "../x"])
def test_a_name_that_no_namespace_may_have(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--name", name]) == 1
    assert "is not a lab's name" in capsys.readouterr().err


def test_a_report_of_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--report", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("tree", [True, False], ids=["in a tree", "elsewhere"])
def test_where_a_run_is_kept(tree: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if tree:
        (tmp_path / "bench").mkdir()
        (tmp_path / "bench" / "reflector.c").touch()
    folder = bench.new_folder()
    assert folder.parent == (Path("bench/results") if tree else Path("."))
    assert folder.name.startswith("2" if tree else "tunlb-bench-2")
