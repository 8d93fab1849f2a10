"""`client_ip` with servers that use it: HAProxy and nginx read PROXY headers, a capture beside a
kernel's own server reads TOA, and what is transferred arrives whole although packets get lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from tests.e2e.conftest import demand
from tests.e2e.kit import (
    FAMILIES,
    Family,
    counters,
    drops,
    eventually,
    service,
    with_lines,
    workers_of,
)
from tests.e2e.test_modes import PLANNED_DROPS
from tunlb.lab import TOPOLOGIES, Lab, TunlbProcess
from tunlb.lab.net import bound_ports
from tunlb.lab.servers import pattern

HAPROXY, NGINX, SPEAKS, ECHO, UDP = 9001, 9002, 9003, 7777, 9005
ETH_P_ALL, PACKET_OUTGOING, PACKET_IGNORE_OUTGOING = 3, 4, 23
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BYTES = 6_000_000

# vport: (dport, proto, client_ip, client_ip_udp)
SERVICES = {
    8001: (HAPROXY, "tcp", "proxy-v1", "first"),
    8002: (HAPROXY, "tcp", "proxy-v2", "first"),
    8003: (NGINX, "tcp", "proxy-v1", "first"),
    8004: (NGINX, "tcp", "proxy-v2", "first"),
    8005: (SPEAKS, "tcp", "proxy-v1", "first"),
    8006: (SPEAKS, "tcp", "proxy-v2", "first"),
    8007: (ECHO, "tcp", "toa", "first"),
    8008: (UDP, "udp", "proxy-v2", "first"),
    8009: (UDP, "udp", "proxy-v2", "every"),
    8010: (HAPROXY, "tcp", "proxy-v2", "first"),
    8011: (NGINX, "tcp", "proxy-v1", "first"),
}
TRUSTED = (8010, 8011)  # where the lab's client is a balancer that speaks PROXY itself
ANYONE = {"v4": "0.0.0.0/0", "v6": "::/0"}

HAPROXY_CONF = f"""
defaults
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend web
  mode http
  bind :::{HAPROXY} v4v6 accept-proxy
  http-request return status 200 content-type text/plain \
lf-string "%[src] %[src_port] %[dst] %[dst_port]\\n"
listen speaks
  mode tcp
  bind :::{SPEAKS} v4v6 accept-proxy
  server echo 127.0.0.1:7
