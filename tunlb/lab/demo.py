"""`tunlb demo`: real clients, a real tunlb, three real servers, and a table of what happened."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import tunlb
from tunlb.lab import clients
from tunlb.lab.ending import orderly_end
from tunlb.lab.host import LabError
from tunlb.lab.net import Lab
from tunlb.lab.process import TunlbError, TunlbProcess
from tunlb.lab.topology import ONE_ARM, Family, Topology

FETCHES: Mapping[Family, int] = MappingProxyType({"v4": 40, "v6": 12})
TCP_SECONDS = 3
UDP_SECONDS = 2
# Some 17,000 datagrams a second, or 3,400: what the build keeps up with on a slow machine too.
UDP_BITRATE = "200M" if tunlb.build() == "compiled" else "40M"
MAX_UDP_LOSS_PERCENT = 50.0
_LOG_TAIL = 15


@dataclass
class Results:
    """What the demo found out. Fetches are counted by the server's name."""

    fetches: dict[Family, Counter[str]] = field(default_factory=dict)
    tcp: clients.Iperf | None = None
    udp: clients.Iperf | None = None


def problems(topology: Topology, results: Results) -> list[str]:
    """One sentence for everything that is not as it should be."""
    found: list[str] = []
    for family, expected in FETCHES.items():
        counts = results.fetches.get(family, Counter())
        if counts.total() != expected:
            found.append(f"{counts.total()} of {expected} fetches over {family} were answered")
        strangers = set(counts) - set(topology.server_names)
        if strangers:
            found.append(f"answers came from {', '.join(sorted(strangers))}, which is no server")
        found += [
            f"{server} took no fetch over {family}"
            for server in topology.server_names
            if counts[server] == 0
        ]
    if results.tcp is None or results.tcp.gbps <= 0:
        found.append("no TCP traffic of iperf3 arrived")
    if results.udp is None or results.udp.gbps <= 0:
        found.append("no UDP traffic of iperf3 arrived")
    elif results.udp.lost_percent > MAX_UDP_LOSS_PERCENT:
        found.append(f"{results.udp.lost_percent:.0f} % of the UDP datagrams were lost")
    return found


def tables(topology: Topology, results: Results) -> list[Table]:
    served = Table(title=f"{topology.name}: who served")
    served.add_column("server")
    served.add_column("weight", justify="right")
    for family in FETCHES:
        served.add_column(f"HTTP, IP{family}", justify="right")
    weights = topology.service("web").weights
    for server, weight in zip(topology.server_names, weights, strict=True):
        counts = [str(results.fetches.get(family, Counter())[server]) for family in FETCHES]
        served.add_row(server, str(weight), *counts)
    speed = Table(title="how fast")
    speed.add_column("iperf3 through the VIP")
    speed.add_column("Gb/s", justify="right")
    speed.add_column("loss", justify="right")
    if results.tcp is not None:
        resent = f"{results.tcp.retransmits} segments resent"
        speed.add_row(f"TCP, 1 stream, {TCP_SECONDS} s", f"{results.tcp.gbps:.2f}", resent)
    if results.udp is not None:
        speed.add_row(
            f"UDP, {UDP_BITRATE}b/s offered, {UDP_SECONDS} s",
            f"{results.udp.gbps:.3f}",
            f"{results.udp.lost_percent:.2f} %",
        )
    return [served, speed]


Update = Callable[[int], None]
Step = tuple[str, int | None, Callable[[Update], str]]


