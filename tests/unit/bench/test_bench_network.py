"""The bench's network as data, what is read of processes, and the helpers in C."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tunlb.bench import network, proc, tools
from tunlb.bench.network import WIRING, Child, Pins, Standing, apart, dests
from tunlb.bench.samples import BenchError
from tunlb.lab.host import Host
from tunlb.lab.net import host_commands, link_commands
from tunlb.lab.topology import HostSpec


class Here(Host):
    """Commands run where the tests run."""

    def __init__(self) -> None:
        super().__init__(HostSpec(name="here", role="peer"), "tunlb-test-here")

    def argv(self, command: Sequence[str]) -> list[str]:
        return list(command)


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


# ---- the network ---------------------------------------------------------------------------------


def test_the_wiring() -> None:
    assert link_commands(WIRING, "x") == [
        "link add to-client type veth peer name eth0 netns tunlb-x-client",
        "link add to-server type veth peer name eth0 netns tunlb-x-server",
        "link add to-direct type veth peer name eth1 netns tunlb-x-server",
        "link add br-out type bridge",
        "link set to-client master br-out",
        "link set to-direct master br-out",
        "link set br-out up",
        "link add br-in type bridge",
        "link set to-server master br-in",
        "link set br-in up",
        "link set to-client up",
        "link set to-server up",
        "link set to-direct up",
    ]


def test_the_server_has_every_dest() -> None:
    [server] = [host for host in WIRING.hosts if host.name == "server"]
    commands = host_commands(server, ["eth0", "eth1"])
    assert [line for line in commands if line.startswith("addr")] == [
        f"addr add {address}/24 dev eth0" for address in network.SERVERS
    ]


def test_names_of_devices_fit() -> None:
    names = [name for link in WIRING.links for name in (link.dev, link.director_dev)]
    assert max(map(len, [*names, *network.TAPS.values()])) <= 15


def test_every_port_has_one_meaning() -> None:
    for ports in (network.TCP_PORTS, network.UDP_PORTS):
        assert len(set(ports)) == len(ports)


@pytest.mark.parametrize(
    ("proto", "port", "count"),
    [("tcp", network.CRR_PORT, 4), ("udp", network.UDP_PORT, 4), ("udp", network.UDP_BULK_PORT, 1)],
    ids=["tcp", "udp", "iperf3 answers from one address"],
)
def test_dests_of_a_port(proto: str, port: int, count: int) -> None:
    assert dests(proto, port) == network.SERVERS[:count]


@pytest.mark.parametrize(
    ("pins", "host", "prefix"),
    [
        (Pins(), "director", ()),
        (Pins("1", "0"), "director", ("taskset", "-c", "1")),
        (Pins("3", "0,1,2"), "client", ("taskset", "-c", "0,1,2")),
    ],
    ids=["not pinned", "subject", "peer"],
)
def test_pins(pins: Pins, host: str, prefix: tuple[str, ...]) -> None:
    assert pins.of(host) == prefix
    spec = HostSpec(name=host, role="peer")
    inside = ["ip", "netns", "exec", "ns", *prefix, "true"]
    assert Host(spec, "ns", pins.of(host)).argv(["true"]) == inside


@pytest.mark.parametrize(
    ("cpus", "subject", "peers"), [({0, 1}, "1", "0"), ({0, 2, 5}, "5", "0,2")], ids=str
)
def test_the_subject_gets_a_cpu_of_its_own(
    cpus: set[int], subject: str, peers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    assert apart() == Pins(subject, peers)


def test_one_cpu_cannot_be_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(BenchError, match="two CPUs"):
        apart()


def test_only_one_run_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "STATE_DIR", tmp_path / "tunlb" / "lab")
    with network.alone("a"):
        with network.alone("b"):
            pass
        with pytest.raises(BenchError, match="tunlb-a-"), network.alone("a"):
            pass
    with network.alone("a"):
        pass
    assert list((tmp_path / "tunlb").iterdir()) == []


def test_a_lock_that_its_owner_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened the file before it was removed must not share it with who made it anew."""
    path = tmp_path / "bench-a.lock"
    taken = network._locked(path)
    assert taken is not None
    flock = fcntl.flock

    def late(file: Any, operation: int) -> None:
        path.unlink()
        flock(file, operation)

    taken.close()
    monkeypatch.setattr(fcntl, "flock", late)
    assert network._locked(path) is None


# ---- who stands there ----------------------------------------------------------------------------

LINKS = [
    {"ifname": name, "stats64": {"rx": {"packets": 7}, "tx": {"packets": count}}}
    for name, count in (("br-out", 1), ("to-client", 20), ("to-server", 300), ("to-direct", 4000))
]


@pytest.mark.parametrize(
    ("more", "count"),
    [({}, 320), ({"devices": ("to-server",)}, 300)],
    ids=["both ways", "answers pass by"],
)
def test_frames_that_the_subject_moved(
    more: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "ip", lambda *_: json.dumps(LINKS))
    assert Standing(Here(), "10.0.0.1", **more).packets() == count


def test_the_kernel_has_no_cpu_time_of_its_own() -> None:
    standing = Standing(Here(), "10.0.0.1", processes=False)
    assert (standing.cpu_s(), standing.rss_bytes()) == (None, None)


