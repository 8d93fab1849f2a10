"""How long a worker's death is felt: kill -9, again and again, under a crowd of connections.

In the lab `one-arm`: 1,000 established TCP connections through the VIP, each of which speaks every
second, and datagrams of one flow, a thousand a second. A worker, each in its turn, is killed at a
random moment; the longest silence of the datagrams around that moment is the recovery time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

GOAL_MS = 50.0
GAP_S = 1.2  #: from one kill to the next, at least


@dataclass(frozen=True)
class Found:
    """What the clients and the log say of a run."""

    silences_ms: list[float]  #: one for each kill: the longest silence that began around it
    recoveries_ms: list[float]  #: from a death noticed to the successor's forwarding, as logged
    crowd: dict[str, Any]
    lost: int
    sent: int


def configured(text: str, workers: int) -> str:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        if line["kind"] == "tunlb":
            line["workers"] = workers
    return "".join(json.dumps(line) + "\n" for line in lines)


def silence_at(silences: Sequence[Sequence[float]], at: float, rate: int) -> float:
    """ms of the longest silence that overlaps the 0.3 s after a kill; at least one interval."""
    found = [
        length
        for length, begun in silences
        if begun < at + 0.3 and begun + length / 1000 > at - 0.002
    ]
    return max(found, default=1000 / rate)


def measure(kills: int, workers: int, connections: int, rate: int, say: Any) -> Found:
    from tunlb.lab import TOPOLOGIES, Lab, clients
    from tunlb.lab.net import workers_in

    chance = random.Random(1)
    with Lab(TOPOLOGIES["one-arm"], f"recovery-{os.getpid()}") as lab:
        tunlb = lab.start_tunlb(configured(lab.topology.config_text, workers))
        vip = lab.topology.vips.v4
        crowd = clients.crowd(lab.client, vip, 7, connections)
        pulse = clients.pulse(lab.client, vip, 7, rate=rate)
        moments = []
        try:
            for number in range(kills):
                time.sleep(GAP_S + chance.random() * 0.2)
                worker = number % workers
                seen = len(tunlb.log_lines)
                pids = workers_in(lab.director.ns)
                moments.append(time.monotonic())
                os.kill(pids[worker], signal.SIGKILL)
                tunlb.wait_event(("worker_started",), after=seen)
                if (number + 1) % 10 == 0:
                    say(f"{number + 1} of {kills} kills")
            time.sleep(1)
        finally:
            pulsed, crowded = pulse.stop(), crowd.stop()
            tunlb.stop()
        started = [e for e in tunlb.events if e["event"] == "worker_started"]
        return Found(
            [silence_at(pulsed["silences_ms"], at, rate) for at in moments],
            [float(str(event["ms"])) for event in started],
            crowded,
            pulsed["lost"],
            pulsed["sent"],
        )


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main(argv: Sequence[str] | None = None) -> int:
    """0: within the goal and nothing broken; 1: not."""
    parser = argparse.ArgumentParser(description="recovery from kill -9 of a worker")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=1000, help="datagrams a second")
    args = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    found = measure(args.kills, args.workers, args.connections, args.rate, console.print)
    p99 = quantile(found.silences_ms, 0.99)
    for name, values in (
        ("silence of one flow", found.silences_ms),
        ("death noticed to forwarding", found.recoveries_ms),
    ):
        console.print(
            f"{name}: median {statistics.median(values):.1f} ms, p90 {quantile(values, 0.9):.1f}, "
            f"p99 {quantile(values, 0.99):.1f}, longest {max(values):.1f}"
        )
    console.print(
        f"{args.kills} kills, {args.workers} workers: {len(found.crowd['broken'])} of "
        f"{args.connections} connections broken, longest echo {found.crowd['worst_ms']:.0f} ms; "
        f"{found.lost} of {found.sent} datagrams lost; goal p99 <= {GOAL_MS:.0f} ms, 0 broken"
    )
    return int(p99 > GOAL_MS or bool(found.crowd["broken"]))


if __name__ == "__main__":
    sys.exit(main())
