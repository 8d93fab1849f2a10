"""The load of many connections that are open at the same time."""

from __future__ import annotations

import os
from typing import Final

from tunlb.bench.generators import GRACE_S, Used, children_cpu_s, figures, finish, serving
from tunlb.bench.network import HELD_PORTS, Ends, Standing
from tunlb.bench.samples import BenchError, Outcome

WANTED: Final = 100_000
OPEN_RATE: Final = 20_000  # a second, at most
OPEN_S: Final = 30.0  # to open them all
HOLD_S: Final = 1.0  # in which the subject's memory is read
ANSWER_S: Final = 10.0  # hold.c's own limit for the answers at the end


def held(ends: Ends, standing: Standing, seconds: float) -> Outcome:
    """Opens WANTED connections, holds them, and counts those that still answer.

    It takes the time that the connections take, not `seconds`.
    """
    tool = str(ends.tool("hold"))
    ports = [str(port) for port in HELD_PORTS]
    client = [tool, "client", "-n", str(WANTED), "-r", str(OPEN_RATE)]
    client += ["-t", f"{OPEN_S:g}", "-w", f"{HOLD_S:g}", standing.target, *ports]
    empty = standing.rss_bytes()
    with serving(ends, [tool, "server", "-n", str(WANTED), *ports], "ready"):
        used = Used(standing)
        begun = children_cpu_s()
        with ends.child(ends.client, client) as child:
            child.wait_for("held ", OPEN_S + GRACE_S)
            full = standing.rss_bytes()
            text = finish(child, HOLD_S + ANSWER_S + GRACE_S)
        client_s = children_cpu_s() - begun
        details = used.details()
    found = figures(text, "hold")
    alive, opened = float(found["alive"]), float(found["opened"])
    if not opened:
        raise BenchError(f"no connection through {standing.target} opened: {found['error']}")
    cores = min(int(found["processes"]), len(os.sched_getaffinity(0)))
    details |= {
        "peers_busy": min(1.0, client_s / details["elapsed_s"] / cores),
        "open_rate": opened / float(found["open_seconds"]),
        "opened": opened,
        "broken": float(found["broken"]),
    }
    if empty is not None and full is not None:
        details |= {"rss_bytes": full, "bytes_per_conn": (full - empty) / opened}
    notes = []
    if opened < WANTED:
        why = found["error"] or f"{OPEN_S:g} s were not enough"
        notes.append(f"{opened:.0f} of {WANTED} connections opened: {why}")
    return Outcome(value=alive, details=details, notes=tuple(notes))
