"""`tunlb bench` as a user runs it. What it measures is not looked at: this machine is busy."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import COMPILED, eventually
from tunlb.bench import rivals, tools
from tunlb.bench.loads import LOADS
from tunlb.bench.network import CRR_PORT, HOSTS, SERVERS, Network, Pins
from tunlb.bench.samples import BenchError, read
from tunlb.bench.subjects import SUBJECTS, TUNNELS, Subject
from tunlb.lab.host import NETNS_DIR
from tunlb.lab.net import STATE_DIR, namespace, processes_in, remove
from tunlb.lab.process import environment

NAME = f"bench-{os.getpid()}"  # of what the command builds
HERE = f"bench-{os.getpid()}-here"  # of what these tests build themselves
BENCH = [sys.executable, "-m", "tunlb", "bench"]
NO_BALANCERS = ("direct", "reflector", "reflector-mtu")
SHORT = ["--name", NAME, "--rounds", "1", "--seconds", "0.3"]

pytestmark = pytest.mark.usefixtures("privileged")


@pytest.fixture(autouse=True)
def _removed() -> Iterator[None]:
    """Also when a test fails."""
    yield
    remove(NAME, HOSTS)


def left() -> list[str]:
    """Namespaces, and the folder for configurations and logs."""
    ours = {namespace(NAME, host) for host in HOSTS}
    names = os.listdir(NETNS_DIR) if NETNS_DIR.exists() else []
    scratch = STATE_DIR.parent / f"bench-{NAME}"
    return [name for name in names if name in ours] + ([str(scratch)] if scratch.exists() else [])


def bench(
    *words: str, env: dict[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENCH, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(env),
    )


def possible(subjects: Sequence[Subject] = SUBJECTS) -> list[Subject]:
    """Who can stand on this machine."""
    helpers = tools.build()
    return [s for s in subjects if not (helpers.missing.keys() & s.needs) and s.missing() is None]


# ---- everybody, one by one -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    made = Network(HERE, tools.build(), Pins())
    with made.up():
        yield made


def addresses(network: Network) -> list[str]:
    """Every address in the director, by device."""
    lines = network.director.run(["ip", "-o", "-4", "addr", "show"]).stdout.splitlines()
    return [" ".join(line.split()[1:4]) for line in lines]


def state(network: Network) -> tuple[object, ...]:
    """What a turn changes, and has to take back."""
    client = network.server.run(["ip", "-o", "-4", "addr", "show"]).stdout
    forward = network.director.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout
    links = network.director.run(["ip", "-br", "link", "show"]).stdout
    names = sorted((line.split()[0], line.split()[1]) for line in links.splitlines())
    return addresses(network), client, forward, names, processes_in([network.director.ns])


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_subject_takes_its_place_and_leaves_it(subject: Subject, network: Network) -> None:
    if subject not in possible():
        pytest.skip(f"{subject.name}: {subject.missing()}")
    before = state(network)
    with subject.stand(network) as standing:
        network.prove(standing.target, sorted(subject.protos))
        packets = standing.packets()
        assert packets is not None
        network.prove(standing.target, ["tcp"])
        moved = standing.packets()
        assert moved is not None
        assert moved - packets >= 24 * 3
        kernel = subject.name in ("direct", "nftables", "nftables-snat")
        assert (standing.cpu_s() is None) is kernel
        memory = standing.rss_bytes()
        assert memory is None if kernel else memory
    network.clear()
    assert state(network) == before


@pytest.mark.parametrize(
    "subject",
    [subject for subject in SUBJECTS if subject.name not in NO_BALANCERS],
    ids=lambda subject: subject.name,
)
def test_a_balancer_uses_every_dest(subject: Subject, network: Network) -> None:
    if subject not in possible():
        pytest.skip(f"{subject.name}: {subject.missing()}")
    met = set()
    with subject.stand(network) as standing:
        network.prove(standing.target, ["tcp"])
        with network.server.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", CRR_PORT))
            listener.listen(64)
            listener.settimeout(3)
            for _ in range(32):
                with network.client.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                    client.settimeout(3)
                    client.connect((standing.target, CRR_PORT))
                    with listener.accept()[0] as server:
                        met.add(server.getsockname()[0])
    network.clear()
    # With dr and tunnels the server sees the VIP, whichever dest it is. snat has no dests: the
    # client calls the server.
    unchanged = subject.name in ("dr", "snat", *TUNNELS)
    assert met == ({standing.target} if unchanged else set(SERVERS))


def received(network: Network) -> tuple[int, int, int]:
    """Frames and bytes at the server's device, and TCP segments with a wrong checksum."""
    script = "cat /sys/class/net/eth0/statistics/rx_packets /sys/class/net/eth0/statistics/rx_bytes"
    packets, size = network.server.run(["sh", "-c", script]).stdout.split()
    names, values = (
        line.split()[1:]
        for line in network.server.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
        if line.startswith("Tcp:")
    )
    wrong = dict(zip(names, values, strict=True))["InCsumErrors"]
    return int(packets), int(size), int(wrong)