class Demo:
    """The steps, in order. Each takes a function to tell its progress and returns a remark."""

    def __init__(self, topology: Topology, lab: Lab, results: Results) -> None:
        self.topology = topology
        self.lab = lab
        self.results = results
        self.tunlb: TunlbProcess | None = None

    def steps(self) -> list[Step]:
        servers = len(self.topology.servers)
        vips = self.topology.vips
        return [
            (f"building a network: client, director, {servers} servers", None, self._build),
            ("starting tunlb on a TAP", None, self._start),
            *(
                (
                    f"{count} HTTP fetches from {clients.url(vips.of(family), 80)}",
                    count,
                    self._fetching(family, count),
                )
                for family, count in FETCHES.items()
            ),
            (f"iperf3 over TCP, {TCP_SECONDS} s", None, self._tcp),
            (f"iperf3 over UDP, {UDP_SECONDS} s", None, self._udp),
        ]

    def _build(self, _: Update) -> str:
        self.lab.up()
        return f"namespaces tunlb-{self.lab.suffix}-*"

    def _start(self, _: Update) -> str:
        self.tunlb = self.lab.start_tunlb()
        return f"ready, {tunlb.build()} build, process {self.tunlb.pid}"

    def _fetching(self, family: Family, count: int) -> Callable[[Update], str]:
        target = clients.url(self.topology.vips.of(family), self.topology.service("web").vport)

        def fetch(update: Update) -> str:
            counts = self.results.fetches.setdefault(family, Counter())
            for number in range(count):
                answer = clients.fetch(self.lab.client, target, python=sys.executable)
                if answer.status != 200:
                    raise LabError(f"{target} answered with HTTP status {answer.status}")
                counts[answer.body.strip()] += 1
                update(number + 1)
            return ", ".join(f"{server} took {took}" for server, took in sorted(counts.items()))

        return fetch

    def _tcp(self, _: Update) -> str:
        self.results.tcp = clients.iperf3(
            self.lab.client, self.topology.vips.v4, seconds=TCP_SECONDS
        )
        return f"{self.results.tcp.gbps:.2f} Gb/s"

    def _udp(self, _: Update) -> str:
        self.results.udp = clients.iperf3(
            self.lab.client,
            self.topology.vips.v4,
            seconds=UDP_SECONDS,
            udp=True,
            bitrate=UDP_BITRATE,
            length=1400,
        )
        return f"{self.results.udp.gbps:.3f} Gb/s, {self.results.udp.lost_percent:.2f} % lost"


def perform(steps: list[Step], console: Console) -> None:
    """Does the steps: with bars on a terminal, with two plain lines for each elsewhere."""
    if not console.is_terminal:
        for number, (what, _, action) in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {what}", flush=True)
            print(f"      {action(lambda _: None)}", flush=True)
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        for what, total, action in steps:
            task = progress.add_task(what, total=total, remark="")

            def update(done: int, task: TaskID = task) -> None:
                progress.update(task, completed=done)

            remark = action(update)
            progress.update(task, total=total or 1, completed=total or 1, remark=remark)


def run(console: Console | None = None) -> int:
    """The whole demo; its exit status: 0, 1 when something failed, 128 + signal when ended."""
    console = console or Console()
    results = Results()
    lab = Lab(ONE_ARM)
    demo = Demo(ONE_ARM, lab, results)
    failed: str | None = None
    with contextlib.ExitStack() as stack:
        ignore_signals = stack.enter_context(orderly_end())
        stack.callback(console.print, "everything removed", highlight=False)
        stack.callback(lab.down)
        stack.callback(ignore_signals)
        try:
            perform(demo.steps(), console)
        except (LabError, TunlbError, OSError) as error:
            failed = str(error)
            log = [] if demo.tunlb is None else demo.tunlb.log_lines[-_LOG_TAIL:]
            if log:
                failed += "\ntunlb logged last:\n" + "\n".join(f"  {line}" for line in log)
    if failed is None:
        for table in tables(ONE_ARM, results):
            console.print(table)
        build = f"{tunlb.build()} build, Python {platform.python_version()}"
        console.print(f"tunlb {tunlb.__version__}, {build}", highlight=False)
    wrong = [failed] if failed is not None else problems(ONE_ARM, results)
    for problem in wrong:
        print(f"tunlb demo: FAILED: {problem}", file=sys.stderr)
    return 1 if wrong else 0
