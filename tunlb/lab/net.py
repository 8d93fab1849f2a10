"""Makes a Topology out of network namespaces, and removes it again.

Everything is called `tunlb-<suffix>-<host>` and is removed by that name, with whatever still runs
inside. Both ends of each veth pair are created inside namespaces, so the network of the machine
itself is never touched. Needs root, or `tunlb.lab.rootless`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tunlb.lab import servers
from tunlb.lab.host import NETNS_DIR, Host, LabError, ip, ip_by_family
from tunlb.lab.process import READY, TunlbProcess, environment
from tunlb.lab.topology import (
    BASE_SYSCTLS,
    ECHO_PORTS,
    HTTP_PORTS,
    IPERF_PORT,
    NO_BRIDGE_NETFILTER,
    TOPOLOGIES,
    HostSpec,
    Topology,
    Wiring,
)

STATE_DIR = Path("/run/tunlb/lab")
PREFIX = "tunlb"
KEEPER = f"{PREFIX}-keeper"
MAX_SUFFIX = 40

TCP_LISTEN = "0A"
UDP_UNCONNECTED = "07"
_SERVERS_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 5.0
_SUFFIX = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{MAX_SUFFIX - 1}}}")


@dataclass(frozen=True, kw_only=True)
class LabState:
    """A lab that is up, or what is left of one (`complete` is then false)."""

    suffix: str
    topology: str
    namespaces: tuple[str, ...]
    pids: tuple[int, ...]
    created: str
    complete: bool


def namespace(suffix: str, host: str) -> str:
    return f"{PREFIX}-{suffix}-{host}"


def state_dir(suffix: str) -> Path:
    return STATE_DIR / suffix


def check_suffix(suffix: str) -> str:
    if not _SUFFIX.fullmatch(suffix):
        raise LabError(
            f"{suffix!r} is not a lab's name: use at most {MAX_SUFFIX} of a-z, 0-9 and '-'"
        )
    return suffix


def link_commands(wiring: Wiring, suffix: str) -> list[str]:
    """Lines for `ip -n DIRECTOR -batch -`: bridges and veth pairs, everything up."""
    director = next(host for host in wiring.hosts if host.role == "director")
    lines = [
        f"link add {link.director_dev} type veth"
        f" peer name {link.dev} netns {namespace(suffix, link.host)}"
        for link in wiring.links
    ]
    for bridge in director.bridges:
        lines.append(f"link add {bridge.name} type bridge")
        lines += [f"link set {member} master {bridge.name}" for member in bridge.members]
        lines.append(f"link set {bridge.name} up")
    lines += [f"link set {link.director_dev} up" for link in wiring.links]
    return lines


def host_commands(host: HostSpec, devices: Sequence[str]) -> list[str]:
    """Lines for `ip -n HOST -batch -`: its devices up, its addresses, then its routes."""
    lines = [f"link set {dev} up" for dev in ("lo", *devices)]
    for dev, address in host.addresses:
        nodad = " nodad" if ":" in address else ""
        lines.append(f"addr add {address} dev {dev}{nodad}")
    lines += [f"route add {route}" for route in host.routes]
    return lines


def make_network(wiring: Wiring, suffix: str, hosts: Mapping[str, Host]) -> None:
    """The namespaces of `hosts`, by name, wired, addressed and with their settings."""
    ip(batch=[f"netns add {host.ns}" for host in hosts.values()])
    for host in hosts.values():
        _set_sysctls(host)
    ip("-n", namespace(suffix, "director"), batch=link_commands(wiring, suffix))
    for host in hosts.values():
        devices = [link.dev for link in wiring.links if link.host == host.name]
        ip("-n", host.ns, batch=host_commands(host.spec, devices))
        ip_by_family(host.ns, host.spec.rules)


def _set_sysctls(host: Host) -> None:
    script = "".join(
        f"echo {value} >/proc/sys/{path} || exit 1\n"
        for path, value in (*BASE_SYSCTLS, *host.spec.sysctls)
    )
    script += "".join(
        f"[ ! -e /proc/sys/{path} ] || echo {value} >/proc/sys/{path} || exit 1\n"
        for path, value in NO_BRIDGE_NETFILTER
    )
    host.run(["sh", "-c", script])


class Lab:
    """A topology, up for the length of a `with` block: its network, its servers, and tunlb.

    `suffix` names it; the default is the topology's name and this process's id, so that labs of
    several processes do not meet. A lab of the same name that was left behind is removed first.
    """

    def __init__(self, topology: Topology, suffix: str = "") -> None:
        self.topology = topology
        self.suffix = check_suffix(suffix or f"{topology.name}-{os.getpid()}")
        self.dir = state_dir(self.suffix)
        self.hosts = {
            spec.name: Host(spec, namespace(self.suffix, spec.name)) for spec in topology.hosts
        }
        self.tunlbs: list[TunlbProcess] = []

    def host(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def client(self) -> Host:
        return self.hosts["client"]

    @property
    def director(self) -> Host:
        return self.hosts["director"]

    def up(self) -> None:
        """Builds everything, or nothing."""
        remove(self.suffix, self.hosts)
        try:
            self.dir.mkdir(parents=True)
            make_network(self.topology, self.suffix, self.hosts)
            pids = self._start_servers()
            (self.dir / "tunlb.jsonl").write_text(self.topology.config_text, encoding="utf-8")
            self._record(pids)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Removes everything. Idempotent."""
        try:
            for tunlb in self.tunlbs:
                tunlb.stop()
            self.tunlbs.clear()
        finally:
            remove(self.suffix, self.hosts)
            for host in self.hosts.values():
                host.reap()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def tunlb_argv(self, config: Path, python: str = sys.executable) -> list[str]:
        return self.director.argv([python, "-m", "tunlb", "run", "-c", str(config)])

    def start_tunlb(
        self,
        config_text: str | None = None,
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        timeout: float = 15.0,
    ) -> TunlbProcess:
        """Starts tunlb in the director and waits until it forwards.

        `config_text` defaults to the topology's; `env` adds to the environment. Raises TunlbError,
        with what it logged, when it is not ready in `timeout` seconds.
        """
        config = self.dir / "tunlb.jsonl"
        text = self.topology.config_text if config_text is None else config_text
        config.write_text(text, encoding="utf-8")
        control = {"TUNLB_CONTROL": str(self.dir / "control.sock")}
        tunlb = TunlbProcess(
            self.tunlb_argv(config, python), config, env=environment({**control, **(env or {})})
        )
        self.tunlbs.append(tunlb)
        try:
            tunlb.wait_event((READY,), timeout=timeout)
            self.after_ready()
        except BaseException:
            tunlb.stop()
            raise
        return tunlb

    def after_ready(self) -> None:
        """What the topology adds once tunlb's device exists."""
        ip_by_family(self.director.ns, self.topology.after_ready)

    def _start_servers(self) -> dict[str, list[int]]:
        if shutil.which("iperf3") is None:
            raise LabError("the command `iperf3` is not there: install the package iperf3")
        hosts = [host for host in self.hosts.values() if host.spec.role == "server"]
        started: dict[str, list[subprocess.Popen[str]]] = {}
        for host in hosts:
            started[host.name] = [self._start(host, "services", _services_argv(host.name))]
            for number, address in enumerate(host.spec.iperf_binds):
                bind = ["-B", address] if address else []
                command = ["iperf3", "-s", "-p", str(IPERF_PORT), *bind]
                started[host.name].append(self._start(host, f"iperf3-{number}", command))
        for host in hosts:
            self._await_listening(host, started[host.name])
        return {name: [process.pid for process in some] for name, some in started.items()}

    def _start(self, host: Host, what: str, command: Sequence[str]) -> subprocess.Popen[str]:
        with (self.dir / f"{host.name}-{what}.log").open("wb") as log:
            return host.popen(command, stdout=log)

    def _await_listening(self, host: Host, processes: Sequence[subprocess.Popen[str]]) -> None:
        tcp = [*HTTP_PORTS, *ECHO_PORTS, *([IPERF_PORT] * len(host.spec.iperf_binds))]

        def all_listen() -> bool:
            for process in processes:
                if process.poll() is not None:
                    raise LabError(f"a server of {host.ns} ended at once: {self._logs(host)}")
            pid = processes[0].pid
            # Until `ip netns exec` has entered the namespace, /proc/PID/net shows another one.
            if not os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), host.path.stat()):
                return False
            return sorted(tcp) == bound_ports(pid, "tcp", TCP_LISTEN) and sorted(
                ECHO_PORTS
            ) == bound_ports(pid, "udp", UDP_UNCONNECTED)

        _wait_until(
            all_listen,
            lambda: f"the servers of {host.ns} do not listen: {self._logs(host)}",
            timeout=_SERVERS_TIMEOUT_S,
        )

    def _logs(self, host: Host) -> str:
        texts = [path.read_text("utf-8", "replace") for path in self.dir.glob(f"{host.name}-*.log")]
        return " / ".join(text.strip()[-1000:] for text in texts if text.strip()) or "no message"

    def _record(self, pids: Mapping[str, Sequence[int]]) -> None:
        state = {
            "topology": self.topology.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "pids": pids,
        }
        (self.dir / "state.json").write_text(json.dumps(state), encoding="utf-8")


