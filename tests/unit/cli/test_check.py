"""The command line, and `tunlb check`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tunlb
from tunlb.cli import main, verbs

GOOD = (
    '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}\n'
    '{"kind":"service","name":"web","proto":"tcp","vaddr":"10.0.0.100","vport":80,"fwdmode":"nat"}\n'
    '{"kind":"dest","service":"web","daddr":"10.0.0.11"}\n'
    '{"kind":"dest","service":"web","daddr":"10.0.0.12"}\n'
)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.jsonl"
    file.write_text(GOOD)
    return file


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.jsonl"
    file.write_text(GOOD + '{"kind":"dest","service":"wep","daddr":"10.0.0.300","weigth":1}\n{\n')
    return file


def test_valid(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(good)]) == 0
    assert capsys.readouterr() == (f"{good}: valid: 1 port, 1 service, 2 dests\n", "")


def test_invalid_prints_every_problem(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(bad)]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    places = [line.split(": ")[0:2] for line in err.splitlines()]
    assert places == [
        [f"{bad}:5", "$.daddr"],
        [f"{bad}:5", "$.weigth"],
        [f"{bad}:6:2", "not JSON"],
        [f"{bad}", "invalid"],
    ]
    assert err.endswith("invalid: 3 problems\n")


@pytest.mark.parametrize(
    ("wrong", "last"), [(20, "20 problems"), (21, "21 problems"), (1000, "1000 problems")]
)
def test_of_many_problems_the_first_are_printed(
    wrong: int, last: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"kind":"servcie"}\n' * wrong)
    assert main(["check", str(file)]) == 78
    lines = capsys.readouterr().err.splitlines()
    more = [] if wrong == 20 else [f"and {wrong - 20} more"]
    assert [line.split(": ")[0] for line in lines[:20]] == [f"{file}:{n + 1}" for n in range(20)]
    assert lines[20:] == [*more, f"{file}: invalid: {last}"]


def test_the_file_comes_from_the_environment(
    good: Path, bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNLB_CONFIG", str(bad))
    assert main(["check"]) == 78
    assert main(["check", str(good)]) == 0
    assert f"{good}: valid" in capsys.readouterr().out


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 78
    assert "none: cannot be read: No such file or directory (hint:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["chekc"], "there is no command 'chekc' (did you mean check?)"),
        (["frobnicate"], "the commands are "),
        (["check", "a", "b"], "unrecognized arguments: b"),
        (["check", "--wat"], "unrecognized arguments: --wat"),
        ([], "required: COMMAND"),
        (["completion", "fish"], "invalid choice: 'fish'"),
    ],
    ids=" ".join,
)
def test_usage(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tunlb {tunlb.__version__} ({tunlb.build()})\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert {"check", "completion"} <= set(verbs())
    assert all(f"    {verb}" in out for verb in verbs())


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    program = shutil.which(shell)
    if program is not None:
        done = subprocess.run(
            [program, "-n"], input=script, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert all(verb in script for verb in verbs())
    assert {"bash": "_shtab_compgen_files", "zsh": "_files"}[shell] in script


def test_check_and_help_import_little(good: Path) -> None:
    """A probe that runs `tunlb check` every second must not pay for loops and netlink."""
    heavy = ("asyncio", "uvloop", "pyroute2", "rich", "structlog", "pytun", "shtab")
    program = (
        "import sys; from tunlb.cli import main; code = main(sys.argv[1:]);"
        f"print(code, [name for name in {heavy} if name in sys.modules])"
    )
    for argv in (["check", str(good)], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *argv],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(tunlb.__file__).parents[1],
        )
        assert done.stdout.splitlines()[-1] == "0 []", argv
