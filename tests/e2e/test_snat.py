"""Inside hosts with real kernels go out by shared addresses, by a cache, or past it."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import demand
from tests.e2e.gateway import CACHE, FAR, HOSTS, INSIDE, OURS, ROUTER, TOPOLOGY, snat
from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    LabFactory,
    Line,
    counters,
    drops,
    eventually,
    is_laddr,
    with_keys,
    with_lines,
    workers_of,
)
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.host import Host, ip
from tunlb.lab.servers import pattern
from tunlb.testing.frames import ones_sum

WAYS: dict[str, dict[str, object]] = {
    "one worker": {},
    "two steered workers": {"workers": 2},
    "two workers unsteered": {"workers": 2, "steering": False},
}
SOL_IP, IP_TTL, IP_RECVERR = 0, 2, 11
SOL_IPV6, IPV6_UNICAST_HOPS, IPV6_RECVERR = 41, 16, 25
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO = 10, 23, 2
SMALL_MTU = 1300
# What kernels say unasked, and what these tests provoke.
PLANNED_DROPS = {"TTL_EXCEEDED", "MARTIAN", "NOT_FORWARDED", "ICMP_IGNORED", "OTHERHOST"}
PLANNED_DROPS |= {"TX_BLOCKED", "NEIGH_UNREACHABLE"}
BOTH = pytest.mark.parametrize("family", FAMILIES)


@dataclass
class Site:
    lab: Lab
    tunlb: TunlbProcess


@pytest.fixture(scope="module", params=WAYS)
def site(request: pytest.FixtureRequest, _host_problems: list[str]) -> Iterator[Site]:
    """One lab a way; its counters are judged when the tests are through."""
    demand(_host_problems)
    way: str = request.param
    text = with_lines(TOPOLOGY.config_text, *snat("v4"), *snat("v6"))
    with Lab(TOPOLOGY, f"s-{os.getpid()}-{list(WAYS).index(way)}") as lab:
        tunlb = lab.start_tunlb(with_keys(text, "tunlb", None, **WAYS[way]))
        yield Site(lab, tunlb)
        found = counters(tunlb)
        assert drops(found) <= PLANNED_DROPS, found
        assert "FORWARDED" not in found
        assert found.get("HANDED_OVER", 0) == found.get("HANDED_IN", 0)


def inet(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == "v4" else socket.AF_INET6


@BOTH
def test_curl_and_echo(site: Site, family: Family) -> None:
    for host in (site.lab.client, site.lab.host("client2")):
        body = clients.fetch(host, clients.url(FAR.of(family), 8080, "/peer")).body
        seen = clients.parse_echo(body.encode())
        assert seen.host == "far"
        assert is_laddr(site.lab, seen.peer)
        assert clients.udp_echo(host, FAR.of(family), 7, pattern(1300)).data == pattern(1300)
        assert clients.tcp_echo(host, FAR.of(family), 7, pattern(60_000)).data == pattern(60_000)


@BOTH
def test_a_host_keeps_its_address_and_its_port(site: Site, family: Family) -> None:
    """RFC 4787: paired, and the port is kept where it is free (one worker has all ports)."""
    seen = set()
    for number in range(4):
        with site.lab.client.socket(inet(family), socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.bind(("", 33330 + 2 * number))
            sock.sendto(b"who am I?", (FAR.of(family), 7))
            answer = clients.parse_echo(sock.recv(1000))
            seen.add(answer.peer)
            if len(workers_of(site.lab)) == 1:
                assert answer.port == 33330 + 2 * number
    assert len(seen) == 1


@BOTH
def test_iperf3(site: Site, family: Family) -> None:
    """Bulk with offloaded frames, both ways, and datagrams."""
    host, far = site.lab.client, FAR.of(family)
    done = clients.iperf3(host, far, seconds=1, reverse=family == "v6")
    assert done.gbps > (0.3 if COMPILED else 0.03)
    done = clients.iperf3(host, far, seconds=1, udp=True, bitrate="10M", length=1200)
    assert done.lost_percent < 10


def raw_ping(host: Host, family: Family) -> socket.socket:
    """A raw socket whose echo requests have the identifier that we choose."""
    proto = socket.IPPROTO_ICMP if family == "v4" else socket.IPPROTO_ICMPV6
    sock = host.socket(inet(family), socket.SOCK_RAW, proto)
    sock.settimeout(2)
    sock.connect((FAR.of(family), 0))
    return sock


def echo_request(family: Family, number: int, body: bytes) -> bytes:
    message = struct.pack("!BBHHH", 8 if family == "v4" else 128, 0, 0, number, 1) + body
    if family == "v6":
        return message  # the kernel knows the addresses, and sums
    return message[:2] + struct.pack("!H", 0xFFFF - ones_sum(message)) + message[4:]


def echo_reply(family: Family, sock: socket.socket) -> tuple[int, bytes]:
    """The identifier and body of the next reply that comes to this host."""
    while True:
        data = sock.recv(2000)
        if family == "v4":
            data = data[(data[0] & 15) * 4 :]
        if data[0] == (0 if family == "v4" else 129):
            return struct.unpack("!H", data[4:6])[0], data[8:]


@BOTH
def test_two_hosts_ping_with_one_identifier(site: Site, family: Family) -> None:
    hosts = (site.lab.client, site.lab.host("client2"))
    for number in (1, 4711):
        socks = [raw_ping(host, family) for host in hosts]
        try:
            for sock, host in zip(socks, hosts, strict=True):
                sock.send(echo_request(family, number, b"from " + host.name.encode()))
            for sock, host in zip(socks, hosts, strict=True):
                assert echo_reply(family, sock) == (number, b"from " + host.name.encode())
        finally:
            for sock in socks:
                sock.close()


@BOTH
def test_ping_and_traceroute(site: Site, family: Family) -> None:
    far = FAR.of(family)
    several = ["ping", "-c", "3", "-i", "0.05", "-W", "2", far]
    assert "3 received" in site.lab.client.run(several).stdout
    hops = []
    for ttl in ("1", "2"):
        done = site.lab.client.run(["ping", "-c", "1", "-W", "2", "-t", ttl, far], check=False)
        line = next(text for text in done.stdout.splitlines() if text.startswith("From "))
        hops.append(line.split()[1].rstrip(":"))
    assert hops == [OURS.of(family), ROUTER.of(family)]


@BOTH
def test_traceroute_by_datagrams(site: Site, family: Family) -> None:
    """The kernel of the inside host takes the router's error for one about its own socket."""
    level, option, value = (
        (SOL_IP, IP_TTL, IP_RECVERR)
        if family == "v4"
        else (SOL_IPV6, IPV6_UNICAST_HOPS, IPV6_RECVERR)
    )
    with site.lab.client.socket(inet(family), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(level, option, 2)
        sock.setsockopt(level, value, 1)
        sock.connect((FAR.of(family), 33434))
        sock.send(b"how far?")

        def heard() -> bytes:
            try:
                _, ancillary, _, _ = sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                return b""
            return ancillary[0][2]

        error = eventually(heard)
    # struct sock_extended_err, then the address of who said it
    assert error[5] == (11 if family == "v4" else 3)
    offender = error[20:24] if family == "v4" else error[24:40]
    assert socket.inet_ntop(inet(family), offender) == ROUTER.of(family)


@BOTH
def test_a_closed_port(site: Site, family: Family) -> None:
    with site.lab.client.socket(inet(family), socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((FAR.of(family), 9999))
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
    with pytest.raises(ConnectionRefusedError):
        clients.tcp_echo(site.lab.client, FAR.of(family), 9999)


def is_too_long(sock: socket.socket) -> bool:
    """Sends a datagram; whether the kernel knows already that the path is too narrow."""
    try:
        sock.send(bytes(SMALL_MTU + 50))
    except OSError as error:
        return error.errno == errno.EMSGSIZE
    return False


@BOTH
def test_the_path_narrows(site: Site, family: Family) -> None:
    """In the middle of a connection: the router says so, and the inside host's kernel recovers."""
    router = site.lab.host("router").ns
    host = site.lab.client
    data = pattern(100_000)
    with clients.connection(host, FAR.of(family), 7, timeout=10) as conn:
        conn.echo(b"wide")
        narrow = (FAR.of(family), "dev", "eth1", "mtu", "lock", str(SMALL_MTU))
        ip("-n", router, "route", "add", *narrow)
        try:
            assert hashlib.sha256(conn.echo(data)).digest() == hashlib.sha256(data).digest()
            with host.socket(inet(family), socket.SOCK_DGRAM) as sock:
                level, option = (
                    (socket.IPPROTO_IP, IP_MTU_DISCOVER)
                    if family == "v4"
                    else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
                )
                sock.setsockopt(level, option, PMTUDISC_DO)
                sock.connect((FAR.of(family), 7))
                eventually(lambda: is_too_long(sock))
        finally:
            ip("-n", router, "route", "del", *narrow)
            flush = "-4" if family == "v4" else "-6"
            ip("-n", host.ns, flush, "route", "flush", "cache")


def test_workers_are_killed(site: Site) -> None:
    """Connections, a flow of datagrams and a ping go on with the successor."""
    lab = site.lab
    with (
        clients.connection(lab.client, FAR.v4, 7) as one,
        clients.connection(lab.host("client2"), FAR.v6, 7) as other,
        raw_ping(lab.client, "v4") as sock,
    ):
        for _ in range(2):
            sock.send(echo_request("v4", 77, b"before"))
            assert echo_reply("v4", sock) == (77, b"before")
            for conn in (one, other):
                assert conn.echo(b"before") == b"before"
            for pid in workers_of(lab).values():
                os.kill(pid, signal.SIGKILL)
                site.tunlb.wait_event(("worker_started",))
            for conn in (one, other):
                assert conn.echo(b"after") == b"after"
            sock.send(echo_request("v4", 77, b"after"))
            assert echo_reply("v4", sock) == (77, b"after")
            time.sleep(1.1)  # a worker that ends again within a second waits


# ---- many

#: Answers datagrams on any address of this host, from that very address.
ANSWERER = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
sock.bind(("0.0.0.0", 4444))
print("ready", flush=True)
while True:
    data, [(level, kind, info)], _, peer = sock.recvmsg(100, 64)
    sock.sendmsg([data], [(level, kind, bytes(4) + info[8:12] + bytes(4))], 0, peer)
"""


def answered(host: Host, port: int, remotes: list[str]) -> set[str]:
    """Which of the remotes answer a datagram from ``port``."""
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", port))
        sock.settimeout(0.3)
        heard: set[str] = set()
        for _ in range(10):
            for remote in remotes:
                if remote not in heard:
                    sock.sendto(b"%d" % port, (remote, 4444))
            try:
                while len(heard) < len(remotes):
                    data, (remote, _) = sock.recvfrom(100)
                    assert int(data) == port
                    heard.add(remote)
            except TimeoutError:
                continue
            return heard
        return heard


@pytest.mark.slow
def test_one_laddr_carries_more_than_it_has_ports(lab: LabFactory) -> None:
    """67,200 flows of one host by one address, 240 of them by each port."""
    made = lab(TOPOLOGY)
    tunlb = made.start_tunlb(with_lines(TOPOLOGY.config_text, *snat("v4", "udp")))
    far = made.host("far")
    ip("-n", far.ns, "route", "add", "local", "10.0.6.0/24", "dev", "lo")
    ip("-n", made.host("router").ns, "route", "add", "10.0.6.0/24", "via", FAR.v4)
    with far.popen([sys.executable, "-I", "-S", "-c", ANSWERER]) as answerer:
        assert answerer.stdout is not None
        answerer.stdout.readline()
        remotes = [f"10.0.6.{n}" for n in range(1, 241)]
        for port in range(20_000, 20_280):
            assert len(answered(made.client, port, remotes)) == len(remotes)
        answerer.kill()
    found = counters(tunlb)
    assert found["CONN_NEW"] == 67_200
    assert "CONN_EVICTED" not in found
    assert drops(found) <= PLANNED_DROPS, found


@BOTH
def test_by_the_ports_own_address(lab: LabFactory, family: Family) -> None:
    """A gateway with one address, two workers: it answers pings, and its hosts go out by it."""
    made = lab(TOPOLOGY)
    own = "10.0.1.254" if family == "v4" else "fd01::fe"
    lines = [{**line, "laddrs": [own]} for line in snat(family)]
    text = with_keys(TOPOLOGY.config_text, "tunlb", None, workers=2)
    tunlb = made.start_tunlb(with_lines(text, *lines))
    for name in ("client", "client2"):
        body = clients.fetch(made.host(name), clients.url(FAR.of(family), 8080, "/peer")).body
        assert clients.parse_echo(body.encode()).peer == own
        ping = ["ping", "-c", "2", "-i", "0.05", "-W", "2"]
        assert "2 received" in made.host(name).run([*ping, FAR.of(family)]).stdout
    assert "2 received" in made.host("router").run([*ping, own]).stdout
    found = counters(tunlb)
    assert found["ICMP_ECHO_REPLIES"] == 2
    assert drops(found) <= PLANNED_DROPS, found


def test_a_reload_takes_a_laddr_away(lab: LabFactory) -> None:
    """Connections by it go on for as long as it drains; new ones leave by the other."""
    made = lab(TOPOLOGY)
    (line,) = snat("v4", "tcp")

    def text(laddr: str) -> str:
        return with_lines(TOPOLOGY.config_text, {**line, "laddrs": [laddr], "drain_s": 3})

    tunlb = made.start_tunlb(text("10.0.1.200"))
    with clients.connection(made.client, FAR.v4, 7) as conn:
        assert conn.echo(b"before") == b"before"
        assert tunlb.reload(text("10.0.1.201"))["event"] == "reloaded"
        assert conn.echo(b"while it drains") == b"while it drains"
        url = clients.url(FAR.v4, 8080, "/peer")
        seen = clients.parse_echo(clients.fetch(made.client, url).body.encode())
        assert seen.peer == "10.0.1.201"
        time.sleep(15)  # the sweep comes every 10 s
    assert counters(tunlb)["CONN_ENDED"] == 1


# ---- a transparent cache


def cache(family: Family, mode: str, *weights: int) -> list[Line]:
    match = {"src": [HOSTS["client"].of(family)], "dport": 8080}
    line: dict[str, object] = {"kind": "service", "name": "cache", "proto": "tcp", "match": match}
    line |= {"fwdmode": mode, "bypass": True, "scheduler": "rr"}
    if mode == "fnat":
        line["laddrs"] = ["10.0.1.210" if family == "v4" else "fd01::210"]
    return [
        line,
        *(
            {"kind": "dest", "service": "cache", "daddr": CACHE.of(family), "weight": weight}
            for weight in weights
        ),
    ]


@pytest.mark.parametrize(
    ("family", "mode", "workers"), [("v4", "nat", 2), ("v6", "nat", 1), ("v6", "fnat", 2)]
)
def test_a_cache_is_taken_down(lab: LabFactory, family: Family, mode: str, workers: int) -> None:
    made = lab(TOPOLOGY)
    via = "10.0.1.254" if family == "v4" else "fd01::fe"
    # What is bypassed keeps its source: here the outside knows the way back.
    ip("-n", made.host("router").ns, "route", "add", INSIDE.of(family), "via", via)
    base = with_keys(TOPOLOGY.config_text, "tunlb", None, workers=workers)
    tunlb = made.start_tunlb(with_lines(base, *cache(family, mode, 1)))
    target = clients.url(FAR.of(family), 8080)

    def who(name: str = "client") -> str:
        return clients.fetch(made.host(name), target).body.strip()

    assert [who() for _ in range(4)] == ["cache"] * 4
    assert who("client2") == "far"  # matched by nothing, and routed
    with clients.connection(made.client, FAR.of(family), 7) as conn:
        assert conn.host == "far"  # another port
    for lines in (cache(family, mode, 0), cache(family, mode)):
        assert tunlb.reload(with_lines(base, *lines))["event"] == "reloaded"
        assert [who() for _ in range(3)] == ["far"] * 3
    assert tunlb.reload(with_lines(base, *cache(family, mode, 1)))["event"] == "reloaded"
    assert who() == "cache"
    found = counters(tunlb)
    assert found["CONN_BYPASSED"] == 6
    assert drops(found) <= PLANNED_DROPS, found


# ---- pings as a service


def asked(host: Host, family: Family) -> int:
    """How many echo requests the kernel of a host has taken."""
    if family == "v6":
        lines = host.run(["cat", "/proc/net/snmp6"]).stdout.splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Icmp6InEchos "))
    lines = host.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp: "))
    return int(values[names.index("InEchos")])


@pytest.mark.parametrize(
    ("topology", "mode", "family"),
    [
        ("two-arm", "nat", "v4"),
        ("two-arm", "nat", "v6"),
        ("one-arm", "fnat", "v6"),
        ("dr", "dr", "v4"),
    ],
)
def test_pings_are_spread(lab: LabFactory, topology: str, mode: str, family: Family) -> None:
    made = lab(topology)
    vip = made.topology.vips.of(family)
    line: dict[str, object] = {"kind": "service", "name": "ping", "proto": "icmp", "vaddr": vip}
    line |= {"fwdmode": mode, "scheduler": "rr"}
    if mode == "fnat":
        assert made.topology.laddrs is not None
        line["laddrs"] = [made.topology.laddrs.of(family)]
    dests = [
        {"kind": "dest", "service": "ping", "daddr": pair.of(family)}
        for _, pair in made.topology.servers
    ]
    tunlb = made.start_tunlb(with_lines(made.topology.config_text, line, *dests))
    ping = ["ping", "-c", "2", "-i", "0.05", "-W", "2", vip]
    for _ in range(6):
        assert "2 received" in made.client.run(ping).stdout
    hosts = [made.host(name) for name in made.topology.server_names]
    assert [asked(host, family) for host in hosts] == [4, 4, 4]
    found = counters(tunlb)
    assert found["CONN_NEW"] == 6
    assert "ICMP_ECHO_REPLIES" not in found