"""

NGINX_CONF = f"""
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off;
  server {{
    listen [::]:{NGINX} proxy_protocol ipv6only=off;
    default_type text/plain;
    return 200 "$proxy_protocol_addr $proxy_protocol_port \
$proxy_protocol_server_addr $proxy_protocol_server_port\\n";
  }}
}}
"""


@dataclass
class Site:
    lab: Lab
    tunlb: TunlbProcess

    def connect(self, family: Family, vport: int) -> socket.socket:
        kind = socket.AF_INET if family == "v4" else socket.AF_INET6
        sock = self.lab.client.socket(kind, socket.SOCK_STREAM)
        sock.settimeout(15)
        sock.connect((self.lab.topology.vips.of(family), vport))
        return sock


@pytest.fixture(scope="module")
def site(_host_problems: list[str]) -> Iterator[Site]:
    demand(_host_problems)
    topology = TOPOLOGIES["one-arm"]
    with Lab(topology, f"one-arm-{os.getpid()}-caddr") as lab:
        server = lab.host("s1")
        (lab.dir / "haproxy.cfg").write_text(HAPROXY_CONF)
        (lab.dir / "nginx.conf").write_text(NGINX_CONF)
        started = [
            server.popen(["haproxy", "-db", "-f", str(lab.dir / "haproxy.cfg")]),
            server.popen(["nginx", "-p", str(lab.dir), "-c", str(lab.dir / "nginx.conf")]),
        ]

        def listening() -> bool:
            for process in started:
                assert process.poll() is None, process.stdout and process.stdout.read()
            pid = started[0].pid
            if not os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), server.path.stat()):
                return False
            return {HAPROXY, NGINX, SPEAKS} <= set(bound_ports(pid, "tcp", "0A"))

        eventually(listening)
        assert topology.laddrs is not None
        lines = [
            line
            for family in FAMILIES
            for vport, (dport, proto, how, udp) in SERVICES.items()
            for line in service(
                f"told-{vport}-{family}",
                topology.vips.of(family),
                vport,
                [topology.servers[0][1].of(family)],
                proto=proto,
                dport=dport,
                client_ip=how,
                client_ip_udp=udp,
                client_ip_trust=[ANYONE[family]] if vport in TRUSTED else [],
                laddrs=[topology.laddrs.of(family)],
            )
        ]
        process = lab.start_tunlb(with_lines(topology.config_text, *lines))
        yield Site(lab, process)
        found = counters(process)
        assert drops(found) <= PLANNED_DROPS, found
        assert "HOOK_ERRORS" not in found


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.mark.parametrize("vport", [8001, 8002, 8003, 8004])
def test_a_server_knows_the_client(site: Site, family: Family, vport: int) -> None:
    """HAProxy and nginx, versions 1 and 2: the client's endpoint, and the one it asked for."""
    for _ in range(3):
        with site.connect(family, vport) as sock:
            mine, asked = sock.getsockname()[:2], sock.getpeername()[:2]
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            head, _, body = read_all(sock).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.")
        src, sport, dst, dport = body.decode().split()
        assert (ip_address(src), int(sport)) == (ip_address(mine[0]), mine[1])
        assert (ip_address(dst), int(dport)) == (ip_address(asked[0]), asked[1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("vport", TRUSTED)
def test_a_balancer_before_us(site: Site, family: Family, vport: int, version: int) -> None:
    """The server reads one header, of either version: that of the first."""
    src, dst = ("203.0.113.5", "203.0.113.6") if family == "v4" else ("2001:db8::5", "2001:db8::6")
    header = f"PROXY TCP{family[1]} {src} {dst} 4321 443\r\n".encode()
    if version == 2:
        body = ip_address(src).packed + ip_address(dst).packed + struct.pack("!HH", 4321, 443)
        kind = 0x11 if family == "v4" else 0x21
        header = SIGNATURE + struct.pack("!BBH", 0x21, kind, len(body)) + body
    with site.connect(family, vport) as sock:
        sock.sendall(header + b"GET / HTTP/1.0\r\n\r\n")
        _, _, answer = read_all(sock).partition(b"\r\n\r\n")
    assert answer.decode().split() == [src, "4321", dst, "443"]


def test_a_header_of_anyone_else(site: Site, family: Family) -> None:
    """Ours comes first, so what a client says of itself is no HTTP."""
    with site.connect(family, 8001) as sock:
        sock.sendall(b"PROXY TCP4 203.0.113.5 203.0.113.6 1 2\r\nGET / HTTP/1.0\r\n\r\n")
        answer = read_all(sock)
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert b"203.0.113.5" not in answer


@pytest.mark.parametrize("vport", [8005, 8006])
def test_a_server_that_speaks_first(site: Site, family: Family, vport: int) -> None:
    """It waits for the header, and the client for it: neither waits for ever."""
    with site.connect(family, vport) as sock:
        assert read_line(sock).startswith(b'{"host": "s1"')
        sock.sendall(b"ping")
        assert sock.recv(100) == b"ping"


@pytest.mark.parametrize("vport", [8005, 8006, 8007])
@pytest.mark.parametrize("lossy", [False, True], ids=["", "with losses"])
def test_what_is_sent_arrives(site: Site, family: Family, vport: int, lossy: bool) -> None:
    """Up and down at once; where packets get lost, both ends repair by what SACK tells them."""
    data = pattern(BYTES)
    with (
        losses(site.lab, SERVICES[vport][0]) if lossy else contextlib.nullcontext(),
        site.connect(family, vport) as sock,
    ):
        read_line(sock)
        sender = threading.Thread(target=send_and_end, args=(sock, data))
        sender.start()
        echoed = read_all(sock)
        sender.join()
    assert len(echoed) == len(data)
    assert hashlib.sha256(echoed).digest() == hashlib.sha256(data).digest()


def test_the_first_segments_get_lost(site: Site, family: Family) -> None:
    """The ACK with the header and the data behind it never reach the server, at first."""
    with first_lost(site.lab, SPEAKS), site.connect(family, 8006) as sock:
        sock.sendall(b"ping")
        assert read_line(sock).startswith(b'{"host": "s1"')
        assert sock.recv(100) == b"ping"


def test_toa_is_in_every_first_segment(site: Site, family: Family) -> None:
    """A kernel's server takes no notice of the option that a module of its would read."""
    raw = site.lab.host("s1").socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with raw:
        raw.settimeout(5)
        with site.connect(family, 8007) as sock:
            mine = sock.getsockname()[:2]
            read_line(sock)
            sock.sendall(b"ping")
            assert sock.recv(100) == b"ping"
        options: list[tuple[int, bytes]] = []
        while len(options) < 3:
            found = toa_of(raw.recv(1 << 16), ECHO)
            if found is not None:
                options.append(found)
    packed = ip_address(mine[0]).packed
    option = bytes([254, 4 + len(packed)]) + struct.pack("!H", mine[1]) + packed
    assert options[0][0] & 0x12 == 0x02
    assert not options[0][1].startswith(b"\xfe")
    assert options[1][0] & 0x12 == 0x10
    assert options[1][1].startswith(option)


def toa_of(frame: bytes, dport: int) -> tuple[int, bytes] | None:
    """Flags and options of a segment to `dport`."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == 0x0800 and frame[23] == 6:
        tcp = frame[14 + (frame[14] & 15) * 4 :]
    elif kind == 0x86DD and frame[20] == 6:
        tcp = frame[54:]
    else:
        return None
    if int.from_bytes(tcp[2:4], "big") != dport:
        return None
    return tcp[13], tcp[20 : (tcp[12] >> 4) * 4]


def test_datagrams(site: Site, family: Family) -> None:
    """A server of ours reads the header of the first one, or of each."""
    server = site.lab.host("s1").socket(socket.AF_INET6, socket.SOCK_DGRAM)
    kind = socket.AF_INET if family == "v4" else socket.AF_INET6
    vip = site.lab.topology.vips.of(family)
    with server:
        server.settimeout(5)
        server.bind(("::", UDP))
        for vport, every in ((8008, False), (8009, True)):
            with site.lab.client.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.connect((vip, vport))
                mine = sock.getsockname()[:2]
                for number in range(3):
                    sock.send(b"query %d" % number)
                    data, peer = server.recvfrom(2000)
                    if every or number == 0:
                        told, data = header_of(data)
                        assert told == (ip_address(mine[0]), mine[1], ip_address(vip), vport)
                    assert data == b"query %d" % number
                    server.sendto(b"answer", peer)
                    assert sock.recv(100) == b"answer"


def header_of(data: bytes) -> tuple[tuple[object, int, object, int], bytes]:
    assert data[:13] == SIGNATURE + b"\x21"
    size = 4 if data[13] == 0x12 else 16
    assert data[13] in (0x12, 0x22)
    assert int.from_bytes(data[14:16], "big") == 2 * size + 4
    rest = data[16:]
    sport, dport = struct.unpack("!HH", rest[2 * size : 2 * size + 4])
    told = ip_address(rest[:size]), sport, ip_address(rest[size : 2 * size]), dport
    return told, rest[2 * size + 4 :]


@pytest.mark.parametrize(("family", "vport"), [("v4", 8006), ("v6", 8005), ("v4", 8007)])
def test_a_worker_dies_meanwhile(site: Site, family: Family, vport: int) -> None:
    """Its successor knows by how much both sides differ."""
    data = pattern(200_000)
    with site.connect(family, vport) as sock:
        read_line(sock)
        former = workers_of(site.lab)[0]
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        os.kill(former, signal.SIGKILL)
        assert read_exactly(sock, len(data)) == data
        sender.join()
        assert eventually(lambda: workers_of(site.lab).get(0)) != former


@contextlib.contextmanager
def losses(lab: Lab, port: int) -> Iterator[None]:
    """One in twenty frames to and from the server's port gets lost."""
    every = "numgen inc mod 20 == 7"
    with rules(lab, f"tcp dport {port} {every}", f"tcp sport {port} {every}"):
        yield


@contextlib.contextmanager
def first_lost(lab: Lab, port: int) -> Iterator[None]:
    """The first 200 bytes behind the SYN get lost on their way to the server."""
    only = f"tcp dport {port} tcp flags & (syn|ack) == ack"
    with rules(lab, f"{only} quota until 200 bytes"):
        yield


@contextlib.contextmanager
def rules(lab: Lab, inward: str, outward: str = "meta mark 1") -> Iterator[None]:
    """Drops in the first server what is described; something must have been."""
    host = lab.host("s1")
    text = f"""table inet lossy {{
      chain inward {{ type filter hook input priority 0; {inward} counter drop; }}
      chain outward {{ type filter hook output priority 0; {outward} counter drop; }}
    }}"""
    host.run(["nft", "-f", "-"], stdin=text)
    try:
        yield
        listed = host.run(["nft", "list", "table", "inet", "lossy"]).stdout
        assert sum(map(int, re.findall(r"counter packets (\d+)", listed))) >= 2
    finally:
        host.run(["nft", "delete", "table", "inet", "lossy"])


def read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = sock.recv(1)
        assert part, line
        line += part
    return line


def read_exactly(sock: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = sock.recv(1 << 20)
        assert part
        parts += part
    return bytes(parts)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
