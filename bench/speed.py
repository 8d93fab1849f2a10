"""Speed of tunlb beside the limit of the device, in one run over the same two TAPs.

Client and server live in network namespaces of their own; between them stands the director's
namespace with a bridge on either side and one TAP on each bridge. The subjects take turns at the
two TAPs: a bare C loop that copies frames (`reflector`), then tunlb with NAT, with FNAT, and
uncompiled. Absolute figures of a machine move by a factor of two from minute to minute, so each
subject is compared with the reflector's figure of the same round, and the median of those ratios
is what counts.

    client --- br-out --- lb-out  [ subject ]  lb-in --- br-in --- server
    10.9.1.2/24                                                    10.9.2.2/24

The reflector makes one segment of the two, so each end reaches the other's subnet on link; tunlb
is a router between them, so the server's way back is its inside address. One route on each end is
all that differs between the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
PURE = ROOT / "build" / "pure"
RESULTS = HERE / "results"

CLIENT = "tunlb-bench-client"
DIRECTOR = "tunlb-bench-dir"
SERVER = "tunlb-bench-server"

CLIENT_ADDR = "10.9.1.2"
SERVER_ADDR = "10.9.2.2"
VIP = "10.9.1.100"
OUTSIDE = "10.9.1.254"
INSIDE = "10.9.2.254"
# Each connection keeps its laddr and lport for TIME_WAIT's two minutes: at 15 k/s one laddr would
# be used up in 4 s. 64 of them hold 4 M connections.
LADDRS = "10.9.2.16-10.9.2.79"

BULK_PORT = 5201
CRR_PORT = 7000
UDP_PORT = 7001
# tunlb's default, so that the reflector's rings are as long.
TXQUEUELEN = 4096
READY_S = 15.0
STOP_S = 5.0

SYSCTLS = MappingProxyType(
    {
        "net/ipv6/conf/all/disable_ipv6": "1",
        "net/ipv6/conf/default/disable_ipv6": "1",
        # Client ports come round after 30 k connections instead of 14 k (see crr.c on who closes).
        "net/ipv4/ip_local_port_range": "1024 65535",
        "net/ipv4/tcp_tw_reuse": "1",
        # Timestamps without a random offset for each pair of addresses. The server's TIME_WAIT of
        # one turn meets the same client port in the next turn, where the client spoke to another
        # address: with offsets every other such SYN would look old and be refused for a second
        # (measured with two addresses of one server in turns: 1.1 k/s instead of 7.5 k/s).
        "net/ipv4/tcp_timestamps": "2",
        # A turn must not start with the congestion window that the turn before it ended with.
        "net/ipv4/tcp_no_metrics_save": "1",
    }
)


class BenchError(Exception):
    """The run cannot go on; the text says what happened, where, and what to do."""


def sh(*argv: str, stdin: str | None = None, timeout_s: float = 30.0) -> str:
    """Standard output of a command that must succeed.

    Raises:
        BenchError: it failed or took too long; with the command and what it wrote.
    """
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{' '.join(argv)}: not done after {timeout_s:g} s") from None
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@dataclass(frozen=True)
class Pins:
    """CPU lists for taskset; empty leaves the placing to the kernel."""

    subject: str = ""
    peers: str = ""


def spread() -> Pins:
    """The last CPU for the subject, all others for client and server."""
    *peers, subject = sorted(os.sched_getaffinity(0))
    if not peers:
        raise BenchError("--pin needs two CPUs or more; run without it")
    return Pins(str(subject), ",".join(map(str, peers)))


def inside(namespace: str, cpus: str, argv: Sequence[str]) -> list[str]:
    """`argv` as run in a namespace. Nothing forks on the way, so signals reach the program."""
    pin = ["taskset", "-c", cpus] if cpus else []
    return ["ip", "netns", "exec", namespace, *pin, *argv]


class Child:
    """A process whose output goes to a file, so that no full pipe can ever stall it."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._name = " ".join(argv)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
            )

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, sign: str) -> str:
        """The first whole line that holds `sign`, waited for up to READY_S."""
        deadline = time.monotonic() + READY_S
        while True:
            running = self._process.poll() is None
            for line in self.text().splitlines(keepends=True):
                if sign in line and line.endswith("\n"):
                    return line
            if not running or time.monotonic() > deadline:
                state = "did not say" if running else f"ended ({self._process.returncode}) before"
                raise BenchError(f"{self._name}: {state} {sign!r}")
            time.sleep(0.01)

    def stop(self) -> str:
        """Ends the process if it still runs; all that it wrote."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return self.text()


class Bench:
    """The network, the programs in it, and the one who stands at the TAPs at the moment."""

    def __init__(self, scratch: Path, seconds: float, pins: Pins) -> None:
        self.seconds = seconds
        self._scratch = scratch
        self._pins = pins
        self._logs = 0

    def _log(self) -> Path:
        self._logs += 1
        return self._scratch / f"{self._logs}.log"

    @contextlib.contextmanager
    def child(
        self,
        namespace: str,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[Child]:
        cpus = self._pins.subject if namespace == DIRECTOR else self._pins.peers
        child = Child(inside(namespace, cpus, argv), self._log(), cwd=cwd, env=env)
        try:
            yield child
        except BenchError as error:
            error.add_note(f"{' '.join(argv)} wrote:\n{child.stop()[-2000:]}")
            raise
        finally:
            child.stop()

    def client(self, *argv: str) -> str:
        return sh(*inside(CLIENT, self._pins.peers, argv), timeout_s=self.seconds + 30)

    @contextlib.contextmanager
    def reflector(self) -> Iterator[str]:
        """The C loop at the TAPs; gives the address that the client talks to."""
        with self.child(DIRECTOR, [str(BUILD / "reflector"), "lb-out", "lb-in"]) as child:
            child.wait_for("ready")
            lines = [
                f"link set lb-{side} txqueuelen {TXQUEUELEN} master br-{side} up"
                for side in ("out", "in")
            ]
            sh("ip", "-n", DIRECTOR, "-batch", "-", stdin="\n".join(lines))
            self._route(to_server="dev eth0", to_client="dev eth0")
            yield SERVER_ADDR

    @contextlib.contextmanager
    def tunlb(self, mode: str, build: str) -> Iterator[str]:
        """tunlb at the TAPs, in forwarding mode `mode`; gives the VIP."""
        config = self._scratch / f"{mode}.jsonl"
        config.write_text(configuration(mode, self._scratch / "control.sock"))
        tree = ROOT if build == "compiled" else PURE
        argv = [sys.executable, "-m", "tunlb", "run", "-c", str(config)]
        # `python -m` looks into the working directory first, so that has to be the tree as well.
        with self.child(DIRECTOR, argv, cwd=tree, env={"PYTHONPATH": str(tree)}) as child:
            ready = json.loads(child.wait_for('"ready"'))
            if ready.get("build") != build:
                raise BenchError(
                    f"tunlb in {tree} runs {ready.get('build')!r}, not {build!r}: "
                    "`make build` makes the compiled tree, `make pure` the other"
                )
            self._route(to_server=f"via {OUTSIDE}", to_client=f"via {INSIDE}")
            yield VIP

    def _route(self, *, to_server: str, to_client: str) -> None:
        sh("ip", "-n", CLIENT, "route", "replace", "10.9.2.0/24", *to_server.split())
        sh("ip", "-n", SERVER, "route", "replace", "10.9.1.0/24", *to_client.split())
        for namespace in (CLIENT, SERVER):
            sh("ip", "-n", namespace, "neigh", "flush", "all")

    def bulk(self, target: str) -> float:
        """One TCP stream of iperf3; bits a second that arrived."""
        argv = ["iperf3", "--server", "--one-off", "--forceflush", "--port", str(BULK_PORT)]
        with self.child(SERVER, argv) as server:
            server.wait_for("listening")
            port, seconds = str(BULK_PORT), f"{self.seconds:g}"
            text = self.client("iperf3", "-c", target, "-p", port, "-t", seconds, "--json")
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"])

    def udp(self, target: str) -> float:
        """Eight flows of 18-byte packets at overload; packets a second that arrived."""
        with self.child(SERVER, [str(BUILD / "udpflood"), "sink", str(UDP_PORT)]) as sink:
            sink.wait_for("ready")
            text = self.client(
                str(BUILD / "udpflood"), "send", target, str(UDP_PORT), "-t", f"{self.seconds:g}"
            )
            # The last ringful is still on its way when the sender is done.
            time.sleep(0.2)
            arrived = json.loads(sink.stop().splitlines()[-1])
        return float(arrived["packets"]) / float(json.loads(text)["seconds"])

    def crr(self, target: str) -> float:
        """Exchanges (connect, request, response, close) a second, 16 at a time."""
        with self.child(SERVER, [str(BUILD / "crr"), "server", str(CRR_PORT)]) as server:
            server.wait_for("ready")
            text = self.client(
                str(BUILD / "crr"), "client", target, str(CRR_PORT), "-t", f"{self.seconds:g}"
            )
        figures = json.loads(text)
        if figures["errors"]:
            raise BenchError(f"connections through {target} failed: {text.strip()}")
        return float(figures["rate"])

    def prove(self, target: str) -> None:
        """One exchange end to end: fills every neighbour table, and fails before a load hangs."""
        with self.child(SERVER, [str(BUILD / "crr"), "server", str(CRR_PORT)]) as server:
            server.wait_for("ready")
            self.client(str(BUILD / "crr"), "client", target, str(CRR_PORT), "-n", "1", "-t", "10")


def configuration(mode: str, control: Path) -> str:
    """tunlb's configuration for one forwarding mode, as JSON lines."""
    services = (("bulk", "tcp", BULK_PORT), ("crr", "tcp", CRR_PORT), ("udp", "udp", UDP_PORT))
    lines: list[dict[str, object]] = [
        {"kind": "tunlb", "version": 1, "name": "bench", "workers": 1, "control": str(control)},
        {"kind": "port", "name": "lb-out", "bridge": "br-out", "addresses": [f"{OUTSIDE}/24"]},
        {"kind": "port", "name": "lb-in", "bridge": "br-in", "addresses": [f"{INSIDE}/24"]},
    ]
    for name, proto, port in services:
        service: dict[str, object] = {"kind": "service", "name": name, "proto": proto}
        service |= {"vaddr": VIP, "vport": port, "fwdmode": mode, "scheduler": "rr"}
        if mode == "fnat":
            service["laddrs"] = [LADDRS]
        lines.append(service)
        lines.append({"kind": "dest", "service": name, "daddr": SERVER_ADDR, "dport": port})
    return "".join(json.dumps(line) + "\n" for line in lines)


