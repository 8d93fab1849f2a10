"""What a second worker adds: two pipelines in memory, each on a core of its own, over one alone.

Each process is one worker of two as `tunlb run` makes it: a director with its own conn table and
counters in memfds, and frames of conns that steering would send to it. No device, so what is
measured is what workers could take from each other: cache lines, memory, the interpreter.

The turns alternate within one run: worker 0 alone, worker 1 alone, both at once. The figure is both
together over the mean of the two alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent))

import memory

GOAL = 1.9
FLOWS = 64  #: conns of each worker, taken in turn
CONN_MAX = 4096
CHUNK = 64  #: packets between two looks at the clock


def feeder(worker: int, workers: int) -> Callable[[int], None]:
    """A worker with established conns of its own; the result forwards so many packets."""
    from tunlb.ipvs.sharding import Sharding, shard_keys
    from tunlb.shared import Shared
    from tunlb.testing.flow import Rig
    from tunlb.testing.frames import Flow, vnet
    from tunlb.wire.ether import mac_text

    sharding = Sharding(workers, worker, shard_keys(b"bench"))
    config = "".join(json.dumps(line) + "\n" for line in memory.CONFIG)
    shared = Shared.create(worker, CONN_MAX)
    rig = Rig(config, now=memory.NOW, memory=shared, sharding=sharding)
    outside = rig.netif("lb-out")
    address, _, first = memory.CLIENT.partition(":")
    mapped = 0xFFFF_0000_0000 | int(ip_address(address))
    frames: list[bytes] = []
    ports = itertools.count(int(first))
    while len(frames) < FLOWS:
        port = next(ports)
        if sharding.by_endpoint(0, mapped, port) != worker:
            continue
        flow = Flow(
            f"{address}:{port}",
            memory.VIP,
            client_mac=memory.CLIENT_MAC,
            server_mac=mac_text(outside.mac),
        )
        for frame in (flow.syn(), flow.ack()):
            if not rig.receive("lb-out", vnet(frame))[1]:
                raise SystemExit(f"bench/scaling.py: not forwarded: {rig.counters()}")
        frames.append(vnet(flow.data(bytes(64))))
    packet = rig.director.packet
    load, receive, turn = packet.load, rig.director.receive, itertools.cycle(frames)

    def feed(count: int) -> None:
        for frame in itertools.islice(turn, count):
            load(frame, outside)
            receive(packet, memory.NOW)

    return feed


def work(worker: int, cpu: int, pipe: Connection) -> None:
    """Wait for a number of seconds, forward for as long, answer with packets a second; until 0."""
    os.sched_setaffinity(0, {cpu})
    feed = feeder(worker, 2)
    pipe.send("made")
    while (seconds := pipe.recv()) > 0:
        done, begun = 0, time.perf_counter()
        end = begun + seconds
        while (now := time.perf_counter()) < end:
            feed(CHUNK)
            done += CHUNK
        pipe.send(done / (now - begun))


def measure(rounds: int, seconds: float, cpus: Sequence[int]) -> list[tuple[float, float, float]]:
    """(worker 0 alone, worker 1 alone, both), packets a second, for each round."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for worker, cpu in enumerate(cpus):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(worker, cpu, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    found = []
    for _ in range(rounds):
        alone = []
        for pipe in pipes:
            pipe.send(seconds)
            alone.append(pipe.recv())
        for pipe in pipes:
            pipe.send(seconds)
        found.append((alone[0], alone[1], sum(pipe.recv() for pipe in pipes)))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(0)
        process.join()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """0: within the goal; 1: below it; 77: there is one core only."""
    parser = argparse.ArgumentParser(description="two workers in memory over one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn (0.5)")
    args = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        console.print("bench/scaling.py: needs two cores")
        return 77
    figures = measure(args.rounds, args.seconds, cpus)
    ratios = [2 * both / (one + other) for one, other, both in figures]
    median = statistics.median(ratios)
    alone = statistics.median((one + other) / 2 for one, other, _ in figures)
    together = statistics.median(both for _, _, both in figures)
    console.print(
        f"in memory: one worker {alone / 1e6:.2f} M packets/s, two {together / 1e6:.2f}: "
        f"{median:.2f} times ({min(ratios):.2f}-{max(ratios):.2f}), goal >= {GOAL}"
    )
    return int(median < GOAL)


if __name__ == "__main__":
    sys.exit(main())
