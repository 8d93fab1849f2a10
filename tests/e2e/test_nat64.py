"""Clients of the one family and servers of the other, each with a real kernel's stack."""

from __future__ import annotations

import hashlib
import os
import signal
import socket

import pytest

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
    lines_of,
    service,
    text_of,
    with_keys,
    with_lines,
    workers_of,
)
from tests.e2e.test_icmp import NOBODY, SMALL_MTU, learns_the_path_mtu, udp_socket
from tunlb.lab import Lab, clients
from tunlb.lab.host import ip
from tunlb.lab.servers import pattern

CROSSED: dict[Family, Family] = {"v4": "v6", "v6": "v4"}
BOTH = pytest.mark.parametrize("family", FAMILIES)
UDP_SEGMENT, SO_NO_CHECK = 103, 11
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
PLANNED = {"MARTIAN", "NOT_FORWARDED", "ICMP_IGNORED", "OTHERHOST", "TX_BLOCKED", "MTU_EXCEEDED"}


def crossed(lab: Lab, **keys: object) -> str:
    """The topology's configuration with the dests of each service those of the other family."""
    assert lab.topology.laddrs is not None
    v4, v6 = lab.topology.laddrs
    other = {}
    for _, pair in lab.topology.servers:
        other[pair.v4], other[pair.v6] = pair.v6, pair.v4
    lines = lines_of(lab.topology.config_text)
    for line in lines:
        if line["kind"] == "service":
            line["laddrs"] = [v4 if ":" in str(line["vaddr"]) else v6]
            line["fwdmode"] = "fnat"
        elif line["kind"] == "dest":
            line["daddr"] = other[str(line["daddr"])]
    return with_keys(text_of(lines), "tunlb", None, **keys)


def download(lab: Lab, vip: str, size: int) -> str:
    target = clients.url(vip, 80, f"/bytes/{size}")
    done = lab.client.run(["sh", "-c", f"curl -gsS --noproxy '*' -m 20 '{target}' | sha256sum"])
    return done.stdout.split()[0]


def test_what_clients_see(lab: LabFactory) -> None:
    """HTTP, bulk both ways with offloads, datagrams with and without USO and checksum."""
    made = lab("one-arm")
    tunlb = made.start_tunlb(crossed(made, workers=2))
    for family in FAMILIES:
        vip = made.topology.vips.of(family)
        answer = clients.fetch(made.client, clients.url(vip, 80))
        assert answer.body.strip() in made.topology.server_names
        size = 8_000_000 if COMPILED else 1_000_000
        assert download(made, vip, size) == hashlib.sha256(pattern(size)).hexdigest()
        for reverse in (False, True):
            result = clients.iperf3(made.client, vip, seconds=1, reverse=reverse)
            assert result.gbps > (0.5 if COMPILED else 0.02)
        for length in (0, 1, 1300):
            echo = clients.udp_echo(made.client, vip, 7, pattern(length))
            assert echo.data == pattern(length)
            assert is_laddr(made, echo.peer)
            assert (":" in echo.peer) == (family == "v4")
        _datagrams_in_one_send(made, vip)
    with made.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        sock.connect((made.topology.vips.v4, 7))
        sock.send(b"no checksum")
        assert clients.parse_echo(sock.recv(100)).data == b"no checksum"
    found = counters(tunlb)
    assert drops(found) <= PLANNED, found
    assert found["NAT64_PACKETS"] == found["IPVS_IN_PACKETS"] + found["IPVS_OUT_PACKETS"]
    assert found["NAT64_CHECKSUMS"] == 1
    # Up to 64 KB in a frame: nothing was cut on its way through.
    for way in ("IN", "OUT"):
        assert found[f"IPVS_{way}_BYTES"] / found[f"IPVS_{way}_PACKETS"] > 5000


def _datagrams_in_one_send(lab: Lab, vip: str) -> None:
    kind = socket.AF_INET6 if ":" in vip else socket.AF_INET
    datagrams = [bytes([n]) * 1000 for n in range(10)]
    with lab.client.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        sock.connect((vip, 7))
        sock.send(b"".join(datagrams))
        echoes = [clients.parse_echo(sock.recv(2000)).data for _ in datagrams]
    assert sorted(echoes) == datagrams


def test_datagrams_larger_than_the_mtu(lab: LabFactory) -> None:
    """Cut by the kernel of one family, put together by that of the other, both ways."""
    made = lab("one-arm")
    tunlb = made.start_tunlb(crossed(made, workers=2))
    for family in FAMILIES:
        for size in (1473, 4000, 8000, 60000):
            for _ in range(3):  # other ports, another worker
                answer = clients.udp_echo(
                    made.client, made.topology.vips.of(family), 7, pattern(size)
                )
                assert answer.data == pattern(size)
                assert is_laddr(made, answer.peer)
    # A whole packet that may be cut, and is too long by the header of IPv6.
    with made.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        sock.connect((made.topology.vips.v4, 7))
        sock.send(pattern(1472))
        assert clients.parse_echo(sock.recv(2000)).data == pattern(1472)
    found = counters(tunlb)
    assert drops(found) <= PLANNED - {"MTU_EXCEEDED"}, found
    assert found["FRAGMENT_LATER"] > 100
    assert found["HANDED_OVER"] > 0
    # Each of 1500 bytes over IPv4 became two over IPv6.
    assert found["NAT64_CUT"] > 100


