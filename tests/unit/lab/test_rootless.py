"""What is said where the lab cannot be built."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tunlb.lab import rootless


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNLB_ROOTLESS", raising=False)


def refuse(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def run(argv: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 1, "", words)

    monkeypatch.setattr(subprocess, "run", run)


def test_missing_tools_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = [problem.rsplit(" ", 1)[1] for problem in rootless.missing_tools()]
    assert packages == ["iproute2", "iperf3", "util-linux"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (FileNotFoundError(2, "No such file or directory"), "modprobe tun"),
        (OSError(19, "No such device"), "modprobe tun"),
        (PermissionError(13, "Permission denied"), "chmod 0666 /dev/net/tun"),
        (PermissionError(1, "Operation not permitted"), "docker run --device /dev/net/tun"),
    ],
    ids=["absent", "no-driver", "mode", "cgroup"],
)
def test_a_device_that_does_not_open(
    error: OSError, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_open(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse_open)
    [problem] = rootless.missing_device()
    assert f"cannot be opened ({error.strerror})" in problem
    assert advice in problem


def test_a_device_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tun").touch()
    monkeypatch.setattr(rootless, "TUN_DEVICE", tmp_path / "tun")
    assert rootless.missing_device() == []


@pytest.mark.parametrize(
    ("values", "cure"),
    [
        ({"max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces=15000"),
        ({"unprivileged_userns_clone": "0"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            {"apparmor_restrict_unprivileged_userns": "1"},
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({}, "--privileged"),
    ],
    ids=["limit", "debian", "apparmor", "unknown"],
)
def test_user_namespaces_that_are_refused(
    values: dict[str, str], cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "unshare: unshare failed: Operation not permitted")
    monkeypatch.setattr(rootless, "_read", lambda path: values.get(path.name, ""))
    [problem] = rootless.missing_namespaces(rootless=True)
    assert problem.startswith("user namespaces are refused (unshare: unshare failed")
    assert cure in problem


def test_a_root_without_capabilities_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "unshare: Operation not permitted")
    [problem] = rootless.missing_namespaces(rootless=False)
    assert "CAP_SYS_ADMIN" in problem


def test_enter_says_everything_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rootless, "missing", lambda **_: ["first", "second"])
    assert rootless.enter(["true"], wanted=True) == rootless.EXIT_NOT_POSSIBLE == 77
    shown = capsys.readouterr().err
    assert shown == "tunlb: the lab cannot be built here:\n  - first\n  - second\n"


@pytest.mark.parametrize(
    ("euid", "wanted", "root_may", "runs_without_root"),
    [
        (0, False, True, False),
        (0, True, True, True),
        (0, False, False, True),
        (1000, False, True, True),
    ],
    ids=["root", "root-wants-rootless", "root-in-a-container", "user"],
)
def test_who_runs_without_root(
    euid: int,
    wanted: bool,
    root_may: bool,
    runs_without_root: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = [] if root_may else ["refused"]
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(rootless, "missing", lambda **_: [])
    monkeypatch.setattr(rootless, "missing_namespaces", lambda *, rootless: refused)
    became: list[Sequence[str]] = []
    monkeypatch.setattr(rootless, "become", became.append)
    assert rootless.enter(["true"], wanted=wanted) is None
    assert became == ([["true"]] if runs_without_root else [])


def test_the_process_becomes_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execvpe", lambda *call: calls.append(call))
    rootless.become(["true"])
    [(program, argv, env)] = calls
    assert (program, argv) == ("unshare", rootless.command(["true"]))
    assert env["TUNLB_ROOTLESS"] == "1"


def test_inside_nothing_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNLB_ROOTLESS", "1")
    assert rootless.enter(["true"], wanted=True) is None


def test_the_command_is_passed_on_unchanged() -> None:
    argv = ["python", "-c", "print('a b')"]
    assert rootless.command(argv)[-3:] == argv
    assert rootless.command(argv)[0] == "unshare"
