"""SCTP with real peers: usrsctp's own programs (libusrsctp-examples), a whole stack in user space.

Kernels often come without SCTP. These programs speak it through raw sockets, so their packets are
those of a wire: four-way handshake, CRC-32C verified by each receiver, data, shutdown. Each host
keeps addresses of one family only: what is balanced is one path.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import demand
from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    counters,
    drops,
    eventually,
    service,
    with_keys,
    with_lines,
    workers_of,
)
from tunlb.lab import Lab
from tunlb.lab.host import ip

PROGRAMS = Path("/usr/lib/usrsctp")
RAW = "0"  #: no encapsulation in UDP, which these programs otherwise do
PORT = 7
PLANNED = {"MARTIAN", "NOT_FORWARDED", "ICMP_IGNORED", "OTHERHOST", "TX_BLOCKED"}
# topology, mode, the servers' family if it is another one than the client's
WAYS = {
    "fnat": ("one-arm", "fnat", False),
    "nat": ("two-arm", "nat", False),
    "dr": ("dr", "dr", False),
    "nat64": ("one-arm", "fnat", True),
}


@pytest.fixture(autouse=True)
def _programs(privileged: None) -> None:
    missing = not (PROGRAMS / "client").exists()
    demand(["usrsctp's programs are not there: install libusrsctp-examples"] if missing else [])


class Peers:
    """Echo servers in every server's host, and clients; all of one family on their side."""

    def __init__(self, lab: Lab, client: Family, server: Family) -> None:
        self.lab = lab
        self._keep(lab.client.ns, client)
        self.servers = [lab.host(name) for name in lab.topology.server_names]
        for host in self.servers:
            if lab.topology.name == "dr":
                self._move_vip(host.ns, server)
            self._keep(host.ns, server)
            host.popen([str(PROGRAMS / "echo_server"), RAW, RAW], stdout=subprocess.DEVNULL)
        for host in self.servers:
            eventually(lambda host=host: self._listens(host.path))  # type: ignore[misc]

    def _keep(self, ns: str, family: Family) -> None:
        ip("-n", ns, "-6" if family == "v4" else "-4", "address", "flush", "dev", "eth0")

    def _move_vip(self, ns: str, family: Family) -> None:
        """usrsctp does not look at addresses of `lo`."""
        address = self.lab.topology.vips.of(family) + ("/32" if family == "v4" else "/128")
        ip("-n", ns, "address", "del", address, "dev", "lo")
        ip("-n", ns, "link", "add", "vip0", "type", "bridge")
        ip("-n", ns, "link", "set", "vip0", "up")
        ip("-n", ns, "address", "add", address, "dev", "vip0")

    def _listens(self, path: Path) -> bool:
        """Whether a program in that namespace has raw sockets for SCTP."""
        table = subprocess.run(
            ["nsenter", f"--net={path}", "cat", "/proc/net/raw"],
            capture_output=True,
            text=True,
            check=True,
        )
        return any(line.split()[1].endswith(":0084") for line in table.stdout.splitlines()[1:])

    def client(self, address: str) -> Client:
        return Client(self.lab, address)


class Client:
    """One association; its program sends each line of its input, and prints what comes back."""

    def __init__(self, lab: Lab, address: str) -> None:
        self.path = lab.dir / f"sctp-{time.monotonic_ns()}.log"
        with self.path.open("wb") as log:
            self._process = lab.client.popen(
                [str(PROGRAMS / "client"), address, str(PORT), "0", RAW, RAW],
                stdin=subprocess.PIPE,
                stdout=log,
            )

    def says(self) -> list[str]:
        return self.path.read_text("utf-8", "replace").splitlines()

    def send(self, lines: Sequence[str]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(line + "\n" for line in lines))
        self._process.stdin.flush()

    def hears(self, lines: Sequence[str]) -> bool:
        """Wait until each line has come back."""
        return eventually(lambda: set(lines) <= set(self.says()), 8)

    def shut(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def ends(self) -> None:
        """Wait until both ends agree that the association is over."""
        eventually(lambda: any("SCTP_SHUTDOWN_COMP" in line for line in self.says()))
        assert any("SCTP_COMM_UP" in line for line in self.says())


def configured(lab: Lab, family: Family, mode: str, crossed: bool, workers: int = 1) -> str:
    inside: Family = ("v4" if family == "v6" else "v6") if crossed else family
    keys: dict[str, object] = {"proto": "sctp", "fwdmode": mode, "scheduler": "rr"}
    if mode == "fnat":
        assert lab.topology.laddrs is not None
        keys["laddrs"] = [lab.topology.laddrs.of(inside)]
    dests = [pair.of(inside) for _, pair in lab.topology.servers]
    lines = service("sctp", lab.topology.vips.of(family), PORT, dests, **keys)
    return with_keys(with_lines(lab.topology.config_text, *lines), "tunlb", workers=workers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_associations(lab: LabFactory, way: str, family: Family) -> None:
    """Three of them, one a server: text, bulk of several packets, and an orderly end."""
    topology, mode, crossed = WAYS[way]
    made = lab(topology)
    inside: Family = ("v4" if family == "v6" else "v6") if crossed else family
    peers = Peers(made, family, inside)
    tunlb = made.start_tunlb(configured(made, family, mode, crossed, workers=2))
    found = []
    for number in range(3):
        # One after the other: every stack of a host reads all that comes to it, and one that is
        # starting aborts what it does not know.
        client = peers.client(made.topology.vips.of(family))
        client.send([f"hello from {number}"])
        client.hears([f"hello from {number}"])
        found.append(client)
    bulk = [f"{n:04} " + "x" * 1000 for n in range(50)]
    for client in found:
        client.send(bulk)
    for client in found:
        client.hears(bulk)
        client.shut()
    for client in found:
        client.ends()
    seen = counters(tunlb)
    assert drops(seen) <= PLANNED, seen
    assert seen["CONN_NEW"] == 3
    assert seen.get("NAT64_PACKETS", 0) == (
        seen["IPVS_IN_PACKETS"] + seen["IPVS_OUT_PACKETS"] if crossed else 0
    )
    assert seen.get("HANDED_OVER", 0) == 0


def test_a_worker_is_killed(lab: LabFactory) -> None:
    made = lab("one-arm")
    peers = Peers(made, "v4", "v4")
    tunlb = made.start_tunlb(configured(made, "v4", "fnat", False))
    client = peers.client(made.topology.vips.v4)
    client.send(["before"])
    client.hears(["before"])
    [worker] = workers_of(made).values()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: list(workers_of(made).values()) not in ([], [worker]))
    client.send(["after"])
    client.hears(["after"])
    client.shut()
    client.ends()
    assert counters(tunlb)["CONN_ADOPTED"] == 1


@pytest.mark.parametrize(
    ("way", "family", "table", "counter"),
    [("fnat", "v4", "snmp", "InType3"), ("nat64", "v6", "snmp6", "Icmp6InType4")],
)
def test_a_server_without_sctp(
    lab: LabFactory, way: str, family: Family, table: str, counter: str
) -> None:
    """Its kernel says that it has no such protocol; the client's kernel hears it in its words."""
    topology, mode, crossed = WAYS[way]
    made = lab(topology)
    tunlb = made.start_tunlb(configured(made, family, mode, crossed))
    Client(made, made.topology.vips.of(family))
    told = lambda: counter in made.client.run(["cat", f"/proc/net/{table}"]).stdout  # noqa: E731
    eventually(told)
    assert counters(tunlb)["ICMP_RELATED"] >= 1
