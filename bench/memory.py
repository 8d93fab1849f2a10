"""What the pipeline costs by itself: one established NAT packet through `director.receive`, no fd.

Two figures. Nanoseconds, by timing a loop that loads the frame into the Packet and receives it,
less the same loop that only loads: they move with the machine's mood. And instructions, counted by
callgrind: they do not, so a change of one per cent can be seen, with the functions that spend them.

The loop is Python, so a receive includes one Python call into the director (some 30 ns) that
tunlb's own loop does not pay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tunlb.director import Director
    from tunlb.netif import Netif
    from tunlb.packet import Packet

GOAL_NS = 400.0
NOW = 1_000_000  # ms; the same for every packet, nothing expires while we count

CLIENT, CLIENT_MAC = "10.9.1.2:40000", "02:00:00:00:01:02"
SERVER, SERVER_MAC = "10.9.2.2:8080", "02:00:00:00:02:02"
VIP = "10.9.1.100:80"

# Static neighbours: every frame goes through at once, nothing waits for ARP.
CONFIG: tuple[dict[str, object], ...] = (
    {"kind": "tunlb", "version": 1, "workers": 1, "conn_max": 1024},
    {"kind": "port", "name": "lb-out", "addresses": ["10.9.1.254/24"]},
    {"kind": "port", "name": "lb-in", "addresses": ["10.9.2.254/24"]},
    {"kind": "neigh", "port": "lb-out", "addr": "10.9.1.2", "mac": CLIENT_MAC},
    {"kind": "neigh", "port": "lb-in", "addr": "10.9.2.2", "mac": SERVER_MAC},
    {"kind": "service", "name": "web", "proto": "tcp", "vaddr": "10.9.1.100", "vport": 80}
    | {"fwdmode": "nat", "scheduler": "rr"},
    {"kind": "dest", "service": "web", "daddr": "10.9.2.2", "dport": 8080},
)


@dataclass(frozen=True)
class Case:
    """A director that holds one established conn, and a frame of that conn with its vnet header."""

    director: Director
    packet: Packet
    iif: Netif
    frame: bytes


def build() -> Case:
    """A conn established by its handshake, checked to be forwarded to the dest."""
    from tunlb.testing.flow import Rig
    from tunlb.testing.frames import Flow, vnet
    from tunlb.wire.ether import mac_text

    rig = Rig("".join(json.dumps(line) + "\n" for line in CONFIG), now=NOW)
    outside, inside = rig.netif("lb-out"), rig.netif("lb-in")
    client = Flow(CLIENT, VIP, client_mac=CLIENT_MAC, server_mac=mac_text(outside.mac))
    dest = Flow(CLIENT, SERVER, client_mac=mac_text(inside.mac), server_mac=SERVER_MAC)
    data = vnet(client.data(bytes(64)))
    handshake = (
        ("lb-out", vnet(client.syn())),
        ("lb-in", vnet(dest.synack())),
        ("lb-out", vnet(client.ack())),
    )
    for port, frame in (*handshake, ("lb-out", data)):
        if not rig.receive(port, frame)[1]:
            raise SystemExit(f"bench/memory.py: not forwarded: {rig.counters()}")
    return Case(rig.director, rig.director.packet, outside, data)


def spin(case: Case, loads: int, receives: int) -> None:
    """`loads` times load only, then `receives` times load and receive."""
    load, receive, frame, iif = case.packet.load, case.director.receive, case.frame, case.iif
    packet = case.packet
    for _ in range(loads):
        load(frame, iif)
    for _ in range(receives):
        load(frame, iif)
        receive(packet, NOW)


def nanoseconds(case: Case, count: int, repeats: int) -> list[float]:
    """What one receive took, in each of `repeats` measurements over `count` packets."""
    figures = []
    for _ in range(repeats):
        begun = time.perf_counter_ns()
        spin(case, count, 0)
        between = time.perf_counter_ns()
        spin(case, 0, count)
        both = time.perf_counter_ns() - between
        figures.append((both - (between - begun)) / count)
    return figures


def self_costs(profile: Iterable[str]) -> Counter[str]:
    """Instructions spent in each function itself, from a callgrind profile (its format 1).

    Names are compressed: "fn=(7) name" the first time, "fn=(7)" from then on. The line after a
    "calls=" line holds what the callee spent, so it is not ours.
    """
    costs: Counter[str] = Counter()
    names: dict[str, str] = {}
    function, callee_next = "", False
    for line in profile:
        if match := re.match(r"c?fn=(\(\d+\))(?: (.*))?", line):
            number, name = match.groups()
            if name:
                names[number] = name
            if line[0] == "f":
                function = names[number]
        elif line.startswith("calls="):
            callee_next = True
        elif line[:1] in "0123456789+-*" and line.strip():
            if not callee_next:
                costs[function] += int(line.split()[1])
            callee_next = False
    return costs


def counted(loads: int, receives: int) -> Counter[str]:
    """Self costs of a whole process that spins so often."""
    with tempfile.TemporaryDirectory(prefix="tunlb-bench-") as scratch:
        profile = Path(scratch) / "profile"
        argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", sys.executable]
        argv += [str(Path(__file__).resolve()), "--spin", str(loads), str(receives)]
        # Without a fixed hash seed the start of two processes differs by more than a packet.
        env = {**os.environ, "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise SystemExit("bench/memory.py: no valgrind; apt-get install valgrind") from None
        if done.returncode:
            raise SystemExit(f"bench/memory.py: under valgrind: {done.stderr[-2000:]}")
        with profile.open(errors="replace") as lines:
            return self_costs(lines)


def instructions(count: int) -> dict[str, float]:
    """Instructions one receive spends, by function, the costliest first.

    The difference of two processes. Both load 3 x `count` times, one receives `count` times and the
    other twice as often, so start-up, set-up and the loads drop out.
    """
    few, many = counted(2 * count, count), counted(count, 2 * count)
    per_packet = {name: (many[name] - few[name]) / count for name in few.keys() | many.keys()}
    # Half an instruction a packet is noise of the start-up.
    kept = ((name, cost) for name, cost in per_packet.items() if abs(cost) >= 0.5)
    return dict(sorted(kept, key=lambda item: -item[1]))


def report(figures: Sequence[float], costs: dict[str, float], top: int) -> None:
    import tunlb

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    median = statistics.median(figures)
    console.print(
        f"established NAT packet, {tunlb.build()}: {median:.0f} ns "
        f"({min(figures):.0f}-{max(figures):.0f}), goal <= {GOAL_NS:.0f} compiled"
    )
    if not costs:
        return
    total = sum(costs.values())
    console.print(f"instructions a packet: {total:.0f}")
    table = Table("function (self)", title="where they go")
    table.add_column("instructions", justify="right")
    table.add_column("share", justify="right")
    for name, cost in list(costs.items())[:top]:
        table.add_row(name, f"{cost:.1f}", f"{cost / total:.1%}")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """0: within the goal; 1: above it (the goal is for the compiled build)."""
    parser = argparse.ArgumentParser(description="tunlb's own cost of one packet, without any fd")
    parser.add_argument("--count", type=int, default=100_000, help="packets a measurement (100000)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements (7)")
    parser.add_argument("--instructions", type=int, default=20_000, metavar="COUNT")
    parser.add_argument("--no-callgrind", action="store_true", help="nanoseconds only")
    parser.add_argument("--top", type=int, default=20, help="functions to show (20)")
    parser.add_argument("--spin", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    case = build()
    if args.spin:
        spin(case, *args.spin)
        return 0
    figures = nanoseconds(case, args.count, args.repeats)
    report(figures, {} if args.no_callgrind else instructions(args.instructions), args.top)
    return int(statistics.median(figures) > GOAL_NS)


if __name__ == "__main__":
    sys.exit(main())
