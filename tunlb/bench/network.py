"""The network that every subject stands in, its two ends, and what a load may ask of them.

    client --- br-out --- lb-out [ subject ] lb-in --- br-in --- server
    10.9.1.2/24                                                  10.9.2.2-5/24

A subject in user space that moves frames (the reflector, tunlb) has a TAP on each bridge. The
kernel and the proxies have no device: for their turn the bridges themselves get the director's
addresses. The reflector makes one segment of the two, so each end reaches the other's subnet on
link; all others are routers, or answer for the VIP. One route on each end is all that differs.

The four dests are addresses of one server: more namespaces would need more cores, not show more.
With `dr` and tunnels the server answers the client itself, by a link of its own to br-out that is
down in all other turns. Half of the path is then without a balancer. What comes to the server
through a tunnel is taken out of it in the kernel (see decap.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Final

from tunlb.bench import proc
from tunlb.bench.samples import BenchError
from tunlb.bench.tools import Helpers
from tunlb.lab.host import Host, ip
from tunlb.lab.net import STATE_DIR, kill_in, make_network, namespace, processes_in, remove
from tunlb.lab.topology import Bridge, HostSpec, Link, Wiring

CLIENT_ADDR: Final = "10.9.1.2"
OUTSIDE: Final = "10.9.1.254"  # the director's addresses
INSIDE: Final = "10.9.2.254"
VIP: Final = "10.9.1.100"
SERVERS: Final = ("10.9.2.2", "10.9.2.3", "10.9.2.4", "10.9.2.5")
# A conn keeps its laddr and lport for TIME_WAIT's two minutes: at 15 k/s one laddr would be used up
# in 4 s. 64 of them hold 4 M conns to each dest.
LADDRS: Final = "10.9.2.16-10.9.2.79"
OUTSIDE_NET: Final = "10.9.1.0/24"
INSIDE_NET: Final = "10.9.2.0/24"
SHORTCUT_ADDR: Final = "10.9.1.3"  # the server's on br-out, for `dr` and tunnels
MTU: Final = 1500  # of every device

BULK_PORT: Final = 5201
UDP_BULK_PORT: Final = 5202
CRR_PORT: Final = 7000
UDP_PORT: Final = 7001
LATENCY_PORT: Final = 7003
HELD_PORTS: Final = tuple(range(7100, 7108))
HTTP_PORT: Final = 8080

TCP_PORTS: Final = (BULK_PORT, UDP_BULK_PORT, CRR_PORT, LATENCY_PORT, *HELD_PORTS, HTTP_PORT)
UDP_PORTS: Final = (UDP_PORT, UDP_BULK_PORT)
# iperf3 answers a datagram from the server's first address, whichever it was sent to: what
# balances UDP for it may know no other.
DESTS: Final = MappingProxyType({("udp", UDP_BULK_PORT): SERVERS[:1]})

TAPS: Final = MappingProxyType({"out": "lb-out", "in": "lb-in"})
_IP_TCP: Final = 40  # bytes of both headers without options
_SHORTCUT: Final = "to-direct"  # the director's end of the server's link to br-out

READY_S: Final = 15.0
_STOP_S: Final = 5.0
_PROBE_S: Final = 4.0
# Enough for every dest to be met, so that no load begins by waiting for a neighbour.
_PROBES: Final = 24

_SYSCTLS: Final = (
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    # Ports come round after 64 k connections instead of 28 k (see crr.c on who closes).
    ("net/ipv4/ip_local_port_range", "1024 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    # Timestamps without a random offset for each pair of addresses. The server's TIME_WAIT of one
    # turn meets the same client port in the next turn, where the client spoke to another address:
    # with offsets every other such SYN would look old and be refused for a second (measured with
    # two addresses of one server in turns: 1.1 k/s instead of 7.5 k/s).
    ("net/ipv4/tcp_timestamps", "2"),
    # A turn must not start with the congestion window that the turn before it ended with.
    ("net/ipv4/tcp_no_metrics_save", "1"),
)
# The server has the VIP during a turn of `dr` or a tunnel, and says nothing about it on the wire.
_SILENT: Final = (("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2"))

WIRING: Final = Wiring(
    hosts=(
        HostSpec(
            name="client",
            role="client",
            addresses=(("eth0", f"{CLIENT_ADDR}/24"),),
            sysctls=_SYSCTLS,
        ),
        HostSpec(
            name="director",
            role="director",
            sysctls=_SYSCTLS,
            bridges=(
                Bridge(name="br-out", members=("to-client", _SHORTCUT)),
                Bridge(name="br-in", members=("to-server",)),
            ),
        ),
        HostSpec(
            name="server",
            role="peer",
            addresses=tuple(("eth0", f"{address}/24") for address in SERVERS),
            sysctls=(*_SYSCTLS, *_SILENT),
        ),
    ),
    links=(
        Link("client", "eth0", "to-client"),
        Link("server", "eth0", "to-server"),
        Link("server", "eth1", _SHORTCUT),
    ),
)
HOSTS: Final = tuple(host.name for host in WIRING.hosts)


def dests(proto: str, port: int) -> tuple[str, ...]:
    """The addresses that a balancer knows for a port."""
    return DESTS.get((proto, port), SERVERS)


@dataclass(frozen=True)
class Pins:
    """CPU lists for taskset; empty leaves the placing to the kernel."""

    subject: str = ""
    peers: str = ""

    def of(self, host: str) -> tuple[str, ...]:
        """What goes before each command in a host."""
        cpus = self.subject if host == "director" else self.peers
        return ("taskset", "-c", cpus) if cpus else ()


def apart() -> Pins:
    """The last CPU for the subject, all others for client and server."""
    *peers, subject = sorted(os.sched_getaffinity(0))
    if not peers:
        raise BenchError("--pin needs two CPUs or more; run without it")
    return Pins(str(subject), ",".join(map(str, peers)))


class Child:
    """A program whose output goes to a file, so that no full pipe can ever stall it."""

    def __init__(self, host: Host, argv: Sequence[str], log: Path) -> None:
        self._log = log
        self._name = " ".join(argv)
        with log.open("wb") as output:
            self._process = host.popen(argv, stdout=output)

    @property
    def pid(self) -> int:
        """The program's own: nothing forks on the way to it."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        """All that it wrote so far, to either output."""
        return self._log.read_text(errors="replace")

    def wait_for(self, sign: str, timeout: float = READY_S) -> str:
        """The first whole line that holds `sign`. Raises BenchError when none comes."""
        deadline = time.monotonic() + timeout
        while True:
            running = self.running
            for line in self.text().splitlines(keepends=True):
                if sign in line and line.endswith("\n"):
                    return line
            if not running or time.monotonic() > deadline:
                status = self._process.returncode
                state = "did not say" if running else f"ended (status {status}) before it said"
                raise BenchError(f"`{self._name}` {state} {sign!r}")
            time.sleep(0.01)

    def stop(self) -> str:
        """Ends the program if it still runs; all that it wrote. Idempotent."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self.text()


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Both ends of the network for one load: what it may use, and nothing of the subject."""

    network: Network
    # Of this subject in this round: load name -> value, for a load that needs another's figure.
    capacity: dict[str, float] = field(default_factory=dict)

    @property
    def client(self) -> Host:
        return self.network.client

    @property
    def server(self) -> Host:
        return self.network.server

    @property
    def servers(self) -> tuple[str, ...]:
        """The dests' addresses, all of the server."""
        return SERVERS

    def tool(self, name: str) -> Path:
        """A compiled helper of bench/. Raises BenchError when it cannot be had."""
        return self.network.helpers.path(name)

    def child(self, host: Host, argv: Sequence[str]) -> contextlib.AbstractContextManager[Child]:
        return self.network.child(host, argv)