@dataclass(frozen=True)
class Load:
    name: str
    run: Callable[[Bench, str], float]
    unit: str
    per_unit: float
    goal: float  # of the reflector's figure in the same round
    title: str


@dataclass(frozen=True)
class Subject:
    name: str
    stand: Callable[[Bench], contextlib.AbstractContextManager[str]]
    loads: tuple[str, ...]
    floor: float | None = None  # an absolute goal (in the load's base unit) instead of a ratio


LOADS = (
    Load("bulk", Bench.bulk, "Gb/s", 1e9, 0.9, "TCP bulk, one stream"),
    Load("udp", Bench.udp, "kpps", 1e3, 0.9, "UDP 18 B, 8 flows"),
    Load("crr", Bench.crr, "k/s", 1e3, 0.8, "connect-request-response-close"),
)
SUBJECTS = (
    Subject("reflector", Bench.reflector, ("bulk", "udp", "crr")),
    Subject("nat", lambda bench: bench.tunlb("nat", "compiled"), ("bulk", "udp", "crr")),
    Subject("fnat", lambda bench: bench.tunlb("fnat", "compiled"), ("bulk", "udp", "crr")),
    Subject("uncompiled", lambda bench: bench.tunlb("nat", "uncompiled"), ("bulk",), 3e9),
)


