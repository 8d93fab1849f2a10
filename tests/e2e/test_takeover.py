"""The supervisor is killed, or the program replaced: workers go on, and somebody takes over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tunlb as package
from tests.e2e.kit import (
    COMPILED,
    LabFactory,
    counters_of,
    eventually,
    serves,
    stopped,
    with_keys,
    with_lines,
    workers_of,
)
from tests.e2e.test_worker_faults import crowd, named
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.host import ip
from tunlb.lab.net import processes_in
from tunlb.lab.process import TunlbError, environment

WORKERS = pytest.mark.parametrize("workers", [1, 2])
PULSE = 2000 if COMPILED else 300  #: datagrams a second


def configured(lab: Lab, workers: int) -> str:
    return with_keys(lab.topology.config_text, "tunlb", workers=workers)


def kill_supervisor(tunlb: TunlbProcess) -> None:
    os.kill(tunlb.pid, signal.SIGKILL)
    tunlb.process.wait()


def command(lab: Lab, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A `tunlb` command in the director, with the lab's configuration."""
    config = str(lab.dir / "tunlb.jsonl")
    return subprocess.run(
        lab.director.argv([sys.executable, "-m", "tunlb", *words, "-c", config]),
        env=environment({"TUNLB_CONTROL": str(lab.dir / "control.sock"), **env}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@WORKERS
@pytest.mark.parametrize("topology", ["one-arm", "two-arm", "tun"])
def test_the_supervisor_is_killed(lab: LabFactory, topology: str, workers: int) -> None:
    """Workers forward without it; the next one takes devices, tables and counters over."""
    made = lab(topology)
    rules = ip("-n", made.director.ns, "rule", "show")
    first = made.start_tunlb(configured(made, workers))
    with crowd(made, 200) as found:
        before = workers_of(made)
        kill_supervisor(first)
        time.sleep(1)
        assert serves(made)
        assert workers_of(made) == before
        second = made.start_tunlb(configured(made, workers))
        assert second.wait_event(("taken_over",))["conns"] != 0
        assert set(workers_of(made).values()).isdisjoint(before.values())
    assert found["broken"] == []
    event = stopped(second)
    assert counters_of(event)["CONN_NEW"] >= 200
    # Nothing is left of either of them.
    eventually(lambda: not processes_in([made.director.ns]))
    assert "lb" not in ip("-n", made.director.ns, "-o", "link", "show", "type", "tun")
    assert ip("-n", made.director.ns, "rule", "show") == rules


def test_a_dead_supervisors_worker_dies_too(lab: LabFactory) -> None:
    """Its table is with the keeper: the next supervisor goes on with it."""
    made = lab("one-arm")
    first = made.start_tunlb()
    with crowd(made, 100) as found:
        kill_supervisor(first)
        os.kill(workers_of(made)[0], signal.SIGKILL)
        second = made.start_tunlb()
    assert found["broken"] == []
    assert counters_of(stopped(second))["CONN_NEW"] == 100


def test_a_second_tunlb_is_refused(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    done = command(made, "run")
    assert done.returncode == 78
    assert f"tunlb already runs (pid {tunlb.pid})" in done.stderr
    assert serves(made)
    assert tunlb.stop() == 0


def test_an_orphaned_keeper_ends_its_workers(lab: LabFactory) -> None:
    made = lab("one-arm")
    first = made.start_tunlb()
    keeper = named(made, "tunlb-keeper")
    kill_supervisor(first)
    assert serves(made)
    os.kill(keeper, signal.SIGTERM)
    eventually(lambda: not [p for p in processes_in([made.director.ns]) if p != first.pid])
    assert made.start_tunlb().stop() == 0


def test_workers_without_anybody(lab: LabFactory) -> None:
    """Supervisor and keeper are gone: they forward, and who comes is told who has the device."""
    made = lab("one-arm")
    first = made.start_tunlb()
    keeper = named(made, "tunlb-keeper")
    with clients.connection(made.client, made.topology.vips.v4, 7) as conn:
        os.kill(first.pid, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        assert conn.echo(b"still") == b"still"
        [pid] = workers_of(made).values()
        with pytest.raises(TunlbError, match=rf"pid {pid} \(tunlb-worker-0\)"):
            made.start_tunlb()
        assert conn.echo(b"here") == b"here"
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not workers_of(made))
    second = made.start_tunlb()
    assert serves(made)
    assert second.stop() == 0


@WORKERS
@pytest.mark.parametrize("topology", ["one-arm", "two-arm", "tun"])
def test_the_program_is_replaced_under_load(lab: LabFactory, topology: str, workers: int) -> None:
    """Same pid, same connections, and not one datagram of a stream is lost."""
    made = lab(topology)
    tunlb = made.start_tunlb(configured(made, workers))
    with crowd(made, 100) as found:
        pulse = clients.pulse(made.client, made.topology.vips.v4, 7, rate=PULSE)
        for _ in range(3):
            time.sleep(0.5)
            before, seen = workers_of(made), len(tunlb.log_lines)
            os.kill(tunlb.pid, signal.SIGUSR2)
            event = tunlb.wait_event(("upgraded", "upgrade_refused"), after=seen, timeout=30)
            assert event["event"] == "upgraded", event
            assert set(workers_of(made).values()).isdisjoint(before.values())
        pulsed = pulse.stop()
    assert found["broken"] == []
    assert pulsed["sent"] > PULSE
    assert pulsed["lost"] == 0, pulsed
    assert serves(made)
    assert counters_of(stopped(tunlb))["CONN_NEW"] >= 100


def test_the_verb_upgrade(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    with clients.connection(made.client, made.topology.vips.v4, 7) as conn:
        done = command(made, "upgrade")
        assert (done.returncode, done.stderr) == (0, ""), done
        assert f"pid {tunlb.pid}" in done.stdout
        assert conn.echo(b"still here") == b"still here"
    # With a file that the new program would not start with, it stays what it is.
    text = made.topology.config_text
    (made.dir / "tunlb.jsonl").write_text(with_lines(text, {"kind": "nonsense"}))
    os.kill(tunlb.pid, signal.SIGUSR2)
    assert '"nonsense" is not a kind' in str(tunlb.wait_event(("upgrade_refused",))["error"])
    (made.dir / "tunlb.jsonl").write_text(text)
    assert serves(made)
    assert tunlb.stop() == 0
    done = command(made, "upgrade")
    assert done.returncode == 1
    assert "tunlb run" in done.stderr


def test_a_table_of_another_layout_is_refused(lab: LabFactory, tmp_path: Path) -> None:
    """Neither an upgrade nor a takeover reads what another version wrote otherwise."""
    source = Path(package.__file__).parent
    tree = shutil.copytree(source, tmp_path / "tunlb", ignore=shutil.ignore_patterns("*.pyc"))
    os.chmod(tmp_path, 0o755)
    made = lab("one-arm")
    # The current directory would come first, and is this tree.
    env = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    tunlb = made.start_tunlb(env=env)
    shared = tree / "shared.py"
    text = shared.read_text()
    assert "\nLAYOUT = 3\n" in text
    shared.write_text(text.replace("\nLAYOUT = 3\n", "\nLAYOUT = 4\n"))
    with clients.connection(made.client, made.topology.vips.v4, 7) as conn:
        os.kill(tunlb.pid, signal.SIGUSR2)
        refused = tunlb.wait_event(("upgrade_refused",), timeout=30)
        assert "in layout 3" in str(refused["error"])
        assert "reads layout 4" in str(refused["error"])
        assert conn.echo(b"after the upgrade") == b"after the upgrade"
        kill_supervisor(tunlb)
        done = command(made, "run", **env)
        assert done.returncode == 78
        assert "in layout 3" in done.stderr
        keeper = named(made, "tunlb-keeper")
        assert f"kill {keeper}" in done.stderr
        assert conn.echo(b"after the takeover") == b"after the takeover"
        # The program that it was written by can.
        shared.write_text(text)
        again = made.start_tunlb(env=env)
        assert conn.echo(b"in good hands") == b"in good hands"
    assert again.stop() == 0
