"""`tunlb lab` and `tunlb demo` as commands."""

from __future__ import annotations

import os

import pytest

from tunlb.cli import lab as verb
from tunlb.cli import main
from tunlb.lab import TOPOLOGIES, Lab, rootless


def test_list_shows_every_topology(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lab"]) == 0
    shown = capsys.readouterr().out
    for topology in TOPOLOGIES.values():
        assert f"{topology.name:<10} {topology.summary}" in shown
    assert "up now:" in shown


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["lab", "up"], 2, "which one?"),
        (["lab", "down"], 2, "which one?"),
        (["lab", "up", "ring"], 1, "there is no lab 'ring'; there are one-arm, two-arm, dr, tun"),
        (["lab", "down", "../x"], 1, "'../x' is not a lab's name"),
    ],
)
def test_mistakes_are_explained(
    argv: list[str],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(argv) == status
    assert said in capsys.readouterr().err


def test_down_without_root_says_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TUNLB_ROOTLESS", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["lab", "down", "dr"]) == 1
    assert "needs root" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["demo"], ["lab", "up", "dr"]], ids=["demo", "lab-up"])
def test_where_it_cannot_run_the_status_is_77(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TUNLB_ROOTLESS", raising=False)
    monkeypatch.setattr(rootless, "missing", lambda **_: ["no device"])
    assert main(argv) == 77
    assert "no device" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*TOPOLOGIES])
def test_usage_can_be_pasted(name: str) -> None:
    lab = Lab(TOPOLOGIES[name], name)
    shown = verb.usage(lab, shell=False)
    client = f"ip netns exec tunlb-{name}-client"
    assert f"-m tunlb run -c /run/tunlb/lab/{name}/tunlb.jsonl\n" in shown
    assert f"{client} curl -g http://{lab.topology.vips.v4}:80/\n" in shown
    assert f"{client} curl -g 'http://[{lab.topology.vips.v6}]:80/'\n" in shown
    assert shown.endswith(f"Remove it: tunlb lab down {name}")
    after = f"ip -6 -n tunlb-{name}-director route replace default dev lb0"
    assert (after in shown) == bool(lab.topology.after_ready)


def test_usage_inside_the_shell_of_a_rootless_lab() -> None:
    shown = verb.usage(Lab(TOPOLOGIES["dr"], "dr"), shell=True)
    assert "tunlb.jsonl &\n" in shown
    assert shown.endswith("Leave with: exit")
