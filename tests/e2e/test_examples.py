"""The examples in config/ that are no topology's own, each with traffic in the lab it names."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.e2e.kit import LabFactory, counters, drops
from tunlb.lab import TOPOLOGIES, Lab, TunlbProcess, clients
from tunlb.lab.host import Host, ip

CONFIG = Path(__file__).resolve().parents[2] / "config"
EXAMPLES = sorted(path.stem for path in CONFIG.glob("*.jsonl") if path.stem not in TOPOLOGIES)
V4, V6 = "10.0.0.100", "fd00::100"


def text_of(name: str) -> str:
    return (CONFIG / f"{name}.jsonl").read_text(encoding="utf-8")


def started(lab: LabFactory, name: str) -> tuple[Lab, TunlbProcess]:
    """The lab that an example names, with tunlb by this example."""
    [topology] = re.findall(r"Tried out in: tunlb lab up (\S+)", text_of(name).replace("\n# ", " "))
    made = lab(topology)
    return made, made.start_tunlb(text_of(name))


def fetched(lab: Lab, address: str, path: str = "/") -> str:
    return clients.fetch(lab.client, clients.url(address, 80, path)).body.strip()


def test_each_example_is_tried_out_here() -> None:
    for name in EXAMPLES:
        assert f"test_{name}" in globals(), name


def test_nat64(lab: LabFactory) -> None:
    made, tunlb = started(lab, "nat64")
    assert {fetched(made, V6) for _ in range(4)} == {"s1", "s2"}
    assert {fetched(made, V4) for _ in range(4)} == {"s2", "s3"}
    assert "10.0.0.2" in fetched(made, V6, "/peer")
    assert "fd00::2" in fetched(made, V4, "/peer")
    assert clients.udp_echo(made.client, V6, 7, b"to the other side").data == b"to the other side"
    assert not drops(counters(tunlb))


def test_snat(lab: LabFactory) -> None:
    made, tunlb = started(lab, "snat")
    assert {fetched(made, "10.0.1.100") for _ in range(4)} == {"s1", "s2"}
    inside = made.host("s3")
    assert asked(made.client, inside, socket.SOCK_STREAM) in ("10.0.1.200", "10.0.1.201")
    assert asked(made.client, inside, socket.SOCK_DGRAM) in ("10.0.1.200", "10.0.1.201")
    ping = inside.run(["ping", "-c", "3", "-i", "0.2", "-W", "2", "10.0.1.2"])
    assert "3 received" in ping.stdout
    assert counters(tunlb)["CONN_NEW"] == 7


def asked(outside: Host, inside: Host, kind: socket.SocketKind) -> str:
    """Whom somebody outside sees when a host inside speaks to it."""
    with (
        outside.socket(socket.AF_INET, kind) as server,
        inside.socket(socket.AF_INET, kind) as host,
    ):
        server.settimeout(3)
        host.settimeout(3)
        server.bind(("", 4000))
        if kind == socket.SOCK_STREAM:
            server.listen()
            host.connect(("10.0.1.2", 4000))
            conn, peer = server.accept()
            with conn:
                conn.sendall(b"welcome")
        else:
            host.sendto(b"hello", ("10.0.1.2", 4000))
            _, peer = server.recvfrom(100)
            server.sendto(b"welcome", peer)
        assert host.recv(100) == b"welcome"
    return str(peer[0])


def test_protected(lab: LabFactory) -> None:
    made, tunlb = started(lab, "protected")
    assert {fetched(made, V4) for _ in range(10)} == {"s1", "s2"}
    done = clients.fetch(made.client, clients.url(V4, 80, "/bytes/3000000"))
    assert len(done.body) == 3_000_000
    ip("-n", made.client.ns, "address", "add", "10.0.0.130/24", "dev", "eth0")
    for source, port in (("10.0.0.130", 80), ("10.0.0.2", 81)):
        with made.client.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(0.5)
            sock.bind((source, 0))
            with pytest.raises(TimeoutError):
                sock.connect((V4, port))
    assert drops(counters(tunlb)) == {"ACL_DENIED", "TCP_UNKNOWN_PORT"}


def test_ecmp(lab: LabFactory) -> None:
    made, tunlb = started(lab, "ecmp")
    assert fetched(made, V4) in made.topology.server_names
    assert fetched(made, V6) in made.topology.server_names
    with clients.connection(made.client, V4, 7, timeout=10) as conn:
        assert conn.echo(b"by the first") == b"by the first"
        assert tunlb.stop() == 0
        second = made.start_tunlb(text_of("ecmp"))
        assert conn.echo(b"by the second") == b"by the second"
    assert counters(second)["CONN_RESUMED"] == 1
