"""One namespace of a lab: `ip`, commands and sockets inside it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from tunlb.lab.topology import HostSpec

NETNS_DIR = Path("/run/netns")

_CLONE_NEWNET = 0x40000000


class LabError(Exception):
    """The lab could not do something; the message says what, where, and what to do."""


def ip(*args: str, batch: Sequence[str] | None = None) -> str:
    """Runs `ip`, with `batch` as its lines when given; what it printed.

    Raises LabError with its complaint, and for a batch with the line that it is about.
    """
    argv = ["ip", *args] if batch is None else ["ip", *args, "-batch", "-"]
    text = None if batch is None else "".join(f"{line}\n" for line in batch)
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        raise LabError("the command `ip` is not there: install the package iproute2") from None
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {_explain(done.stderr, batch)}")
    return done.stdout


def ip_by_family(ns: str, lines: Sequence[str]) -> None:
    """Runs lines that begin with "-4" or "-6": within a batch `ip` takes no such option."""
    for family in ("-4", "-6"):
        batch = [line.removeprefix(f"{family} ") for line in lines if line.startswith(family)]
        if batch:
            ip(family, "-n", ns, batch=batch)


def _explain(stderr: str, batch: Sequence[str] | None) -> str:
    """The tool's complaint, with the text of the batch line whose number it gives."""
    text = " / ".join(stderr.split("\n")).strip(" /") or "no message"
    found = re.search(r"Command failed -:(\d+)", stderr)
    if batch is None or found is None:
        return text
    return f"{text} (line {found[1]}: {batch[int(found[1]) - 1]!r})"


@contextlib.contextmanager
def _inside(path: Path) -> Iterator[None]:
    """The calling thread is in the network namespace `path` for the length of the block."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd: int) -> None:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            errno = ctypes.get_errno()
            raise LabError(f"cannot enter the namespace {path.name}: {os.strerror(errno)}")

    with open("/proc/thread-self/ns/net", "rb") as home:
        try:
            there = path.open("rb")
        except FileNotFoundError:
            raise LabError(f"there is no namespace {path.name}") from None
        with there:
            enter(there.fileno())
        try:
            yield
        finally:
            enter(home.fileno())


class Host:
    """A namespace of a lab that is up: commands and sockets inside it.

    `prefix` goes before every command (`taskset -c 1`, say); it must become the command.
    """

    def __init__(self, spec: HostSpec, ns: str, prefix: Sequence[str] = ()) -> None:
        self.spec = spec
        self.prefix = tuple(prefix)
        self.name = spec.name
        self.ns = ns
        self.path = NETNS_DIR / ns
        self._started: list[subprocess.Popen[str]] = []

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.ns, *self.prefix, *command]

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float = 10.0,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end. Raises LabError on a time-out or, if `check`, a failure."""
        what = f"`{' '.join(command)}` in {self.ns}"
        try:
            done = subprocess.run(
                self.argv(command),
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise LabError(f"{what} did not end in {timeout:g} s") from late
        if check and done.returncode != 0:
            said = (done.stderr + done.stdout).strip() or "nothing"
            raise LabError(f"{what} failed with status {done.returncode}; it said: {said}")
        return done

    def popen(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: IO[bytes] | int | None = subprocess.PIPE,
        stderr: IO[bytes] | int | None = subprocess.STDOUT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Starts a command that ends with the lab at the latest."""
        process = subprocess.Popen(
            self.argv(command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            errors="replace",
            env=None if env is None else dict(env),
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """The calling thread is in this namespace for the length of the block."""
        return _inside(self.path)

    def socket(
        self, family: socket.AddressFamily, kind: socket.SocketKind, proto: int = 0
    ) -> socket.socket:
        """A socket of this namespace for the calling process: it stays here for its life."""
        with self.inside():
            return socket.socket(family, kind, proto)

    def reap(self) -> None:
        """Kills and collects what `popen` started."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        self._started.clear()