@dataclass(frozen=True)
class Sample:
    round: int
    load: str
    subject: str
    value: float  # bits, packets or exchanges a second


@dataclass(frozen=True)
class Row:
    """One line of the final table: medians over the rounds, ratios taken within each round."""

    load: Load
    subject: Subject
    value: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def reached(self) -> bool | None:
        """None: nothing to reach (the reflector), or no reflector to compare with."""
        if self.subject.floor is not None:
            return self.value >= self.subject.floor
        if self.subject.name == "reflector" or self.ratio is None:
            return None
        return self.ratio >= self.load.goal


def rows(samples: Sequence[Sample]) -> list[Row]:
    """The final table's rows, loads in order, subjects in order; those without samples left out."""
    limit = {(s.round, s.load): s.value for s in samples if s.subject == "reflector"}
    table = []
    for load in LOADS:
        for subject in SUBJECTS:
            own = [s for s in samples if (s.load, s.subject) == (load.name, subject.name)]
            if not own:
                continue
            ratios = tuple(
                s.value / limit[s.round, s.load] for s in own if (s.round, s.load) in limit
            )
            table.append(Row(load, subject, statistics.median(s.value for s in own), ratios))
    return table


def report(table: Sequence[Row], console: Console) -> None:
    printed = Table(title="tunlb beside the limit of the device (medians; ratios within a round)")
    for heading in ("load", "subject", "median", "of the limit", "spread", "goal", "reached"):
        left = heading in ("load", "subject")
        printed.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in table:
        goal, verdict = "", ""
        if row.reached is not None:
            floor = row.subject.floor
            per_unit, unit = row.load.per_unit, row.load.unit
            goal = f">= {row.load.goal:.2f}" if floor is None else f">= {floor / per_unit:g} {unit}"
            verdict = "yes" if row.reached else "NO"
        printed.add_row(
            row.load.title,
            row.subject.name,
            f"{row.value / row.load.per_unit:.2f} {row.load.unit}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            f"{min(row.ratios):.2f}-{max(row.ratios):.2f}" if row.ratios else "-",
            goal,
            verdict,
        )
    console.print(printed)