@pytest.mark.parametrize("name", ["reflector-mtu", *TUNNELS])
def test_bulk_reaches_the_server_in_frames_of_the_mtu(name: str, network: Network) -> None:
    """A tunnel and what is its limit have frames of one size, as large as they may be."""
    (subject,) = [each for each in SUBJECTS if each.name == name]
    if subject not in possible():
        pytest.skip(f"{name}: {subject.missing()}")
    sent = os.urandom(3_000_000)
    with subject.stand(network) as standing, contextlib.ExitStack() as stack:
        network.prove(standing.target, ["tcp"])
        before = received(network)
        stream = socket.AF_INET, socket.SOCK_STREAM
        listener = stack.enter_context(network.server.socket(*stream))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", CRR_PORT))
        listener.listen(1)
        client = stack.enter_context(network.client.socket(*stream))
        for each in (listener, client):
            each.settimeout(20)
        client.connect((standing.target, CRR_PORT))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(20)
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        came = bytearray()
        while len(came) < len(sent):
            came += server.recv(1 << 20)
        sender.join()
        way = network.client.run(["ip", "route", "get", standing.target]).stdout
        packets, size, wrong = (
            now - then for now, then in zip(received(network), before, strict=True)
        )
    network.clear()
    assert came == sent
    assert wrong == 0
    assert "mtu" not in way, "the client was told that something was too big"
    assert 1300 < size / packets <= 1514


def test_nobody_there_is_found_out_before_a_load(network: Network) -> None:
    with (
        network.kernel_on_bridges(vip=False, forward=True),
        pytest.raises(BenchError, match="no connection comes through"),
    ):
        network.prove("10.9.2.99", ["tcp"])


