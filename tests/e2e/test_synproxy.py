"""The SYN proxy with real kernels on both sides: what they agree on, and a flood meanwhile."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import demand
from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    LabFactory,
    Line,
    counters,
    drops,
    lines_of,
    service,
    text_of,
    with_keys,
    with_lines,
    workers_of,
)
from tests.e2e.test_modes import PLANNED_DROPS
from tunlb.lab import TOPOLOGIES, Host, Lab, Topology, TunlbProcess, clients
from tunlb.lab.servers import pattern

pytestmark = pytest.mark.alone

FLOOD = Path(__file__).with_name("synflood.py")
RATE = 10_000 if COMPILED else 1000  # SYNs a second
SIZE = 20_000_000 if COMPILED else 2_000_000
SOURCES = {"v4": "198.18.", "v6": "2001:db8:1::"}
CLOSED = 8011  # a port on which no server listens


# What the client's kernel says of answers to addresses that it does not have.
MORE_DROPS = {"ICMP_UNRELATED"}


@dataclass
class Site:
    lab: Lab
    tunlb: TunlbProcess

    def vip(self, family: Family) -> str:
        return self.lab.topology.vips.of(family)

    def connect(self, family: Family, port: int) -> socket.socket:
        kind = socket.AF_INET if family == "v4" else socket.AF_INET6
        sock = self.lab.client.socket(kind, socket.SOCK_STREAM)
        try:
            sock.settimeout(15)
            sock.connect((self.vip(family), port))
        except OSError:  # a reset may come before connect(2) returns
            sock.close()
            raise
        return sock


def proxied(text: str, **keys: object) -> str:
    """The configuration with a SYN proxy for every TCP service."""
    lines = lines_of(text)
    for line in lines:
        if line["kind"] == "service" and line["proto"] == "tcp":
            line.update({"synproxy": True, **keys})
    return text_of(lines)


def one_dest(topology: Topology, family: Family, vport: int, daddr: str) -> list[Line]:
    """A service with this dest alone, in the mode that the topology is about."""
    keys: dict[str, object] = {"fwdmode": "nat"}
    if topology.service("web").fwdmode == "fnat":
        assert topology.laddrs is not None
        keys = {"laddrs": [topology.laddrs.of(family)]}
    name = f"one-{vport}-{family}"
    return service(name, topology.vips.of(family), vport, [daddr], **keys)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("one-arm", 1), id="one-arm"),
        pytest.param(("two-arm", 1), id="two-arm"),
        # Uncompiled, the others show enough.
        pytest.param(("tun", 2), id="tun", marks=pytest.mark.slow),
    ],
)
def site(request: pytest.FixtureRequest, _host_problems: list[str]) -> Iterator[Site]:
    """fnat on one segment, nat through a gateway, and a TUN with two workers."""
    demand(_host_problems)
    name, workers = request.param
    topology = TOPOLOGIES[name]
    with Lab(topology, f"{name}-{os.getpid()}-syn") as lab:
        text = with_keys(topology.config_text, "tunlb", None, workers=workers)
        for family in FAMILIES:
            server = topology.servers[0][1].of(family)
            text = with_lines(text, *one_dest(topology, family, CLOSED, server))
        process = lab.start_tunlb(proxied(text))
        yield Site(lab, process)
        found = counters(process)
        assert drops(found) <= PLANNED_DROPS | MORE_DROPS, found
        assert "HOOK_ERRORS" not in found
        assert found["SYNPROXY_OPENED"] + found["SYNPROXY_REFUSED"] <= found["SYNPROXY_CONNS"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


def mac_of_vip(site: Site, family: Family) -> tuple[str, str]:
    """The client's own MAC address and the next hop's towards the VIP."""
    clients.fetch(site.lab.client, clients.url(site.vip(family), 80))
    route = site.lab.client.run(["ip", "route", "get", site.vip(family)]).stdout
    via = re.search(r"via (\S+)", route)
    hop = via[1] if via else site.vip(family)
    neigh = site.lab.client.run(["ip", "neigh", "show", hop]).stdout
    link = site.lab.client.run(["ip", "link", "show", "eth0"]).stdout
    found, own = re.search(r"lladdr (\S+)", neigh), re.search(r"link/ether (\S+)", link)
    assert found, neigh
    assert own, link
    return own[1], found[1]


@contextmanager
def flood(site: Site, family: Family, port: int) -> Iterator[list[int]]:
    """Spoofed SYNs from the client's side until the end of the block; then, how many."""
    own, theirs = mac_of_vip(site, family)
    command = [sys.executable, "-I", str(FLOOD), "eth0", own, theirs, site.vip(family), str(port)]
    process = site.lab.client.popen([*command, SOURCES[family], str(RATE)], stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    sent: list[int] = []
    try:
        yield sent
    finally:
        process.stdin.close()
        sent.append(int(process.stdout.readline()))
        process.wait(5)


def test_a_flood_keeps_nobody_out(site: Site, family: Family) -> None:
    target = clients.url(site.vip(family), 80)
    speed = clients.iperf3(site.lab.client, site.vip(family), seconds=1).gbps
    with flood(site, family, 80) as sent:
        waits = []
        for _ in range(10):
            began = time.monotonic()
            assert clients.fetch(site.lab.client, target).status == 200
            waits.append(time.monotonic() - began)
            time.sleep(0.02)
        flooded = clients.iperf3(site.lab.client, site.vip(family), seconds=1).gbps
    assert sent[0] > RATE
    # None waited for a SYN or a segment to be sent again, which takes a second or 200 ms.
    assert sorted(waits)[len(waits) // 2] < 0.2, waits
    # Whoever floods and whoever serves share the machine: what tunlb itself loses is in the bench.
    assert flooded > (0.1 if COMPILED else 0.03) * speed, (flooded, speed)


@contextmanager
def switched_off(hosts: list[Host], key: str) -> Iterator[None]:
    """One of TCP's options, in these hosts."""
    name = f"net.ipv4.tcp_{key}"
    for host in hosts:
        host.run(["sysctl", "-q", "-w", f"{name}=0"])
    try:
        yield
    finally:
        for host in hosts:
            host.run(["sysctl", "-q", "-w", f"{name}=1"])


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("key", ["", "timestamps", "sack", "window_scaling"])
def test_what_is_sent_arrives(site: Site, family: Family, side: str, key: str) -> None:
    """Whatever the client and the dest have in common, and what only one of them can."""
    if not key:
        transfer(site, family, SIZE)
        return
    hosts = [site.lab.client] if side == "client" else [site.lab.host(n) for n in SERVERS]
    with switched_off(hosts, key):
        transfer(site, family, SIZE // 4)


SERVERS = ("s1", "s2", "s3")


def test_segments_get_lost(site: Site, family: Family) -> None:
    """SACK tells what is missing, in both directions."""
    rule = "numgen inc mod 20 == 7 counter drop;"
    chain = f"chain inward {{ type filter hook input priority 0; {rule} }}"
    text = f"table inet lossy {{\n{chain}\n}}\n"
    hosts = [site.lab.client, *(site.lab.host(name) for name in SERVERS)]
    for host in hosts:
        host.run(["nft", "-f", "-"], stdin=text)
    try:
        transfer(site, family, 1_000_000)
    finally:
        lost = 0
        for host in hosts:
            listed = host.run(["nft", "list", "table", "inet", "lossy"]).stdout
            lost += sum(map(int, re.findall(r"counter packets (\d+)", listed)))
            host.run(["nft", "delete", "table", "inet", "lossy"])
    assert lost > 0


def transfer(site: Site, family: Family, size: int) -> None:
    """A download and an echo of that many bytes, compared by their hash."""
    target = clients.url(site.vip(family), 80, f"/bytes/{size}")
    done = site.lab.client.run(
        ["sh", "-c", f"curl -gsS --noproxy '*' -m 20 '{target}' | sha256sum"], timeout=25
    )
    assert done.stdout.split()[0] == hashlib.sha256(pattern(size)).hexdigest()
    data = pattern(size // 2)
    with site.connect(family, 7) as sock:
        sender = threading.Thread(target=send_and_end, args=(sock, data))
        sender.start()
        echoed = read_all(sock).partition(b"\n")[2]
        sender.join()
    assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest()


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_a_request_with_the_ack(site: Site, family: Family) -> None:
    """What a client says at once waits for its dest, not for a retransmission."""
    began = time.monotonic()
    for _ in range(20):
        with site.connect(family, 80) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert read_all(sock).startswith(b"HTTP/1")
    assert time.monotonic() - began < 3


def test_a_dest_that_refuses(site: Site, family: Family) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionResetError):
        ask(site, family, CLOSED)
    assert time.monotonic() - began < 1


def ask(site: Site, family: Family, vport: int) -> bytes:
    with site.connect(family, vport) as sock:
        sock.sendall(b"hello")
        return sock.recv(1)


def test_a_worker_dies_meanwhile(site: Site, family: Family) -> None:
    with clients.connection(site.lab.client, site.vip(family), 7) as conn:
        assert conn.echo(b"before") == b"before"
        seen = len(site.tunlb.log_lines)
        for pid in workers_of(site.lab).values():
            os.kill(pid, signal.SIGKILL)
        site.tunlb.wait_event(("worker_started",), after=seen)
        assert conn.echo(b"after") == b"after"
    assert clients.fetch(site.lab.client, clients.url(site.vip(family), 80)).status == 200


def test_a_dest_that_nobody_is(lab: LabFactory) -> None:
    """It is asked four times, and then the client knows."""
    made = lab("one-arm")
    text = made.topology.config_text
    nobody: dict[Family, str] = {"v4": "10.0.0.99", "v6": "fd00::99"}
    for family in FAMILIES:
        text = with_lines(text, *one_dest(made.topology, family, CLOSED, nobody[family]))
    site = Site(made, made.start_tunlb(proxied(text)))
    began = time.monotonic()
    with site.connect("v4", CLOSED) as one, site.connect("v6", CLOSED) as other:
        for sock in (one, other):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert 3.5 < time.monotonic() - began < 7
    found = counters(site.tunlb)
    assert (found["SYNPROXY_RETRIES"], found["SYNPROXY_REFUSED"]) == (6, 2)


def test_only_above_a_number_of_half_open_conns(lab: LabFactory) -> None:
    """Beyond it no row is made for a SYN; once they have expired everything is as before."""
    made = lab("two-arm")
    keys = {"synproxy_above": 50, "timeouts": {"tcp_syn_recv_s": 2, "tcp_syn_sent_s": 2}}
    site = Site(made, made.start_tunlb(proxied(made.topology.config_text, **keys)))
    target = clients.url(site.vip("v4"), 80)
    with flood(site, "v4", 80) as sent:
        time.sleep(0.5)
        for _ in range(5):
            assert clients.fetch(made.client, target).status == 200
    time.sleep(3.5)
    for _ in range(5):
        assert clients.fetch(made.client, target).status == 200
    found = counters(site.tunlb)
    assert found["SYNPROXY_ON"] >= 1
    assert 1 <= found["SYNPROXY_CONNS"] <= 5
    assert found["SYNPROXY_SYNACKS"] > 100
    # The first 51, those after each time that they had expired, and the fetches.
    assert found["CONN_NEW"] < 51 * (1 + found["SYNPROXY_ON"]) + 20
    assert sent[0] > found["CONN_NEW"]
