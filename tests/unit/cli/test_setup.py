"""The command line of `tunlb setup` and `tunlb teardown`; what they do is in tests/e2e."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunlb import privileges
from tunlb.cli import main
from tunlb.device import DeviceError
from tunlb.links import prepare
from tunlb.links.record import RecordError

PORT = '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}\n'
TUNLB = '{"kind":"tunlb","user":"4711","workers":3,"control":"/run/a/control.sock"}\n'

each_verb = pytest.mark.parametrize("verb", ["setup", "teardown"])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration, read by a process that may administer networks."""
    monkeypatch.delenv("TUNLB_CONTROL", raising=False)
    has(monkeypatch, 1 << 12)
    path = tmp_path / "lb.jsonl"
    path.write_text(TUNLB + PORT)
    return str(path)


def has(monkeypatch: pytest.MonkeyPatch, capabilities: int) -> None:
    status = privileges.status()._replace(effective=capabilities)
    monkeypatch.setattr(privileges, "status", lambda: status)


def replaced(monkeypatch: pytest.MonkeyPatch, verb: str, outcome: object) -> list[tuple[Any, ...]]:
    """The calls of what does the work; it returns or raises `outcome`."""
    calls: list[tuple[Any, ...]] = []

    def work(_: object, *arguments: object) -> object:
        calls.append(arguments)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(prepare, verb, work)
    return calls


def test_setup_prints_what_it_did(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = prepare.Prepared(("ip link set lb0 up", "sysctl -w x=1"), ("lb0 is odd",))
    calls = replaced(monkeypatch, "setup", done)
    assert main(["setup", "-c", file]) == 0
    assert capsys.readouterr() == (
        "ip link set lb0 up\nsysctl -w x=1\n",
        "tunlb setup: warning: lb0 is odd\n",
    )
    assert main(["setup", "-c", file, "--user", "4712"]) == 0
    monkeypatch.setenv("TUNLB_CONTROL", "/run/b/control.sock")
    assert main(["setup", "-c", file, "--user", "root"]) == 0
    assert calls == [
        ("/run/a/control.sock", 4711, 3),
        ("/run/a/control.sock", 4712, 3),
        ("/run/b/control.sock", 0, 3),
    ]


def test_setup_with_nothing_to_do(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced(monkeypatch, "setup", prepare.Prepared((), ()))
    assert main(["setup", "-c", file]) == 0
    assert capsys.readouterr() == ("nothing to do: all is set up already\n", "")


def test_setup_that_is_refused(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = DeviceError("lb0 is a veth", "ip link del lb0")
    error.add_note("not taken back, left to `tunlb teardown`: ip link del lb1: Device busy")
    replaced(monkeypatch, "setup", error)
    assert main(["setup", "-c", file]) == 71
    assert capsys.readouterr() == (
        "",
        "tunlb setup: lb0 is a veth (ip link del lb0)\n"
        "tunlb setup: not taken back, left to `tunlb teardown`: ip link del lb1: Device busy\n",
    )


def test_setup_for_nobody_we_know(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "-c", file, "--user", "no-such-user"]) == 78
    assert "tunlb setup: there is no user 'no-such-user'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "status", "out", "err"),
    [
        (None, 0, "nothing to do: there is no /run/a/control.sock.setup.json\n", ""),
        (prepare.Removed(("ip link del lb0",), ()), 0, "ip link del lb0\n", ""),
        (
            prepare.Removed(("ip link del lb0",), ("ip rule del x: No",)),
            1,
            "ip link del lb0\n",
            "tunlb teardown: not taken back, try again later: ip rule del x: No\n",
        ),
        (prepare.InUse("lb0 is in use"), 1, "", "tunlb teardown: lb0 is in use\n"),
        (RecordError("/run/x is odd"), 1, "", "tunlb teardown: /run/x is odd\n"),
    ],
    ids=["no record", "all", "not all", "in use", "a record of another"],
)
def test_teardown(
    file: str,
    outcome: object,
    status: int,
    out: str,
    err: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = replaced(monkeypatch, "teardown", outcome)
    assert main(["teardown", "-c", file]) == status
    assert capsys.readouterr() == (out, err)
    assert calls == [("/run/a/control.sock",)]


@each_verb
def test_without_privilege(
    file: str, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(monkeypatch, ~(1 << 12))
    calls = replaced(monkeypatch, verb, None)
    assert main([verb, "-c", file]) == 77
    assert calls == []
    assert capsys.readouterr() == ("", f"tunlb {verb}: needs CAP_NET_ADMIN: run it as root\n")


@each_verb
def test_an_invalid_configuration(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "-c", str(tmp_path / "none")]) == 78
    assert "none: cannot be read" in capsys.readouterr().err
