"""`tunlb demo` and `tunlb lab` as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.kit import eventually
from tunlb.lab.host import NETNS_DIR
from tunlb.lab.net import STATE_DIR
from tunlb.lab.process import environment

DEMO = [sys.executable, "-m", "tunlb", "demo"]


def outside() -> dict[str, str]:
    """The environment of a user, also where the tests themselves run rootless."""
    return {name: value for name, value in environment().items() if name != "TUNLB_ROOTLESS"}


def left_by(pid: int) -> list[str]:
    """Namespaces and records of the demo that this process ran."""
    mark = f"one-arm-{pid}"
    names = os.listdir(NETNS_DIR) if NETNS_DIR.exists() else []
    records = os.listdir(STATE_DIR) if STATE_DIR.exists() else []
    return [name for name in (*names, *records) if mark in name]


@pytest.fixture
def demo() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def popen(demo: list[subprocess.Popen[str]], *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*DEMO, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outside()
    )
    demo.append(process)
    return process


def check(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert err == ""
    assert "10.0.0.100" in out
    assert re.search(r"s1 +│ +2 +│ +20 +│ +6 ", out), out
    assert re.search(r"s3 +│ +1 +│ +10 +│ +3 ", out), out
    [speed] = re.findall(r"TCP, 1 stream, 3 s +│ +([0-9.]+) ", out)
    assert float(speed) > 0.05
    assert re.search(r"UDP, .* 0\.[0-9]+ +│ +[0-9.]+ %", out), out
    assert "everything removed" in out
    assert left_by(process.pid) == []


@pytest.mark.usefixtures("privileged")
def test_demo(demo: list[subprocess.Popen[str]]) -> None:
    check(popen(demo))


@pytest.mark.usefixtures("unprivileged")
def test_demo_without_root(demo: list[subprocess.Popen[str]]) -> None:
    check(popen(demo, "--rootless"))


@pytest.mark.usefixtures("privileged")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(
    demo: list[subprocess.Popen[str]], how: signal.Signals
) -> None:
    process = popen(demo)
    assert process.stdout is not None
    eventually(lambda: left_by(process.pid), 10)
    for line in process.stdout:
        if "HTTP fetches" in line:
            break
    process.send_signal(how)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + how
    assert "everything removed" in out
    assert left_by(process.pid) == []


@pytest.mark.usefixtures("privileged")
@pytest.mark.parametrize(
    ("topology", "target", "answer"),
    [
        ("one-arm", "http://10.0.0.100/peer", '"peer": "10.0.0.20'),
        ("two-arm", "http://[fd01::100]/peer", '"peer": "fd01::2"'),
        ("dr", "http://10.0.0.100/peer", '"peer": "10.0.0.2"'),
        ("tun", "http://[fd03::100]/peer", '"peer": "fd03::20'),
    ],
)
def test_what_the_documentation_says_to_paste(topology: str, target: str, answer: str) -> None:
    """docs/lab.md, in a mount namespace with a /run of its own: nobody's lab is met."""
    tunlb = f"{sys.executable} -m tunlb"
    lab = f"tunlb-{topology}"
    script = f"""
        mount -t tmpfs tmpfs /run && set -e; trap "cat /run/log >&2" EXIT
        {tunlb} lab up {topology} >/dev/null
        ip netns exec {lab}-director {tunlb} run -c config/{topology}.jsonl 2>/run/log &
        until grep -q '"event":"ready"' /run/log; do sleep 0.05; kill -0 $! || exit 1; done
        ip netns exec {lab}-client curl -gsS -m 5 '{target}'
        kill $! && wait $!
        {tunlb} lab down {topology} >/dev/null
        ls /run/netns
    """
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        env=outside(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert answer in done.stdout
    assert done.stdout.endswith("}\n")
