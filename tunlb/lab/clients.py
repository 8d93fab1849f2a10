"""Real clients, run in a host of a lab, with typed answers: curl, iperf3, and echo over sockets.

Each raises LabError when the client fails; the echo clients raise what the socket module raises
(TimeoutError, ConnectionRefusedError), since a test may expect it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunlb.lab import meter
from tunlb.lab.host import Host, LabError
from tunlb.lab.topology import IPERF_PORT

_MARK = "\ntunlb-status:"
_PYTHON_FETCH = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        sys.argv[1], timeout=float(sys.argv[2]))
except urllib.error.HTTPError as error:
    answer = error
sys.stdout.write(answer.read().decode("latin-1") + "\\ntunlb-status:" + str(answer.status))
"""


@dataclass(frozen=True)
class Fetch:
    """An HTTP answer; `body` is decoded as latin-1 by the fallback and as UTF-8 by curl."""

    status: int
    body: str


@dataclass(frozen=True)
class Iperf:
    """One iperf3 run, as its receiver saw it. `lost_percent` is 0 for TCP."""

    gbps: float
    lost_percent: float
    retransmits: int
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Echo:
    """What an echo server said: its name, the peer that it saw, and the bytes it sent back."""

    host: str
    peer: str
    port: int
    data: bytes


def url(address: str, port: int, path: str = "/") -> str:
    literal = f"[{address}]" if ":" in address else address
    return f"http://{literal}:{port}{path}"


def fetch(host: Host, target: str, *, timeout: float = 10.0, python: str | None = None) -> Fetch:
    """GETs a URL by curl. With `python`, that interpreter does it where curl is not there."""
    limit = f"{timeout:g}"
    if python is not None and shutil.which("curl") is None:
        command = [python, "-I", "-c", _PYTHON_FETCH, target, limit]
    else:
        status = f"{_MARK}%{{http_code}}"
        command = ["curl", "-gsS", "--noproxy", "*", "-m", limit, "-w", status, target]
    body, _, status = host.run(command, timeout=timeout + 5.0).stdout.rpartition(_MARK)
    return Fetch(int(status), body)


def iperf3(
    host: Host,
    address: str,
    *,
    port: int = IPERF_PORT,
    seconds: int = 3,
    bitrate: str | None = None,
    udp: bool = False,
    parallel: int = 1,
    reverse: bool = False,
    length: int | None = None,
) -> Iperf:
    """Runs iperf3 towards `address`. `bitrate` is iperf3's notation ("200M"), `length` bytes."""
    command = ["iperf3", "-J", "-c", address, "-p", str(port), "-t", str(seconds)]
    command += ["-P", str(parallel), "--connect-timeout", "3000"]
    command += ["-u"] if udp else []
    command += ["-R"] if reverse else []
    command += ["-b", bitrate] if bitrate is not None else []
    command += ["-l", str(length)] if length is not None else []
    done = host.run(command, timeout=seconds + 10.0, check=False)
    return parse_iperf3(done.stdout or done.stderr, udp=udp)


def parse_iperf3(text: str, *, udp: bool) -> Iperf:
    """Reads what `iperf3 -J` printed. Raises LabError with iperf3's own words if it failed."""
    try:
        report = json.loads(text)
        if "error" in report:
            raise LabError(f"iperf3 failed: {report['error']}")
        end = report["end"]
        if udp:
            total = end["sum"]
            # `sum` counts what was sent over the sender's time; what arrived is the difference.
            lost = float(total["lost_percent"])
            return Iperf(total["bits_per_second"] * (1 - lost / 100) / 1e9, lost, 0, report)
        sent, received = end["sum_sent"], end["sum_received"]
        retransmits = int(sent.get("retransmits", 0))
        return Iperf(received["bits_per_second"] / 1e9, 0.0, retransmits, report)
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"iperf3 printed something unexpected: {text.strip()[:500]!r}") from error


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class EchoConnection:
    """An open TCP connection to an echo service, to hold across whatever a test does."""

    def __init__(self, host: Host, address: str, port: int, *, timeout: float = 10.0) -> None:
        self._sock = host.socket(_family(address), socket.SOCK_STREAM)
        try:
            self._sock.settimeout(timeout)
            self._sock.connect((address, port))
            self._file = self._sock.makefile("rb")
            greeting = json.loads(self._file.readline())
        except BaseException:
            self._sock.close()
            raise
        self.host = str(greeting["host"])
        self.peer = str(greeting["peer"])
        self.port = int(greeting["port"])

    def echo(self, data: bytes) -> bytes:
        """Sends `data` and reads as many bytes; fewer come back only if the server closed."""
        self.send(data)
        return self.receive(len(data))

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def receive(self, size: int) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        self._sock.close()


@contextlib.contextmanager
def connection(
    host: Host, address: str, port: int, *, timeout: float = 10.0
) -> Iterator[EchoConnection]:
    conn = EchoConnection(host, address, port, timeout=timeout)
    try:
        yield conn
    finally:
        conn.close()


class Meter:
    """A client of tunlb/lab/meter.py that runs until :meth:`stop`, which has what it saw."""

    def __init__(self, host: Host, kind: str, address: str, port: int, **options: float) -> None:
        flags = [word for key, value in options.items() for word in (f"--{key}", f"{value:g}")]
        self._process = host.popen(
            [sys.executable, "-I", meter.__file__, kind, address, str(port), *flags],
            stdin=subprocess.PIPE,
        )
        self.up = self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            rest = self._process.stdout.read()
            raise LabError(f"the meter failed: {(line + rest).strip()[-500:]}") from None
        return said

    def stop(self) -> dict[str, Any]:
        """Ends it; it may take a while to wait for what is still on its way."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._line()


def crowd(host: Host, address: str, port: int, count: int, *, period: float = 1.0) -> Meter:
    """``count`` TCP connections to an echo service, each of which speaks every ``period`` s."""
    return Meter(host, "crowd", address, port, count=count, period=period)


def pulse(host: Host, address: str, port: int, *, rate: int = 1000) -> Meter:
    """Datagrams of one flow to an echo service, ``rate`` a second."""
    return Meter(host, "pulse", address, port, rate=rate)


def tcp_echo(
    host: Host, address: str, port: int, data: bytes = b"tunlb", *, timeout: float = 10.0
) -> Echo:
    """Connects, echoes `data` (at most what fits the socket buffers), and closes."""
    with connection(host, address, port, timeout=timeout) as conn:
        return Echo(conn.host, conn.peer, conn.port, conn.echo(data))


def udp_echo(
    host: Host, address: str, port: int, data: bytes = b"tunlb", *, timeout: float = 2.0
) -> Echo:
    """Sends one datagram from a new port and reads its echo; TimeoutError when none comes."""
    with host.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect((address, port))
        sock.send(data)
        return parse_echo(sock.recv(65535))


def parse_echo(datagram: bytes) -> Echo:
    line, _, data = datagram.partition(b"\n")
    greeting = json.loads(line)
    return Echo(str(greeting["host"]), str(greeting["peer"]), int(greeting["port"]), data)
