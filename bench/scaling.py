"""What a second worker adds: two pipelines in memory, each on a core of its own, over one alone.

Each process is one worker of two as `tunlb run` makes it: a director with its own conn table and
counters in memfds, and frames of conns that steering would send to it. No device, so what is
measured is what workers could take from each other: cache lines, memory, the interpreter.

The turns alternate within one run: worker 0 alone, worker 1 alone, both at once; then the same with
work that shares nothing, because the two cores of a virtual machine are seldom two whole cores. The
figure is both together over the mean of the two alone, in shares of what the machine gave then.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from multiprocessing.connection import Connection
from typing import NamedTuple

from rich.console import Console

GOAL = 1.9
FLOWS = 64  #: conns of each worker, taken in turn
FIRST_PORT = 40_000
CONN_MAX = 4096
CHUNK = 64  #: packets between two looks at the clock


def feeder(worker: int, workers: int) -> Callable[[int], None]:
    """A worker with established conns of its own; the result forwards so many packets."""
    from tunlb.bench.micro import bed, net
    from tunlb.ipvs.sharding import Sharding, shard_keys
    from tunlb.testing.frames import vnet

    sharding = Sharding(workers, worker, shard_keys(b"bench"))
    rig = bed.make_rig(CONN_MAX, bed.shared(CONN_MAX), sharding)
    mapped = 0xFFFF_0000_0000 | int(ip_address(net.NETS[4].client))
    frames: list[bytes] = []
    ports = itertools.count(FIRST_PORT)
    while len(frames) < FLOWS:
        port = next(ports)
        if sharding.by_endpoint(0, mapped, port) != worker:
            continue
        flow = bed.flow("nat", 4, port)
        for frame in (flow.syn(), flow.ack()):
            if not rig.receive("out", vnet(frame))[1]:
                raise SystemExit(f"bench/scaling.py: not forwarded: {rig.counters()}")
        frames.append(vnet(flow.data(bytes(64))))
    outside = rig.netif("out")
    packet = rig.director.packet
    load, receive, turn = packet.load, rig.director.receive, itertools.cycle(frames)

    def feed(count: int) -> None:
        for frame in itertools.islice(turn, count):
            load(frame, outside)
            receive(packet, bed.NOW)

    return feed


def reference() -> Callable[[int], None]:
    """Work of a processor that shares nothing at all: what the machine gives two processes."""
    block = bytes(1 << 10)

    def feed(count: int) -> None:
        for _ in range(count):
            zlib.crc32(block)

    return feed


def work(worker: int, cpu: int, pipe: Connection) -> None:
    """For each (what, seconds) that comes, work for as long and answer with packets a second."""
    os.sched_setaffinity(0, {cpu})
    feeds = (feeder(worker, 2), reference())
    pipe.send("made")
    while order := pipe.recv():
        what, seconds = order
        feed, done, begun = feeds[what], 0, time.perf_counter()
        end = begun + seconds
        while (now := time.perf_counter()) < end:
            feed(CHUNK)
            done += CHUNK
        pipe.send(done / (now - begun))


class Round(NamedTuple):
    """Packets a second: the mean of the two workers alone, and both at once together."""

    alone: float
    together: float

    @property
    def ratio(self) -> float:
        return self.together / self.alone


def take_turns(pipes: Sequence[Connection], what: int, seconds: float) -> Round:
    alone = []
    for pipe in pipes:
        pipe.send((what, seconds))
        alone.append(pipe.recv())
    for pipe in pipes:
        pipe.send((what, seconds))
    return Round(statistics.mean(alone), sum(pipe.recv() for pipe in pipes))


def measure(rounds: int, seconds: float, cpus: Sequence[int]) -> tuple[list[Round], list[Round]]:
    """Rounds of the pipeline, and of the reference, in turns."""
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
    ours_found, machines = [], []
    for _ in range(rounds):
        ours_found.append(take_turns(pipes, 0, seconds))
        machines.append(take_turns(pipes, 1, seconds))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return ours_found, machines


def main(argv: Sequence[str] | None = None) -> int:
    """0: within the goal; 1: below it; 77: there is one core only."""
    parser = argparse.ArgumentParser(description="two workers in memory over one")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each turn (0.1)")
    args = parser.parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        console.print("bench/scaling.py: needs two cores")
        return 77
    figures, machines = measure(args.rounds, args.seconds, cpus)
    ratios = [found.ratio for found in figures]
    shares = [
        2 * ours.ratio / machine.ratio for ours, machine in zip(figures, machines, strict=True)
    ]
    median = statistics.median(shares)
    alone = statistics.median(found.alone for found in figures)
    together = statistics.median(found.together for found in figures)
    console.print(
        f"in memory: one worker {alone / 1e6:.2f} M packets/s, two {together / 1e6:.2f}: "
        f"{statistics.median(ratios):.2f} times ({min(ratios):.2f}-{max(ratios):.2f})"
    )
    console.print(
        "two processes that share nothing: "
        f"{statistics.median(m.ratio for m in machines):.2f} times "
        f"({min(m.ratio for m in machines):.2f}-{max(m.ratio for m in machines):.2f})"
    )
    console.print(
        f"with two whole cores: {median:.2f} times ({min(shares):.2f}-{max(shares):.2f}), "
        f"goal >= {GOAL}"
    )
    return int(median < GOAL)


if __name__ == "__main__":
    sys.exit(main())