def test_haproxy_likes_its_configuration(tmp_path: Path) -> None:
    if rivals.haproxy_missing():
        pytest.skip("no haproxy")
    config = tmp_path / "haproxy.cfg"
    config.write_text(rivals.haproxy_config())
    argv = [*rivals.haproxy_argv(config), "-c"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_over_all_subjects(tmp_path: Path) -> None:
    out = tmp_path / "out"
    loads = ["pps", "crr"]
    done = bench(*SHORT, "--loads", ",".join(loads), "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert left() == []
    head, samples = read(out / "raw.jsonl")
    wanted = [
        (load.name, subject.name)
        for load in LOADS
        if load.name in loads
        for subject in possible()
        if subject.takes(load.name, load.proto)
    ]
    assert [(sample.load, sample.subject) for sample in samples] == wanted
    assert head.loads == tuple(loads)
    assert {subject.name for subject in SUBJECTS} == {*head.subjects, *head.skipped}
    assert all(sample.value > 0 for sample in samples)
    assert all(0 <= sample.details["steal_share"] <= 1 for sample in samples)
    assert len(list(out.iterdir())) > 1

    again = tmp_path / "again"
    done = bench("--report", str(out / "raw.jsonl"), "--out", str(again))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in again.iterdir()} == {
        path.name for path in out.iterdir() if path.name != "raw.jsonl"
    }


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_nothing_but_its_data(
    how: signal.Signals, tmp_path: Path
) -> None:
    mode = "fnat" if COMPILED else "fnat-uncompiled"
    words = ["--subjects", f"direct,{mode}", "--loads", "crr", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*BENCH, *SHORT, "--rounds", "9", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[1/18]"):
                break
        director = namespace(NAME, "director")
        eventually(lambda: len(processes_in([director])) > 1)
        process.send_signal(how)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + how
    assert left() == []
    raw = tmp_path / "out" / "raw.jsonl"
    assert f"samples are in {raw}" in err
    assert bench("--report", str(raw)).returncode == 0


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    words = ["--subjects", "direct", "--loads", "crr"]
    process = subprocess.Popen(
        [*BENCH, *SHORT, *words, "--rounds", "9", "--out", str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[1/9]"):
            break
    process.kill()
    process.communicate()
    assert len(left()) == 4
    done = bench(*SHORT, *words, "--out", str(tmp_path / "next"))
    assert done.returncode == 0, done.stderr
    assert left() == []


def test_two_runs_of_one_name_do_not_meet(network: Network, tmp_path: Path) -> None:
    words = ["--subjects", "direct", "--loads", "crr", "--out", str(tmp_path / "out")]
    done = bench("--name", HERE, *words)
    assert done.returncode == 1
    assert f"another run has the namespaces tunlb-{HERE}-*" in done.stderr
    assert network.director.run(["true"]).returncode == 0
    assert not (tmp_path / "out").exists()


def test_a_missing_program_is_named_and_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("ip", "unshare", "sh", "cc", "as", "ld", "cat", "mount", "true"):
        if (found := shutil.which(program)) is not None:
            (folder / program).symlink_to(found)
    words = ["--subjects", "direct", "--loads", "bulk,crr", "--out", str(tmp_path / "out")]
    done = bench(*SHORT, *words, env={"PATH": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    why = "the command `iperf3` is not there: install the package iperf3"
    assert f"skipped: bulk: {why}" in done.stdout
    head, samples = read(tmp_path / "out" / "raw.jsonl")
    assert head.skipped == {"bulk": why}
    assert [sample.load for sample in samples] == ["crr"]


def test_a_subject_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    """An haproxy that ends at once."""
    fake = tmp_path / "haproxy"
    fake.write_text("#!/bin/sh\necho 'no, thank you'\nexit 1\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ["--subjects", "direct,haproxy", "--loads", "crr", "--out", str(tmp_path / "out")]
    done = bench(*SHORT, *words, env={"PATH": path})
    assert done.returncode == 1
    assert "FAILED: it ended at once" in done.stdout
    assert "no, thank you" in done.stdout
    lines = (tmp_path / "out" / "raw.jsonl").read_text().splitlines()
    kinds: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [line["kind"] for line in kinds] == ["head", "sample", "skipped"]
    assert kinds[2]["name"] == "haproxy/crr"


@pytest.mark.usefixtures("unprivileged")
def test_without_root(tmp_path: Path) -> None:
    words = ["--subjects", "direct,reflector,nginx", "--loads", "crr"]
    env = {name: value for name, value in os.environ.items() if name != "TUNLB_ROOTLESS"}
    done = subprocess.run(
        [*BENCH, "--rootless", *SHORT, *words, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**environment(), **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, samples = read(tmp_path / "out" / "raw.jsonl")
    assert {sample.subject for sample in samples} >= {"direct", "reflector"}


def test_the_list() -> None:
    done = bench("--list")
    assert done.returncode == 0
    for what in (*SUBJECTS, *LOADS):
        assert f"  {what.name} " in done.stdout