class Standing:
    """A subject in its place: what the client speaks to, and what the subject has used so far.

    `devices` are the director's ends by which the subject's frames leave; the kernel's work is
    done in nobody's time, so `processes` is False for a subject that is the kernel. `remarks` say,
    by a load's name, what holds the subject back there that is no property of its own.
    """

    def __init__(
        self,
        director: Host,
        target: str,
        *,
        processes: bool = True,
        devices: Sequence[str] = ("to-client", "to-server"),
        remarks: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.target = target
        self.remarks = remarks
        self._director = director
        self._processes = processes
        self._devices = frozenset(devices)

    def cpu_s(self) -> float | None:
        """CPU seconds of the subject's processes so far; None of the kernel."""
        return proc.cpu_s(self._pids()) if self._processes else None

    def rss_bytes(self) -> int | None:
        """Memory of the subject's processes, shared memory counted once; None of the kernel."""
        return proc.memory_bytes(self._pids()) if self._processes else None

    def packets(self) -> int | None:
        """Frames that left the director towards client and server. One frame may be of 64 KB."""
        links = json.loads(ip("-n", self._director.ns, "-json", "-statistics", "link", "show"))
        return sum(
            int(link["stats64"]["tx"]["packets"])
            for link in links
            if link["ifname"] in self._devices
        )

    def _pids(self) -> list[int]:
        # Nothing but the subject runs in the director.
        return processes_in([self._director.ns])


class Network:
    """The three namespaces, for the length of a `with` block, and the one whose turn it is.

    `scratch` is a folder for configurations and logs, made and removed with them.
    """

    def __init__(self, name: str, helpers: Helpers, pins: Pins) -> None:
        self.name = name
        self.scratch = STATE_DIR.parent / f"bench-{name}"
        self.helpers = helpers
        hosts = {
            spec.name: Host(spec, namespace(name, spec.name), pins.of(spec.name))
            for spec in WIRING.hosts
        }
        self.client, self.director, self.server = (hosts[name] for name in HOSTS)
        self._hosts = hosts
        self._logs = 0

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        """What an earlier run that was killed left behind goes first."""
        with alone(self.name):
            self._remove()
            try:
                self.scratch.mkdir(parents=True)
                self.scratch.chmod(0o755)  # workers without privileges read their modules here
                make_network(WIRING, self.name, self._hosts)
                ip("-n", self.director.ns, "link", "set", _SHORTCUT, "down")
                yield
            finally:
                self._remove()
                for host in self._hosts.values():
                    host.reap()

    def _remove(self) -> None:
        remove(self.name, HOSTS)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def log(self) -> Path:
        """A new file for what a program writes."""
        self._logs += 1
        return self.scratch / f"{self._logs}.log"

    @contextlib.contextmanager
    def child(self, host: Host, argv: Sequence[str]) -> Iterator[Child]:
        """A program in a host, ended with the block; an error says what it wrote."""
        child = Child(host, argv, self.log())
        try:
            yield child
        except BenchError as error:
            error.add_note(f"`{' '.join(argv)}` wrote:\n{child.stop()[-1000:].strip()}")
            raise
        finally:
            child.stop()

    # -- for the subjects

    def route(self, *, to_server: str, to_client: str) -> None:
        """How each end reaches the other's subnet; what they knew of neighbours is forgotten."""
        ip("-n", self.client.ns, "route", "replace", INSIDE_NET, *to_server.split())
        ip("-n", self.server.ns, "route", "replace", OUTSIDE_NET, *to_client.split())
        for host in self._hosts.values():
            ip("-n", host.ns, "neigh", "flush", "all")

    def route_through(self) -> None:
        """The director is the gateway of both ends."""
        self.route(to_server=f"via {OUTSIDE}", to_client=f"via {INSIDE}")

    @contextlib.contextmanager
    def kernel_on_bridges(self, *, vip: bool, forward: bool) -> Iterator[None]:
        """The director's kernel has the director's addresses, as the subject's host would."""
        addresses = [f"{OUTSIDE}/24 dev br-out", f"{INSIDE}/24 dev br-in"]
        addresses += [f"{VIP}/32 dev br-out"] if vip else []
        try:
            ip("-n", self.director.ns, batch=[f"addr add {address}" for address in addresses])
            self._forward(forward)
            self.route_through()
            yield
        finally:
            self._forward(False)
            flush = [f"addr flush dev {bridge}" for bridge in ("br-out", "br-in")]
            ip("-n", self.director.ns, batch=flush)

    def _forward(self, wanted: bool) -> None:
        script = f"echo {int(wanted)} >/proc/sys/net/ipv4/ip_forward"
        self.director.run(["sh", "-c", script])

    @contextlib.contextmanager
    def answers_of_its_own(self, *, overhead: int = 0) -> Iterator[None]:
        """The server has the VIP, silently, and a way to the client past the director.

        With a tunnel's `overhead` it asks for segments that still fit when they are inside: the
        advertised MSS is what an operator sets on the dest's route, and nothing is ever too big.
        """
        server, director = self.server.ns, self.director.ns
        try:
            ip("-n", director, "link", "set", _SHORTCUT, "up")
            batch = [f"addr add {VIP}/32 dev lo"]
            batch += [f"addr add {SHORTCUT_ADDR}/24 dev eth1 noprefixroute"]
            ip("-n", server, batch=batch)
            # A server that answers from no address in particular (UDP) has to take the VIP.
            mss = f" advmss {MTU - _IP_TCP - overhead}" if overhead else ""
            self.route(to_server=f"via {OUTSIDE}", to_client=f"dev eth1 src {VIP}{mss}")
            yield
        finally:
            ip("-n", server, "route", "replace", OUTSIDE_NET, "via", INSIDE)
            batch = [f"addr del {VIP}/32 dev lo", "addr flush dev eth1"]
            ip("-n", server, "-force", batch=batch)
            ip("-n", director, "link", "set", _SHORTCUT, "down")

    def clear(self) -> None:
        """Ends what is left of a subject: the next one stands alone."""
        kill_in([self.director.ns])

    # -- before a load

    def prove(self, target: str, protos: Sequence[str]) -> None:
        """Exchanges end to end. They fill every neighbour table, and fail before a load hangs.

        Raises:
            BenchError: none comes through.
        """
        if "tcp" in protos:
            with self.server.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", CRR_PORT))
                listener.listen(16)
                listener.settimeout(_PROBE_S)
                for _ in range(_PROBES):
                    self._exchange(target, listener)
        if "udp" in protos:
            with self.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
                sink.bind(("", UDP_PORT))
                for _ in range(_PROBES):
                    self._datagram(target, sink)

    def _exchange(self, target: str, listener: socket.socket) -> None:
        """One byte there and back. The server closes first, as in crr.c, and for its reason."""
        try:
            with self.client.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(_PROBE_S)
                client.connect((target, CRR_PORT))
                client.sendall(b"?")
                server, _ = listener.accept()
                with server:
                    server.settimeout(_PROBE_S)
                    server.sendall(server.recv(1))
                said = client.recv(2)
                rest = client.recv(1)
        except OSError as error:
            raise BenchError(f"no connection comes through {target}:{CRR_PORT}: {error}") from None
        if (said, rest) != (b"?", b""):
            raise BenchError(f"{target}:{CRR_PORT} answered {said + rest!r} instead of b'?'")

    def _datagram(self, target: str, sink: socket.socket) -> None:
        """One datagram, sent again while nothing comes: the first may wait for a neighbour."""
        with self.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            deadline = time.monotonic() + _PROBE_S
            sink.settimeout(0.2)
            while time.monotonic() < deadline:
                client.sendto(b"?", (target, UDP_PORT))
                with contextlib.suppress(OSError):
                    sink.recv(16)
                    return
        raise BenchError(f"no datagram comes through {target}:{UDP_PORT}")


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Two runs of one name would take each other's namespaces, and half of the machine."""
    path = STATE_DIR.parent / f"bench-{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = None
    while lock is None:
        lock = _locked(path)
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str] | None:
    """The file, open and locked; None when it was removed meanwhile by who had it before.

    Raises:
        BenchError: another process has it.
    """
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
            return lock
    except BlockingIOError:
        lock.close()
        name = path.stem.removeprefix("bench-")
        raise BenchError(
            f"another run has the namespaces tunlb-{name}-*: wait for its end, or give this one"
            " another --name"
        ) from None
    except FileNotFoundError:
        pass  # removed between the two looks
    lock.close()
    return None
