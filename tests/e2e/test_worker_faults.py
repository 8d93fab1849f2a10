"""Workers that are killed, hang or die again and again, under a crowd of connections."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import (
    COMPILED,
    LabFactory,
    counters,
    eventually,
    serves,
    with_keys,
    with_lines,
    workers_of,
)
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.net import named_processes

pytestmark = pytest.mark.alone

CROWD = 1000 if COMPILED else 200
KILLS = 12
#: A retransmission of TCP takes 200 ms at least, and a second one 400 ms more.
ONE_RETRANSMISSION_MS = 550
WORKERS = pytest.mark.parametrize("workers", [1, 2])

#: A hook that does to its worker what the first byte of a datagram to port 9 says.
HOOK = """
import os
from tunlb.hook import Hook, Point, Verdict

class Spoiler(Hook):
    point = Point.PRE_ROUTING
    priority = 10

    def run(self, pkt, now):
        if pkt.proto == 17 and pkt.dport == 9:
            order = pkt.mem[pkt.l4 + 8]
            while order == ord("h"):
                pass
            if order == ord("d"):
                os._exit(9)
        return Verdict.ACCEPT
"""


@contextmanager
def crowd(lab: Lab, count: int = CROWD) -> Iterator[dict[str, Any]]:
    """Connections that speak all the time; after the block, what became of them."""
    found: dict[str, Any] = {}
    meter = clients.crowd(lab.client, lab.topology.vips.v4, 7, count)
    try:
        yield found
    finally:
        found.update(meter.stop())


def named(lab: Lab, name: str) -> int:
    """The pid of the process of that name in the director."""
    return eventually(lambda: named_processes(lab.director.ns).get(name, 0))


def order(lab: Lab, text: bytes) -> None:
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(text, (lab.topology.vips.v4, 9))


def kill(tunlb: TunlbProcess, pid: int) -> dict[str, object]:
    """Kill a worker, and wait until its successor forwards."""
    seen = len(tunlb.log_lines)
    os.kill(pid, signal.SIGKILL)
    died = tunlb.wait_event(("worker_died",), after=seen)
    assert died["pid"] == pid
    # How a dead keeper's child ended, nobody can tell.
    assert died.get("signal", "SIGKILL") == "SIGKILL"
    return tunlb.wait_event(("worker_started",), after=seen)


@WORKERS
def test_kill_9_again_and_again(lab: LabFactory, workers: int) -> None:
    """No connection breaks or waits for more than one retransmission, no counter is forgotten."""
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", workers=workers))
    chance = random.Random(workers)
    with crowd(made) as found:
        times = []
        for number in range(KILLS):
            time.sleep(1.1 + chance.random() * 0.2)
            started = kill(tunlb, workers_of(made)[number % workers])
            assert started["dropped"] == 0, started
            times.append(float(str(started["ms"])))
    assert found["broken"] == []
    assert found["worst_ms"] < ONE_RETRANSMISSION_MS
    assert sorted(times)[len(times) // 2] < 50, times
    counted = counters(tunlb)
    assert counted["CONN_NEW"] == CROWD
    assert counted["CONN_ADOPTED"] >= KILLS * CROWD / workers / 2
    # Every echo is a packet each way at least, and no worker took its count with it.
    assert counted["IPVS_IN_PACKETS"] >= found["echoes"]
    assert counted["IPVS_OUT_PACKETS"] >= found["echoes"]


@WORKERS
def test_a_stopped_worker_is_replaced(lab: LabFactory, workers: int) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", workers=workers))
    with crowd(made, 50) as found:
        seen, began = len(tunlb.log_lines), time.monotonic()
        os.kill(workers_of(made)[0], signal.SIGSTOP)
        assert tunlb.wait_event(("worker_hung",), after=seen)["worker"] == 0
        tunlb.wait_event(("worker_started",), after=seen)
        assert time.monotonic() - began < 2 if COMPILED else 3
    assert found["broken"] == []


def spoilt(lab: Lab, tmp_path: Path, workers: int = 1) -> TunlbProcess:
    """tunlb with the hook HOOK."""
    (tmp_path / "spoiler.py").write_text(HOOK)
    tmp_path.chmod(0o755)
    text = with_lines(
        with_keys(lab.topology.config_text, "tunlb", workers=workers),
        {"kind": "hook", "point": "pre_routing", "call": "spoiler:Spoiler", "priority": 10},
    )
    from tunlb.lab.process import environment

    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    return lab.start_tunlb(text, env={"PYTHONPATH": path})


def test_a_hook_that_never_returns(lab: LabFactory, tmp_path: Path) -> None:
    made = lab("one-arm")
    tunlb = spoilt(made, tmp_path)
    with crowd(made, 50) as found:
        time.sleep(1.1)
        seen, began = len(tunlb.log_lines), time.monotonic()
        order(made, b"h")
        tunlb.wait_event(("worker_hung",), after=seen)
        tunlb.wait_event(("worker_started",), after=seen)
        assert time.monotonic() - began < 2.2 if COMPILED else 3
    assert found["broken"] == []
    assert serves(made)


def test_a_worker_that_dies_of_what_it_reads(lab: LabFactory, tmp_path: Path) -> None:
    """A crash loop is slowed down and reported, and ends with its cause."""
    made = lab("one-arm")
    tunlb = spoilt(made, tmp_path)
    with clients.connection(made.client, made.topology.vips.v4, 7, timeout=20) as conn:
        waits = []
        for _ in range(5):
            eventually(lambda: 0 in workers_of(made))
            seen = len(tunlb.log_lines)
            order(made, b"d")
            died = tunlb.wait_event(("worker_died",), after=seen)
            assert died["status"] == 9
            waits.append(float(str(died["retry_s"])))
            tunlb.wait_event(("worker_started",), after=seen, timeout=15)
        assert waits[0] == 0
        assert waits == sorted(waits)
        assert waits[-1] >= 0.4
        deaths = [e["restarts"] for e in tunlb.events if e["event"] == "worker_died"]
        assert deaths == [1, 2, 3, 4, 5]
        assert conn.echo(b"still here") == b"still here"
    assert serves(made)
    assert tunlb.stop() == 0


def test_the_spare_and_the_keeper_are_replaced(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    with crowd(made, 100) as found:
        time.sleep(1.1)
        os.kill(named(made, "tunlb-spare-0"), signal.SIGKILL)
        tunlb.wait_event(("spare_died",))
        os.kill(named(made, "tunlb-keeper"), signal.SIGKILL)
        tunlb.wait_event(("keeper_died",))
        tunlb.wait_event(("keeper_started",))
        named(made, "tunlb-spare-0")
        kill(tunlb, workers_of(made)[0])
        # And with no spare that could be taken:
        os.kill(named(made, "tunlb-keeper"), signal.SIGKILL)
        spare = named(made, "tunlb-spare-0")
        os.kill(spare, signal.SIGKILL)
        kill(tunlb, workers_of(made)[0])
    assert found["broken"] == []
    assert counters(tunlb)["CONN_NEW"] == 100


def test_a_reload_while_a_worker_is_down(lab: LabFactory) -> None:
    """Its successor starts with the new configuration."""
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", workers=2))
    text = with_keys(made.topology.config_text, "tunlb", workers=2)
    with crowd(made, 100) as found:
        time.sleep(1.1)
        for number in range(6):
            os.kill(workers_of(made)[number % 2], signal.SIGKILL)
            answer = tunlb.reload(with_keys(text, "service", "web-v4", drain_s=10 + number))
            assert answer["event"] == "reloaded"
            eventually(lambda: len(workers_of(made)) == 2)
            time.sleep(1.1)
    assert found["broken"] == []
    assert serves(made)
    assert tunlb.stop() == 0
