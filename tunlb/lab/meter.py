"""Clients that measure an interruption: a crowd of TCP connections, or a pulse of datagrams.

    meter.py crowd ADDRESS PORT --count 1000 --period 1.0
    meter.py pulse ADDRESS PORT --rate 1000

Both speak to the echo services of tunlb/lab/servers.py. A line of JSON says when they are up; at
the end of standard input they stop and print what they saw:

* crowd   every connection sends a message each `period` and waits for its echo: how many
          connections broke, and the longest time that any echo took
* pulse   numbered datagrams from one port, `rate` a second: how many never came back, and the
          longest silences between two answers with when they began (CLOCK_MONOTONIC)

Started by its path in an isolated interpreter and therefore made of the standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time

MESSAGE_LEN = 64
STALL_S = 30.0  #: an echo that is missing for longer counts as a broken connection
SILENCES = 200  #: how many of the longest are reported
GRACE_S = 2.0  #: for what is still on its way at the end

_NUMBER = struct.Struct("!Q")


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Member:
    """One connection of a crowd."""

    def __init__(self, address: str, port: int, at: float) -> None:
        self.sock = socket.create_connection((address, port), timeout=10)
        self.greeting = b""
        while not self.greeting.endswith(b"\n"):
            data = self.sock.recv(1)
            if not data:
                raise ConnectionError("closed before its greeting")
            self.greeting += data
        self.sock.setblocking(False)
        self.due = at
        self.sent = 0.0  # 0: nothing is on its way
        self.missing = 0


class Crowd:
    """Connections that each send a message every `period` seconds, spread evenly over it."""

    def __init__(self, address: str, port: int, count: int, period: float) -> None:
        self.period = period
        self.selector = selectors.DefaultSelector()
        now = time.monotonic() + 0.5
        self.members = [Member(address, port, now + period * i / count) for i in range(count)]
        for member in self.members:
            self.selector.register(member.sock, selectors.EVENT_READ, member)
        self.echoes = 0
        self.worst = 0.0
        self.broken: list[str] = []

    def run(self) -> None:
        stdin = sys.stdin.fileno()
        self.selector.register(stdin, selectors.EVENT_READ, None)
        ending = 0.0
        while not ending or (time.monotonic() < ending and any(m.sent for m in self.members)):
            for key, _ in self.selector.select(0.005):
                if key.data is not None:
                    self._read(key.data)
                elif not os.read(stdin, 4096):
                    self.selector.unregister(stdin)
                    ending = time.monotonic() + STALL_S
            now = time.monotonic()
            for member in self.members:
                if member.sent and now - member.sent > STALL_S:
                    self._break(member, "stalled")
                elif not member.sent and not ending and now >= member.due:
                    self._send(member, now)
        for member in [m for m in self.members if m.sent]:
            self._break(member, "stalled")

    def _send(self, member: Member, now: float) -> None:
        member.due = max(member.due + self.period, now)
        try:
            member.sock.send(bytes(MESSAGE_LEN))
        except OSError as error:
            self._break(member, error.strerror or str(error))
        else:
            member.sent = now
            member.missing = MESSAGE_LEN

    def _read(self, member: Member) -> None:
        try:
            data = member.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(member, error.strerror or str(error))
            return
        if not data:
            self._break(member, "closed")
            return
        member.missing -= len(data)
        if member.missing <= 0:
            self.worst = max(self.worst, time.monotonic() - member.sent)
            member.sent = 0.0
            self.echoes += 1

    def _break(self, member: Member, why: str) -> None:
        self.broken.append(why)
        self.members.remove(member)
        self.selector.unregister(member.sock)
        member.sock.close()


def crowd(args: argparse.Namespace) -> None:
    made = Crowd(args.address, args.port, args.count, args.period)
    say(up=True, connections=len(made.members))
    made.run()
    say(
        connections=args.count,
        broken=made.broken,
        echoes=made.echoes,
        worst_ms=round(made.worst * 1000, 1),
    )


def pulse(args: argparse.Namespace) -> None:
    """One flow: what a single worker forwards."""
    sock = socket.socket(family_of(args.address), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.connect((args.address, args.port))
    sock.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    seen: set[int] = set()
    silences: list[tuple[float, float]] = []
    interval = 1 / args.rate
    begun = heard = due = time.monotonic()
    sent, ending = 0, 0.0
    say(up=True, port=sock.getsockname()[1])
    while not ending or (time.monotonic() < ending and len(seen) < sent):
        timeout = max(0.0, due - time.monotonic()) if not ending else 0.05
        for key, _ in selector.select(timeout):
            if key.fileobj is not sock:
                if not os.read(sys.stdin.fileno(), 4096):
                    selector.unregister(sys.stdin.fileno())
                    ending = time.monotonic() + GRACE_S
                continue
            with contextlib.suppress(OSError):
                while True:
                    data = sock.recv(4096)
                    now = time.monotonic()
                    seen.add(_NUMBER.unpack(data[-_NUMBER.size :])[0])
                    if now - heard > 2 * interval:
                        silences.append((now - heard, heard))
                    heard = now
        while not ending and time.monotonic() >= due:
            # A burst of what was missed would measure the sender: it goes on from now.
            due = max(due + interval, time.monotonic() - interval)
            with contextlib.suppress(OSError):
                sock.send(_NUMBER.pack(sent))
            sent += 1
    longest = sorted(silences, reverse=True)[:SILENCES]
    say(
        sent=sent,
        lost=sent - len(seen),
        seconds=round(time.monotonic() - begun, 3),
        silences_ms=[[round(1000 * length, 2), round(at, 4)] for length, at in longest],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="clients that measure an interruption")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, run in (("crowd", crowd), ("pulse", pulse)):
        kind = kinds.add_parser(name)
        kind.set_defaults(run=run)
        kind.add_argument("address")
        kind.add_argument("port", type=int)
        if name == "crowd":
            kind.add_argument("--count", type=int, default=1000)
            kind.add_argument("--period", type=float, default=1.0)
        else:
            kind.add_argument("--rate", type=int, default=1000)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
