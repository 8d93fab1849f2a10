"""No local port is left towards one endpoint: inside hosts are told so, until there are some."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.gateway import FAR, TOPOLOGY, snat
from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    LabFactory,
    Line,
    counters,
    drops,
    eventually,
    with_lines,
)
from tunlb.ipvs.laddr import FIRST_PORT, LAST_PORT
from tunlb.lab import Lab, clients
from tunlb.lab.host import Host, ip

PORT = 7  # of the far host's echo servers, by TCP and UDP
CLOSED = 9999
LADDR = {"v4": "10.0.1.200", "v6": "fd01::200"}
# Longer than a port is silent while they are filled, and no longer than that needs.
FREED_S = 15 if COMPILED else 40
IPV6_CHECKSUM = 7
RECVERR = {"v4": (socket.IPPROTO_IP, 11), "v6": (socket.IPPROTO_IPV6, 25)}
#: What kernels say unasked; and of the flood what a queue has no room for.
PLANNED_DROPS = {"LPORT_EXHAUSTED", "MARTIAN", "NOT_FORWARDED", "OTHERHOST", "TX_BLOCKED"}
# As fast as queues on the way are read; the kernel's between two namespaces has 1,000 places.
BATCH, PAUSE_S = 200, 0.004 if COMPILED else 0.05

pytestmark = pytest.mark.slow


def inet(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == "v4" else socket.AF_INET6


def one_laddr(family: Family, proto: str, **keys: object) -> Line:
    (line,) = snat(family, proto)
    return {**line, "laddrs": [LADDR[family]], **keys}


@contextmanager
def silence(lab: Lab, family: Family) -> Iterator[None]:
    """The far host cannot be reached, and nobody says so: what is sent to it stays unanswered."""
    routes = ("-n", lab.host("router").ns, "route")
    ip(*routes, "add", "blackhole", FAR.of(family))
    try:
        yield
    finally:
        ip(*routes, "del", "blackhole", FAR.of(family))


def fill(host: Host, family: Family, proto: int) -> None:
    """A first packet to the far endpoint from each port that a laddr has; once more it is nothing
    new.
    """
    rest, checksum_at = (
        (struct.pack("!IIBBHHH", 1, 0, 0x50, 2, 64240, 0, 0), 16)
        if proto == socket.IPPROTO_TCP
        else (struct.pack("!HH", 8, 0), 6)
    )
    with host.socket(inet(family), socket.SOCK_RAW, proto) as sock:
        if family == "v6":
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, checksum_at)
        sock.connect((FAR.of(family), 0))
        for port in range(FIRST_PORT, LAST_PORT + 1):
            sock.send(struct.pack("!HH", port, PORT) + rest)
            if port % BATCH == 0:
                time.sleep(PAUSE_S)


def datagram(host: Host, family: Family, port: int, *, heard: bool = True) -> int:
    """What the kernel says of a datagram that wants an answer: an errno, or 0 when one came.

    Host unreachable may pass, so only who asks to hear such errors is told of it (IP_RECVERR).
    """
    with host.socket(inet(family), socket.SOCK_DGRAM) as sock:
        if heard:
            sock.setsockopt(*RECVERR[family], 1)
        sock.settimeout(0.5)
        sock.connect((FAR.of(family), port))
        sock.send(b"anybody?")
        try:
            sock.recv(100)
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or -1
    return 0


def connection(host: Host, family: Family) -> int:
    """The same of a connection, for which the kernel sends two SYNs."""
    with host.socket(inet(family), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        return sock.connect_ex((FAR.of(family), PORT))


def told_when_full(host: Host, family: Family, proto: int, attempt: Callable[[], int]) -> bool:
    """Whether ``attempt`` is told host unreachable. Frames of the flood may get lost, so twice; a
    port that is left all the same may be found, and is then one less.
    """
    for _ in range(5):
        fill(host, family, proto)
        fill(host, family, proto)
        if attempt() == errno.EHOSTUNREACH:
            return True
    return False


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams(lab: LabFactory, family: Family) -> None:
    """Told at once; it goes on when flows that nobody answered have timed out."""
    made = lab(TOPOLOGY)
    line = one_laddr(family, "udp", timeouts={"udp_oneway_s": FREED_S})
    tunlb = made.start_tunlb(with_lines(TOPOLOGY.config_text, line))
    host = made.host("client2")
    assert datagram(host, family, PORT) == 0
    with silence(made, family):
        assert told_when_full(
            made.client, family, socket.IPPROTO_UDP, lambda: datagram(host, family, PORT)
        )
        assert datagram(host, family, PORT, heard=False) == errno.ETIMEDOUT
    # Towards another endpoint there are all of them: what refuses here is the far kernel.
    assert datagram(host, family, CLOSED) == errno.ECONNREFUSED
    eventually(lambda: datagram(host, family, PORT) == 0, 3 * FREED_S)
    found = counters(tunlb)
    assert found["drop.LPORT_EXHAUSTED"] >= 1
    assert found["CONN_NEW"] > 0.99 * (LAST_PORT - FIRST_PORT)
    assert "CONN_EVICTED" not in found
    assert drops(found) <= PLANNED_DROPS, found


@pytest.mark.parametrize("family", FAMILIES)
def test_connections(lab: LabFactory, family: Family) -> None:
    """Told when the kernel has tried for long enough; it goes on with another laddr."""
    made = lab(TOPOLOGY)
    tunlb = made.start_tunlb(with_lines(TOPOLOGY.config_text, one_laddr(family, "tcp")))
    host = made.host("client2")
    assert connection(host, family) == 0
    with silence(made, family):
        assert told_when_full(
            made.client, family, socket.IPPROTO_TCP, lambda: connection(host, family)
        )
    assert clients.fetch(host, clients.url(FAR.of(family), 8080)).body.strip() == "far"
    text = with_lines(TOPOLOGY.config_text, *snat(family, "tcp"))  # with a second laddr
    assert tunlb.reload(text)["event"] == "reloaded"
    assert connection(host, family) == 0
    found = counters(tunlb)
    assert found["drop.LPORT_EXHAUSTED"] >= 2
    assert found["CONN_NEW"] > 0.99 * (LAST_PORT - FIRST_PORT)
    assert "CONN_EVICTED" not in found
    assert drops(found) <= PLANNED_DROPS, found