def test_cpu_and_memory_are_those_of_all_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "processes_in", lambda _: [os.getpid(), 2**22 + 1])
    standing = Standing(Here(), "10.0.0.1")
    cpu_s, memory = standing.cpu_s(), standing.rss_bytes()
    assert cpu_s is not None
    used = sum(os.times()[:4])
    assert used - 0.5 < cpu_s <= used + 0.05
    assert memory is not None
    assert memory > 10_000_000


# ---- programs ------------------------------------------------------------------------------------


def test_a_child_is_waited_for_and_ended(tmp_path: Path) -> None:
    text = "import time; print('almost'); print('ready 1', flush=True); time.sleep(60)"
    child = Child(Here(), python(text), tmp_path / "log")
    assert child.running
    assert child.wait_for("ready") == "ready 1\n"
    assert child.stop() == child.stop() == "almost\nready 1\n"
    assert not child.running


@pytest.mark.parametrize(
    ("text", "timeout", "message"),
    [
        ("raise SystemExit(3)", 15.0, r"ended \(status 3\) before it said 'ready'"),
        ("import time; time.sleep(60)", 0.0, "did not say 'ready'"),
    ],
    ids=["ended", "silent"],
)
def test_a_child_that_never_is_ready(
    text: str, timeout: float, message: str, tmp_path: Path
) -> None:
    child = Child(Here(), python(text), tmp_path / "log")
    with pytest.raises(BenchError, match=message):
        child.wait_for("ready", timeout)
    child.stop()


def test_half_a_line_is_no_sign(tmp_path: Path) -> None:
    child = Child(Here(), python("print('rea', end=''); print('dy', end='')"), tmp_path / "log")
    with pytest.raises(BenchError, match="ended"):
        child.wait_for("ready")


# ---- /proc ---------------------------------------------------------------------------------------


def test_stolen_time() -> None:
    before = proc.ticks("cpu  100 0 50 800 10 0 5 35 0 0\ncpu0 1 2\n")
    after = proc.ticks("cpu  140 0 60 820 10 0 5 65 0 0\n")
    assert before == (1000, 35)
    assert after.steal_share(before) == pytest.approx(0.3)
    assert after.steal_share(after) == 0.0


def test_proc_of_this_machine() -> None:
    assert proc.ticks().total > 0
    assert proc.open_files_max(os.getpid()) > 0
    assert proc.open_files_max(2**22 + 1) == 0


# ---- helpers -------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a source, a compiler that copies it, and a cache."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "crr.c").write_text("one")
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text(
        '#!/bin/sh\necho run >>"$0.calls"; while [ "$1" != -o ]; do shift; done\ncp "$3" "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(tools, "sources", lambda: tmp_path / "bench")
    monkeypatch.setattr(tools, "cache", lambda: tmp_path / "cache")
    monkeypatch.setenv("PATH", f"{compiler.parent}:/usr/bin:/bin")
    return tmp_path


def test_a_helper_is_compiled_when_its_source_changes(place: Path) -> None:
    for text, runs in (("one", 1), ("one", 1), ("two", 2)):
        (place / "bench" / "crr.c").write_text(text)
        assert tools.build(("crr",)).path("crr").read_text() == text
        assert (place / "bin" / "cc.calls").read_text().count("run") == runs
    assert sorted(path.name for path in (place / "cache").iterdir()) == ["crr", "crr.made-of"]


def test_a_helper_that_does_not_compile_is_named(place: Path) -> None:
    (place / "bin" / "cc").write_text("#!/bin/sh\necho 'crr.c:1: no' >&2; exit 1\n")
    helpers = tools.build(("crr", "hold"))
    assert "`crr` is not there" in helpers.missing["crr"]
    assert "crr.c:1: no" in helpers.missing["crr"]
    assert "hold.c: No such file" in helpers.missing["hold"]
    with pytest.raises(BenchError, match="refuses"):
        helpers.path("crr")


def test_without_a_compiler(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "which", lambda _: None)
    assert tools.build(("crr",)).missing["crr"].endswith("install the package gcc")


def test_without_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "sources", lambda: None)
    assert "share/tunlb/bench" in tools.build(("crr",)).missing["crr"]


def test_helpers_of_a_tree_are_built_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tools.sources() is not None
    monkeypatch.setattr(tools, "_tree", lambda: tmp_path)
    home = {"XDG_CACHE_HOME": "/somewhere"}
    assert tools.cache(home) == Path("/somewhere/tunlb/bench")
    (tmp_path / "pyproject.toml").touch()
    assert tools.cache(home) == tmp_path / "build" / "bench"


def test_sources_of_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_tree", lambda: tmp_path / "nowhere")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert tools.sources() is None
    share = tmp_path / "share" / "tunlb" / "bench"
    share.mkdir(parents=True)
    (share / "reflector.c").touch()
    assert tools.sources() == share


def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.missing("wrk") == "the command `wrk` is not there: install the package wrk"
    (tmp_path / "wrk").touch(0o755)
    assert tools.missing("wrk") is None


def test_every_source_in_the_tree_is_a_helper() -> None:
    folder = tools.sources()
    assert folder is not None
    assert sorted(path.stem for path in folder.glob("*.c")) == sorted(tools.HELPERS)


def test_a_slow_compiler_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("cc", 60)

    monkeypatch.setattr(subprocess, "run", late)
    assert "more than 60 s" in tools.build(("crr",)).missing["crr"]
