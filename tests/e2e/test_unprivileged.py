"""`tunlb run` without a capability, on what `tunlb setup` has prepared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tunlb as package
from tests.e2e import as_user
from tests.e2e.kit import (
    COMPILED,
    LabFactory,
    counters,
    serves,
    with_keys,
    workers_of,
)
from tests.e2e.test_worker_faults import crowd
from tunlb.lab import Lab, TunlbProcess
from tunlb.lab.net import processes_in
from tunlb.lab.process import environment
from tunlb.privileges import status

NOBODY = 65534


def start(lab: Lab, folder: Path, text: str) -> TunlbProcess:
    """`tunlb run` as the owner of the devices."""
    config = folder / "tunlb.jsonl"
    config.write_text(text)
    folder.chmod(0o777)
    needed = {sys.base_prefix, sys.prefix, str(Path(package.__file__).parents[1]), str(folder)}
    run = [sys.executable, "-m", "tunlb", "run", "-c", str(config)]
    argv = [sys.executable, as_user.__file__, str(NOBODY), *sorted(needed), "--", *run]
    env = environment({"TUNLB_CONTROL": str(folder / "control.sock")})
    tunlb = TunlbProcess(lab.director.argv(argv), config, env=env)
    lab.tunlbs.append(tunlb)
    tunlb.wait_event(("ready",))
    lab.after_ready()
    return tunlb


def prepared(lab: Lab, folder: Path, text: str, verb: str) -> None:
    config = folder / "setup.jsonl"
    config.write_text(text)
    env = environment({"TUNLB_CONTROL": str(folder / "control.sock")})
    argv = [sys.executable, "-m", "tunlb", verb, "-c", str(config)]
    done = subprocess.run(
        lab.director.argv(argv), env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("topology", ["one-arm", "two-arm", "tun"])
def test_the_owner_needs_no_capability(lab: LabFactory, topology: str, tmp_path: Path) -> None:
    """Two workers, reloads, a killed worker and an upgrade included; no eBPF, so by hand-over."""
    made = lab(topology)
    text = with_keys(made.topology.config_text, "tunlb", workers=2)
    prepared(made, tmp_path, text, "setup")
    tunlb = start(made, tmp_path, text)
    ready = tunlb.wait_event(("ready",))
    assert (ready["workers"], ready["user"], ready["steering"]) == (2, str(NOBODY), False)
    assert "steering_unavailable" in [event["event"] for event in tunlb.events]
    for pid in processes_in([made.director.ns]):
        may = status(pid)
        assert set(may.uids) == {NOBODY}
        assert may.effective == may.permitted == may.ambient == 0
    assert all(status(pid).no_new_privs for pid in workers_of(made).values())
    with crowd(made, 200 if COMPILED else 50) as held:
        assert serves(made)
        assert tunlb.reload(with_keys(text, "service", "web-v4", drain_s=7))["event"] == "reloaded"
        seen = len(tunlb.log_lines)
        os.kill(workers_of(made)[0], signal.SIGKILL)
        tunlb.wait_event(("worker_started",), after=seen)
        os.kill(tunlb.pid, signal.SIGUSR2)
        tunlb.wait_event(("upgraded",), after=seen, timeout=30)
        assert serves(made)
    assert held["broken"] == []
    found = counters(tunlb)
    assert found["HANDED_OVER"] > 0
    assert found["HANDED_OVER"] == found["HANDED_IN"]
    prepared(made, tmp_path, text, "teardown")