def _services_argv(name: str) -> list[str]:
    ports = ["--http", *map(str, HTTP_PORTS), "--echo", *map(str, ECHO_PORTS)]
    return [sys.executable, "-I", "-S", str(servers.__file__), name, *ports]


def bound_ports(pid: int, proto: str, state: str) -> list[int]:
    """Sorted local ports of both families in `state` (hexadecimal, as the kernel shows it), of the
    namespace that the process is in. Until `ip netns exec` has entered one, that is another."""
    ports: list[int] = []
    for table in (proto, f"{proto}6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text("ascii").splitlines()[1:]:
            _, local, _, shown, *_ = line.split()
            if shown == state:
                ports.append(int(local.rpartition(":")[2], 16))
    return sorted(ports)


def _wait_until(condition: Callable[[], bool], what: Callable[[], str], *, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(what())
        time.sleep(0.005)


def _host_names() -> frozenset[str]:
    return frozenset(host.name for topology in TOPOLOGIES.values() for host in topology.hosts)


def _namespaces() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(NETNS_DIR))
    return []


def _namespaces_of(suffix: str, hosts: Iterable[str]) -> list[str]:
    ours = {namespace(suffix, host) for host in hosts}
    return [name for name in _namespaces() if name in ours]


def processes_in(namespaces: Sequence[str]) -> list[int]:
    """Ids of the processes in these namespaces; never of those that share our own."""

    def identity(path: str | Path) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            return status.st_dev, status.st_ino
        return None

    wanted = {identity(NETNS_DIR / name) for name in namespaces}
    wanted -= {None, identity("/proc/self/ns/net"), identity("/proc/1/ns/net")}
    return [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and identity(f"/proc/{pid}/ns/net") in wanted
    ]


def named_processes(namespace: str) -> dict[str, int]:
    """The pid of each process in a namespace that tunlb gave a name, such as `tunlb-worker-0`."""
    found: dict[str, int] = {}
    for pid in processes_in([namespace]):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            # What the keeper has just forked has its name until it has its own.
            if name == KEEPER and found.get(name, pid) < pid:
                continue
            if name.startswith(f"{PREFIX}-"):
                found[name] = pid
    return found


def workers_in(namespace: str) -> dict[int, int]:
    """The pid of each worker that forwards in a namespace, by its number."""
    start = f"{PREFIX}-worker-"
    return {
        int(name.removeprefix(start)): pid
        for name, pid in named_processes(namespace).items()
        if name.startswith(start)
    }


def kill_in(namespaces: Sequence[str]) -> None:
    """Kills whatever runs in these namespaces, and waits until it is gone."""

    def empty() -> bool:
        pids = processes_in(namespaces)
        for pid in pids:  # again and again: one may have forked meanwhile
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    _wait_until(
        empty,
        lambda: f"processes in {', '.join(namespaces)} do not end: {processes_in(namespaces)}",
        timeout=_KILL_TIMEOUT_S,
    )


def remove(suffix: str, hosts: Iterable[str] | None = None) -> list[str]:
    """Ends what runs in the lab's namespaces and removes them; their names. Idempotent.

    It asks the kernel, not a record, so it also removes what a crashed set-up left behind.
    `hosts` names the namespaces of a network that is none of TOPOLOGIES.
    """
    names = _namespaces_of(check_suffix(suffix), _host_names() if hosts is None else hosts)
    kill_in(names)
    if names:
        ip("-force", batch=[f"netns del {name}" for name in names])
    shutil.rmtree(state_dir(suffix), ignore_errors=True)
    return names


def running() -> list[LabState]:
    """Every lab of this machine (or of this rootless shell), whole or in pieces."""
    found = set[str]()
    with contextlib.suppress(FileNotFoundError):
        found.update(path.name for path in STATE_DIR.iterdir() if path.is_dir())
    hosts = _host_names()
    for name in _namespaces():
        prefix, _, rest = name.partition("-")
        suffix, _, host = rest.rpartition("-")
        if prefix == PREFIX and host in hosts and _topology_of(suffix):
            found.add(suffix)
    return [_state(suffix) for suffix in sorted(found) if _SUFFIX.fullmatch(suffix)]


def _topology_of(suffix: str) -> str:
    """The topology that a default suffix names, or the empty string."""
    for name in TOPOLOGIES:
        if suffix == name or suffix.startswith(f"{name}-"):
            return name
    return ""


def _state(suffix: str) -> LabState:
    names = tuple(_namespaces_of(suffix, _host_names()))
    record: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((state_dir(suffix) / "state.json").read_text("utf-8"))
    topology = str(record.get("topology") or _topology_of(suffix) or "?")
    expected = TOPOLOGIES[topology].hosts if topology in TOPOLOGIES else ()
    return LabState(
        suffix=suffix,
        topology=topology,
        namespaces=names,
        pids=tuple(sorted(processes_in(names))),
        created=str(record.get("created", "")),
        complete=bool(record) and len(names) == len(expected),
    )