@pytest.mark.parametrize(("topology", "cuts"), [("tun", 1), ("one-arm", 0)])
def test_a_sender_that_does_not_listen(lab: LabFactory, topology: str, cuts: int) -> None:
    """A link behind the next router is narrow, and nobody could tell the sender: without DF a
    datagram is cut so that every IPv6 link takes it. On a link of our own it needs no cut.
    """
    made = lab(topology)
    more = narrow(made, "v4", SMALL_MTU if cuts else 1500)
    tunlb = made.start_tunlb(with_lines(made.topology.config_text, *more))
    with made.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        sock.connect((made.topology.vips.v4, 17))
        sock.send(pattern(1400))
        assert clients.parse_echo(sock.recv(2000)).data == pattern(1400)
    found = counters(tunlb)
    assert found.get("NAT64_CUT", 0) == cuts
    assert found.get("ICMP_RELATED", 0) == 0
    assert drops(found) <= PLANNED - {"MTU_EXCEEDED"}, found


def narrow(lab: Lab, family: Family, size: int = SMALL_MTU) -> list[Line]:
    """Services whose one dest, of the other family, is behind a router with a small MTU."""
    inside = CROSSED[family]
    server = lab.topology.servers[0][1].of(inside)
    assert lab.topology.laddrs is not None
    if lab.topology.name == "tun":
        mtu = ("mtu", "lock", str(size))
        ip("-n", lab.director.ns, "route", "add", server, "dev", "br-in", *mtu)
        more: list[Line] = []
    else:
        dst = f"{server}/{128 if ':' in server else 32}"
        more = [{"kind": "route", "dst": dst, "port": "lb0", "mtu": size}]
    laddrs, vip = [lab.topology.laddrs.of(inside)], lab.topology.vips.of(family)
    for proto in ("tcp", "udp"):
        more += service(
            f"narrow-{proto}", vip, 17, [server], proto=proto, dport=7777, laddrs=laddrs
        )
    return more


@BOTH
@pytest.mark.parametrize(
    ("topology", "counter"), [("one-arm", "ICMP_ERRORS_SENT"), ("tun", "ICMP_RELATED")]
)
def test_a_client_learns_the_path_mtu(
    lab: LabFactory, topology: str, counter: str, family: Family
) -> None:
    """The router on the server's side speaks the other family; TCP recovers by itself."""
    made = lab(topology)
    tunlb = made.start_tunlb(with_lines(made.topology.config_text, *narrow(made, family)))
    learns_the_path_mtu(made, tunlb, family, counter)


def test_a_link_narrower_than_ipv6_allows(lab: LabFactory) -> None:
    """A client over IPv6 never sends less than 1280 bytes: routers over IPv4 may cut those."""
    made = lab("tun")
    text = with_lines(made.topology.config_text, *narrow(made, "v6", 1000))
    tunlb = made.start_tunlb(text)
    vip = made.topology.vips.v6
    with clients.connection(made.client, vip, 17, timeout=10) as conn:
        data = pattern(100_000)
        assert hashlib.sha256(conn.echo(data)).digest() == hashlib.sha256(data).digest()
    with udp_socket(made, vip, 17) as sock:
        sock.send(bytes(1232))
        assert clients.parse_echo(sock.recv(2000)).data == bytes(1232)
    assert counters(tunlb)["ICMP_RELATED"] >= 1


@BOTH
def test_a_closed_port_of_a_dest(lab: LabFactory, family: Family) -> None:
    """Port unreachable and RST reach a client of the other family at once."""
    made = lab("one-arm")
    vip, inside = made.topology.vips.of(family), CROSSED[family]
    assert made.topology.laddrs is not None
    keys = {"dport": NOBODY, "laddrs": [made.topology.laddrs.of(inside)]}
    dests = [pair.of(inside) for _, pair in made.topology.servers]
    more = [
        *service("closed-udp", vip, 18, dests, proto="udp", **keys),
        *service("closed-tcp", vip, 18, dests, proto="tcp", **keys),
    ]
    text = with_lines(made.topology.config_text, *more)
    tunlb = made.start_tunlb(with_keys(text, "tunlb", workers=2))
    for _ in range(8):  # conns of either worker, while errors come to the first one
        with udp_socket(made, vip, 18) as sock:
            sock.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)
    with pytest.raises(ConnectionRefusedError):
        clients.tcp_echo(made.client, vip, 18)
    found = counters(tunlb)
    assert found["ICMP_RELATED"] == 8
    assert found["HANDED_OVER"] == found["HANDED_IN"] > 0


@BOTH
def test_a_worker_is_killed(lab: LabFactory, family: Family) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb(crossed(made))
    with clients.connection(made.client, made.topology.vips.of(family), 7, timeout=10) as conn:
        assert conn.echo(b"before") == b"before"
        [worker] = workers_of(made).values()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: list(workers_of(made).values()) not in ([], [worker]))
        assert conn.echo(pattern(100_000)) == pattern(100_000)
    assert counters(tunlb)["CONN_ADOPTED"] == 1
