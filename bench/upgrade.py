"""Is anything lost while the program replaces itself? UDP with sequence numbers.

In the lab `one-arm`: udpflood sends small numbered datagrams at a third of what tunlb forwards on
such a machine, and its sink counts the numbers that arrive, while the program is replaced every
second (SIGUSR2). The sink has a socket buffer for what arrives at once after a pause: iperf3's
server has the system's default, and loses some there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from recovery import configured
from rich.console import Console

PORT = 9000
PPS = 40_000  #: a third of the rate that `tunlb bench` finds on two cores (pps)


def service(topology: Any) -> str:
    """The lines that bring the datagrams to the first server."""
    [(_, first), *_] = topology.servers
    head = {"kind": "service", "name": "flood", "proto": "udp", "vaddr": topology.vips.v4}
    head |= {"vport": PORT, "laddrs": [topology.laddrs.v4]}
    dest = {"kind": "dest", "service": "flood", "daddr": first.v4, "dport": PORT}
    return json.dumps(head) + "\n" + json.dumps(dest) + "\n"


def replace_often(tunlb: Any, times: int, gaps: list[float]) -> None:
    """Replace the program every second; for how long each queue was not read."""
    for _ in range(times):
        time.sleep(1)
        seen = len(tunlb.log_lines)
        os.kill(tunlb.pid, signal.SIGUSR2)
        event = tunlb.wait_event(("upgraded", "upgrade_refused"), after=seen, timeout=30)
        if event["event"] != "upgraded":
            raise SystemExit(f"bench/upgrade.py: {event}")
        gaps.extend(event["gap_ms"])


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing was lost; 1: something was."""
    from tunlb.bench import tools
    from tunlb.bench.samples import BenchError
    from tunlb.lab import TOPOLOGIES, Lab

    parser = argparse.ArgumentParser(description="losses while the program is replaced")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pps", type=int, default=PPS)
    args = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    try:
        tool = tools.build(("udpflood",)).path("udpflood")
    except BenchError as error:
        console.print(f"bench/upgrade.py: {error}")
        return 1
    gaps: list[float] = []
    with Lab(TOPOLOGIES["one-arm"], f"upgrade-{os.getpid()}") as lab:
        tunlb = lab.start_tunlb(
            configured(lab.topology.config_text, args.workers) + service(lab.topology)
        )
        server = lab.host("s1")
        changes = threading.Thread(target=replace_often, args=(tunlb, args.times, gaps))
        changes.start()
        sink = server.popen([str(tool), "sink", str(PORT)], stderr=None)
        assert sink.stdout is not None
        sink.stdout.readline()
        send = [str(tool), "send", lab.topology.vips.v4, str(PORT)]
        # One first, so that neighbours are known: what waits for them is bounded.
        lab.client.run([*send, "-n", "1"])
        time.sleep(0.5)
        sent = json.loads(
            lab.client.run(
                [*send, "-r", str(args.pps), "-t", str(3 * args.times + 1)],
                timeout=60 + 3 * args.times,
            ).stdout
        )
        changes.join()
        time.sleep(0.2)
        sink.terminate()
        got = json.loads(sink.stdout.readline())
        tunlb.stop()
    ended: dict[str, Any] = tunlb.wait_event(("stopped",))
    drops = {k: n for k, n in ended["counters"].items() if k.startswith("drop.")}
    lost = sent["packets"] - got["distinct"]
    console.print(
        f"{args.times} upgrades, {args.workers} workers, "
        f"{sent['packets'] / sent['seconds'] / 1000:.1f} kpps of UDP: {lost} of {sent['packets']} "
        f"datagrams lost; a queue was not read for {statistics.median(gaps):.1f} ms "
        f"(longest {max(gaps):.1f})"
    )
    console.print(f"dropped by tunlb: {drops or 'nothing'}")
    return int(lost != 0 or len(gaps) != args.times * args.workers)


if __name__ == "__main__":
    sys.exit(main())
