"""Every topology, both families, with real clients: what a user of the VIP sees."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import demand
from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    client_address,
    counters,
    drops,
    is_laddr,
    own_addresses,
    with_keys,
)
from tunlb.lab import TOPOLOGIES, Lab, TunlbProcess, clients, rootless
from tunlb.lab.servers import pattern

SOL_IP, IP_TTL, IP_RECVERR = 0, 2, 11
SOL_IPV6, IPV6_UNICAST_HOPS, IPV6_RECVERR = 41, 16, 25
EXCEEDED = {"v4": (2, 11), "v6": (3, 3)}  # (SO_EE_ORIGIN_*, ICMP type)

# What these tests provoke (TTL_EXCEEDED) and what kernels say unasked: router solicitations and
# group memberships, these also from no address at all (MARTIAN). A full queue is a real network's
# right. Any other drop is one that nobody planned.
PLANNED_DROPS = {
    "TTL_EXCEEDED",
    "MARTIAN",
    "NOT_FORWARDED",
    "ICMP_IGNORED",
    "OTHERHOST",
    "TX_BLOCKED",
}


# Everything is the same with several workers, whether the kernel steers or frames are handed over.
WAYS: dict[str, dict[str, object]] = {
    "one worker": {},
    "two steered workers": {"workers": 2},
    "two workers unsteered": {"workers": 2, "steering": False},
}


@dataclass
class Site:
    """A lab with a tunlb that serves it."""

    lab: Lab
    tunlb: TunlbProcess
    workers: int

    @property
    def name(self) -> str:
        return self.lab.topology.name

    def vip(self, family: Family) -> str:
        return self.lab.topology.vips.of(family)

    def seen_as_itself(self, service: str = "web") -> bool:
        return self.lab.topology.service(service).fwdmode != "fnat"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (name, way),
            id=f"{name}, {way}",
            # Uncompiled, one topology shows what differs between ways.
            marks=[pytest.mark.slow] if name != "one-arm" and WAYS[way] else [],
        )
        for name in TOPOLOGIES
        for way in WAYS
    ],
)
def site(request: pytest.FixtureRequest, _host_problems: list[str]) -> Iterator[Site]:
    """One lab for all tests of a topology; its counters are judged when they are through."""
    demand(_host_problems)
    name, way = request.param
    topology, keys = TOPOLOGIES[name], WAYS[way]
    with Lab(topology, f"{name}-{os.getpid()}-modes") as lab:
        process = lab.start_tunlb(with_keys(topology.config_text, "tunlb", None, **keys))
        yield Site(lab, process, 2 if "workers" in keys else 1)
        found = counters(process)
        assert drops(found) <= PLANNED_DROPS, found
        assert "HOOK_ERRORS" not in found
        assert found.get("HANDED_OVER", 0) == found.get("HANDED_IN", 0)
        if "steering" in keys:
            assert found["HANDED_OVER"] > 100
        elif "workers" in keys and not rootless.inside():
            # Only what nobody can place: a few ICMP errors, and neighbour messages none at all.
            assert found.get("HANDED_OVER", 0) < found["RX_FRAMES"] / 1000


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


def test_dests_take_their_share(site: Site, family: Family) -> None:
    web = site.lab.topology.service("web")
    rounds = 3
    took = Counter(
        clients.fetch(site.lab.client, clients.url(site.vip(family), 80)).body.strip()
        for _ in range(rounds * sum(web.weights))
    )
    for name, weight in zip(site.lab.topology.server_names, web.weights, strict=True):
        # Each worker has a rotation of its own.
        assert abs(took[name] - rounds * weight) <= (site.workers - 1) * 2 * weight, took


def test_whom_a_server_sees(site: Site, family: Family) -> None:
    for service in site.lab.topology.services:
        if service.vport not in (80, 81):
            continue
        with clients_socket(site, family) as sock:
            sock.connect((site.vip(family), service.vport))
            mine = sock.getsockname()
            sock.sendall(b"GET /peer HTTP/1.0\r\n\r\n")
            seen = clients.parse_echo(read_all(sock).partition(b"\r\n\r\n")[2])
        if service.fwdmode == "fnat":
            assert is_laddr(site.lab, seen.peer)
        else:
            assert (seen.peer, seen.port) == mine[:2]


@pytest.mark.parametrize("size", [1, 1400, 60_000])
def test_tcp_echo(site: Site, family: Family, size: int) -> None:
    answer = clients.tcp_echo(site.lab.client, site.vip(family), 7, pattern(size))
    assert answer.data == pattern(size)
    assert answer.host in site.lab.topology.server_names


@pytest.mark.parametrize("size", [0, 1, 7, 1300])
def test_udp_echo(site: Site, family: Family, size: int) -> None:
    answer = clients.udp_echo(site.lab.client, site.vip(family), 7, pattern(size))
    assert answer.data == pattern(size)
    if site.seen_as_itself("echo-udp"):
        assert answer.peer == client_address(site.lab, family)
    else:
        assert is_laddr(site.lab, answer.peer)


def test_iperf3_tcp(site: Site, family: Family) -> None:
    result = clients.iperf3(site.lab.client, site.vip(family), seconds=1)
    assert result.gbps > (0.5 if COMPILED else 0.05)


def test_iperf3_udp(site: Site, family: Family) -> None:
    result = clients.iperf3(
        site.lab.client, site.vip(family), seconds=1, udp=True, bitrate="20M", length=1200
    )
    assert result.gbps > 0.01
    assert result.lost_percent < 10


@pytest.mark.parametrize("size", [1_000_000, pytest.param(50_000_000, marks=pytest.mark.slow)])
def test_a_download_is_whole(site: Site, family: Family, size: int) -> None:
    target = clients.url(site.vip(family), 80, f"/bytes/{size}")
    done = site.lab.client.run(
        ["sh", "-c", f"curl -gsS --noproxy '*' -m 20 '{target}' | sha256sum"], timeout=25
    )
    assert done.stdout.split()[0] == hashlib.sha256(pattern(size)).hexdigest()


def test_an_upload_is_whole(site: Site, family: Family) -> None:
    data = pattern(5_000_000)
    with clients_socket(site, family) as sock:
        sock.connect((site.vip(family), 7))
        sender = threading.Thread(target=send_and_end, args=(sock, data))
        sender.start()
        echoed = read_all(sock).partition(b"\n")[2]
        sender.join()
    assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest()


def test_many_connections_at_once(site: Site, family: Family) -> None:
    with ExitStack() as stack:
        conns = [
            stack.enter_context(clients.connection(site.lab.client, site.vip(family), 7))
            for _ in range(200)
        ]
        for number, conn in enumerate(conns):
            assert conn.echo(b"%d" % number) == b"%d" % number
        assert set(Counter(conn.host for conn in conns)) == set(site.lab.topology.server_names)
        # The same peer twice would mean that two conns got the same laddr and lport towards a dest.
        assert len({(conn.host, conn.peer, conn.port) for conn in conns}) == 200


def test_ping(site: Site, family: Family) -> None:
    targets = [site.vip(family)]
    targets += [a for a in own_addresses(site.lab) if (":" in a) == (family == "v6")]
    if site.lab.topology.laddrs is not None:
        targets.append(site.lab.topology.laddrs.of(family).partition("-")[0])
    for target in targets:
        for size in ("8", "1400"):
            done = site.lab.client.run(
                ["ping", "-c", "2", "-i", "0.05", "-W", "2", "-s", size, target]
            )
            assert "2 received, 0% packet loss" in done.stdout


def test_the_hop_that_a_trace_shows(site: Site, family: Family) -> None:
    """As traceroute does it: a hop limit that ends at tunlb."""
    hops = 2 if site.name == "tun" else 1
    with site.lab.client.socket(address_family(family), socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        if family == "v4":
            sock.setsockopt(SOL_IP, IP_RECVERR, 1)
            sock.setsockopt(SOL_IP, IP_TTL, hops)
        else:
            sock.setsockopt(SOL_IPV6, IPV6_RECVERR, 1)
            sock.setsockopt(SOL_IPV6, IPV6_UNICAST_HOPS, hops)
        sock.connect((site.vip(family), 7))
        sock.send(b"trace")
        with pytest.raises(OSError, match=r"No route to host|unreachable|TTL"):
            sock.recv(100)
        _, control, _, _ = sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
    [(_, _, error)] = control
    # struct sock_extended_err, then the sockaddr of who said it.
    _, origin, icmp_type, _, _, _, _ = struct.unpack_from("=IBBBBII", error)
    assert (origin, icmp_type) == EXCEEDED[family]
    address = error[20:24] if family == "v4" else error[24:40]
    kind = socket.AF_INET if family == "v4" else socket.AF_INET6
    assert socket.inet_ntop(kind, address) == site.vip(family)


def address_family(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == "v4" else socket.AF_INET6


def clients_socket(site: Site, family: Family) -> socket.socket:
    sock = site.lab.client.socket(address_family(family), socket.SOCK_STREAM)
    sock.settimeout(15)
    return sock


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)