def build_tools(console: Console) -> None:
    """Compiles the C programs; a BenchError names the packages of tools that are missing."""
    needed = {"ip": "iproute2", "iperf3": "iperf3", "cc": "gcc", "taskset": "util-linux"}
    missing = [package for tool, package in needed.items() if not shutil.which(tool)]
    if missing:
        raise BenchError(f"missing: {' '.join(missing)}; apt-get install {' '.join(missing)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("reflector", "crr", "udpflood"):
        sh("cc", "-O2", "-Wall", "-Wextra", "-o", str(BUILD / name), str(HERE / f"{name}.c"))
    console.print("built reflector, crr, udpflood")


def tear_down() -> None:
    """Removes the three namespaces if they are there, and with them every device; not while a
    program that this run did not start is in one of them."""
    listing = sh("ip", "netns", "list").splitlines()
    present = {line.split()[0] for line in listing if line} & {CLIENT, DIRECTOR, SERVER}
    for namespace in sorted(present):
        if pids := sh("ip", "netns", "pids", namespace).split():
            raise BenchError(
                f"in {namespace} still run {', '.join(pids)}: end them, then try again"
            )
    for namespace in sorted(present):
        sh("ip", "netns", "del", namespace)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two runs at once would take each other's namespaces, and half of the machine."""
    with (BUILD / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError("another speed run is under way; wait for its end") from None
        yield


@contextlib.contextmanager
def network() -> Iterator[None]:
    """The three namespaces, their veths and bridges; what an earlier crash left goes first."""
    tear_down()
    try:
        for namespace in (CLIENT, DIRECTOR, SERVER):
            sh("ip", "netns", "add", namespace)
            writes = [f"echo {value} > /proc/sys/{key}" for key, value in SYSCTLS.items()]
            sh("ip", "netns", "exec", namespace, "sh", "-ec", "\n".join(writes))
            sh("ip", "-n", namespace, "link", "set", "lo", "up")
        ends = ((CLIENT, "out", f"{CLIENT_ADDR}/24"), (SERVER, "in", f"{SERVER_ADDR}/24"))
        for namespace, side, address in ends:
            lines = [
                f"link add br-{side} type bridge",
                f"link add veth-{side} type veth peer name eth0 netns {namespace}",
                f"link set veth-{side} master br-{side} up",
                f"link set br-{side} up",
            ]
            sh("ip", "-n", DIRECTOR, "-batch", "-", stdin="\n".join(lines))
            lines = [f"addr add {address} dev eth0", "link set eth0 up"]
            sh("ip", "-n", namespace, "-batch", "-", stdin="\n".join(lines))
        yield
    finally:
        tear_down()


def measure(
    bench: Bench, subjects: Sequence[Subject], loads: Sequence[Load], rounds: int, console: Console
) -> Iterator[Sample]:
    """Samples as they come: within a round the subjects follow each other for each load, so that
    what is compared was measured seconds apart."""
    for turn in range(1, rounds + 1):
        for load in loads:
            for subject in subjects:
                if load.name not in subject.loads:
                    continue
                with subject.stand(bench) as target:
                    bench.prove(target)
                    value = load.run(bench, target)
                figure = f"{value / load.per_unit:8.2f} {load.unit}"
                console.print(f"round {turn}/{rounds}  {load.name:4}  {subject.name:10} {figure}")
                yield Sample(turn, load.name, subject.name, value)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [load.name for load in LOADS] + [subject.name for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description="tunlb's speed beside the limit of a TAP device")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each subject (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load (3)")
    parser.add_argument("--only", default="", help=f"comma list out of {', '.join(names)}")
    parser.add_argument(
        "--pin", action="store_true", help="subject on the last CPU, client and server on the rest"
    )
    args = parser.parse_args(argv)
    args.only = {name for name in args.only.split(",") if name}
    if unknown := args.only - set(names):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    if args.rounds < 1 or args.seconds < 0.2:
        parser.error("--rounds must be 1 or more, --seconds 0.2 or more")
    return args


def run(args: argparse.Namespace, console: Console) -> list[Row]:
    """The whole run: network, turns, results file, table."""
    if os.geteuid():
        raise BenchError(
            "namespaces need root; without it: unshare --user --map-root-user --net --mount "
            f"sh -c 'mount -t tmpfs none /run && {sys.executable} bench/speed.py'"
        )
    loads = [load for load in LOADS if load.name in args.only] or LOADS
    subjects = [subject for subject in SUBJECTS if subject.name in args.only] or SUBJECTS
    build_tools(console)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("speed-%Y%m%d-%H%M%S.jsonl")
    head = {"kernel": platform.release(), "cpus": os.cpu_count(), "seconds": args.seconds}
    head |= {"python": platform.python_version(), "pin": args.pin, "rounds": args.rounds}
    samples: list[Sample] = []
    with (
        alone(),
        network(),
        tempfile.TemporaryDirectory(prefix="tunlb-bench-") as scratch,
        path.open("w") as output,
    ):
        print(json.dumps(head), file=output)
        bench = Bench(Path(scratch), args.seconds, spread() if args.pin else Pins())
        for sample in measure(bench, subjects, loads, args.rounds, console):
            samples.append(sample)
            print(json.dumps(vars(sample)), file=output, flush=True)
    table = rows(samples)
    report(table, console)
    console.print(f"every figure: {path.relative_to(ROOT)}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """0: every goal reached; 1: one missed, or the run failed; 2: usage."""
    args = arguments(argv)

    def leave(signum: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signum)  # unwinds, so that processes and namespaces go

    signal.signal(signal.SIGTERM, leave)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    try:
        table = run(args, console)
    except BenchError as error:
        print(
            f"bench/speed.py: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return int(any(row.reached is False for row in table))


if __name__ == "__main__":
    sys.exit(main())
