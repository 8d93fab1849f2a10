"""What it costs to hand a frame over to another worker: the sender's part and the reader's.

A real mailbox, once with both ends in one process and once between two processes that are pinned to
a core each. The reader sleeps in epoll, as a worker's loop does, and reads until nothing waits.
Bursts are those of a port: up to 64 frames or 512 KiB; a burst of one frame is what a light load
looks like, and each pays for waking the reader. Waiting is not counted, on either side.

Each figure is the median over all bursts, in nanoseconds a frame. The loops are Python, so each
includes a Python call (some 30 ns) that tunlb's own loop does not pay. About ten seconds in all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import statistics
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

SIZES = (("64 B", 64), ("MTU", 1514), ("64 KiB", 65535 + 14))
READER_WAITS_S = 10.0  # its sender is gone after that
END = b"end"  # of a burst: the reader answers with the time that it took
SPENT = struct.Struct("=Q")


@dataclass(frozen=True)
class Cost:
    """Nanoseconds a frame: to hand out and to take in."""

    out: float
    into: float


class Pair:
    """Two workers' mailboxes and packets; worker 0 sends to worker 1."""

    def __init__(self) -> None:
        from tunlb.counters import Counters
        from tunlb.mailbox import Mailbox, open_mailbox
        from tunlb.netif import Netif
        from tunlb.packet import Packet

        ends = [open_mailbox() for _ in range(2)]
        writers = [writer for _, writer in ends]
        self.boxes = [
            Mailbox(ends[0][0], [os.dup(writer) for writer in writers], Counters()),
            Mailbox(ends[1][0], writers, Counters()),
        ]
        self.packets = [Packet(), Packet()]
        self.netif = Netif(0, "lb0", 0x0200_0000_0001)
        self.netifs = {(0, 0): self.netif}

    def close(self) -> None:
        for box in self.boxes:
            box.close()

    def load(self, size: int) -> None:
        """The frame that is handed over again and again."""
        from tunlb.outbox import PLAIN_VNET

        self.packets[0].load(PLAIN_VNET + bytes(size), self.netif)

    def hand_out(self, count: int) -> tuple[int, int]:
        """(frames that the mailbox took, nanoseconds)."""
        send, packet = self.boxes[0].send_packet, self.packets[0]
        begun = time.perf_counter_ns()
        sent = 0
        while sent < count and send(packet, 1):
            sent += 1
        spent = time.perf_counter_ns() - begun
        if not sent:
            raise SystemExit("bench/handover.py: not one frame fits: raise net.core.wmem_max")
        return sent, spent

    def take_in(self) -> tuple[bool, int]:
        """(was it the end of a burst, nanoseconds); reads until then or until nothing waits."""
        from tunlb.mailbox import FRAME, MESSAGE

        read, packet, netifs = self.boxes[1].read, self.packets[1], self.netifs
        begun = time.perf_counter_ns()
        found = FRAME
        while found == FRAME:
            found = read(packet, netifs)
        return found == MESSAGE, time.perf_counter_ns() - begun

    # -- between two processes

    def serve(self, cpu: int) -> None:
        """The reader's process; it ends when nobody sends any more."""
        os.sched_setaffinity(0, {cpu})
        spent = 0
        with select.epoll() as poll:
            poll.register(self.boxes[1].fd, select.EPOLLIN)
            while poll.poll(READER_WAITS_S):
                ended, part = self.take_in()
                spent += part
                if ended:
                    if self.packets[1].frame() != END:
                        return
                    self.boxes[1].send_message(SPENT.pack(spent), 0)
                    spent = 0

    def answer(self) -> int:
        """What the reader spent on the burst that just ended."""
        from tunlb.mailbox import MESSAGE

        box, packet = self.boxes[0], self.packets[1]
        while not box.send_message(END, 1):
            pass  # full of the burst; the reader is at it
        with select.epoll() as poll:
            poll.register(box.fd, select.EPOLLIN)
            while box.read(packet, self.netifs) != MESSAGE:
                if not poll.poll(READER_WAITS_S):
                    raise SystemExit("bench/handover.py: the reading process does not answer")
        (spent,) = SPENT.unpack(packet.frame())
        return int(spent)


@contextlib.contextmanager
def reader(pair: Pair, cpus: Sequence[int]) -> Iterator[None]:
    """The other process for the time of the block; this one is pinned as well."""
    before = os.sched_getaffinity(0)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            pair.serve(cpus[-1])
            status = 0
        finally:
            os._exit(status)
    os.sched_setaffinity(0, {cpus[0]})
    try:
        yield
    finally:
        pair.boxes[0].send_message(b"", 1)
        os.waitpid(pid, 0)
        os.sched_setaffinity(0, before)


def measure(pair: Pair, size: int, burst: int, seconds: float, alone: bool) -> Cost:
    """``alone``: both ends are read and written here."""
    pair.load(size)
    outs: list[float] = []
    intos: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or not outs:
        sent, out = pair.hand_out(burst)
        into = pair.take_in()[1] if alone else pair.answer()
        outs.append(out / sent)
        intos.append(into / sent)
    return Cost(statistics.median(outs), statistics.median(intos))


def table(rows: Sequence[tuple[str, int, Cost, Cost]], cpus: Sequence[int]) -> Table:
    apart = "two cores" if len(cpus) > 1 else "one core, two"
    made = Table(title="hand-over to another worker, ns a frame")
    made.add_column("frame")
    made.add_column("burst", justify="right")
    for where in ("one process", apart):
        for what in ("out", "in", "both"):
            made.add_column(f"{where}\n{what}", justify="right")
    for name, burst, *costs in rows:
        figures = [figure for c in costs for figure in (c.out, c.into, c.out + c.into)]
        made.add_row(name, str(burst), *(f"{figure:.0f}" for figure in figures))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the cost of a hand-over between workers")
    parser.add_argument("--seconds", type=float, default=0.7, help="for each of 12 figures (0.7)")
    args = parser.parse_args(argv)
    import tunlb
    from tunlb.tap import BURST_BYTES, BURST_FRAMES

    cpus = sorted(os.sched_getaffinity(0))[:2]
    cases = [
        (name, size, burst)
        for name, size in SIZES
        for burst in (1, min(BURST_FRAMES, -(-BURST_BYTES // size)))
    ]
    with contextlib.closing(Pair()) as pair:
        alone = [measure(pair, size, burst, args.seconds, True) for _, size, burst in cases]
        with reader(pair, cpus):
            apart = [measure(pair, size, burst, args.seconds, False) for _, size, burst in cases]
    rows = [
        (name, burst, one, two)
        for (name, _, burst), one, two in zip(cases, alone, apart, strict=True)
    ]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    command = shlex.join(["python", "bench/handover.py", "--seconds", f"{args.seconds:g}"])
    console.print(f"{command}  [{tunlb.build()}]", markup=False)
    console.print(table(rows, cpus))
    return 0


if __name__ == "__main__":
    sys.exit(main())
