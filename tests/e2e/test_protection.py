"""Lists, conn rates and fragments, with the clients and servers of kernels."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    LabFactory,
    client_address,
    counters,
    drops,
    eventually,
    family_of,
    with_keys,
    with_lines,
)
from tests.flow.fragmenting import cut
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.servers import pattern
from tunlb.testing.frames import eth, udp
from tunlb.testing.frames import ip as packet

ECHO = 7
OTHER = {"v4": "10.0.0.3", "v6": "fd00::3"}
#: What kernels say unasked.
ORDINARY = {"MARTIAN", "NOT_FORWARDED", "ICMP_IGNORED", "OTHERHOST", "TX_BLOCKED"}


def connects(lab: Lab, family: Family, source: str) -> bool:
    """Whether a client with this address gets to the echo service."""
    vip = lab.topology.vips.of(family)
    with lab.client.socket(address_family(family), socket.SOCK_STREAM) as sock:
        sock.bind((source, 0))
        sock.settimeout(0.7)
        try:
            sock.connect((vip, ECHO))
            return bool(sock.recv(100))
        except TimeoutError:
            return False


def address_family(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == "v4" else socket.AF_INET6


def with_another_client(lab: LabFactory) -> Lab:
    """One-arm, whose client has a second address."""
    made = lab("one-arm")
    for address in OTHER.values():
        length = 24 if family_of(address) == "v4" else 64
        made.client.run(["ip", "address", "add", f"{address}/{length}", "dev", "eth0"])
    return made


@contextmanager
def connection(lab: Lab, family: Family) -> Iterator[socket.socket]:
    """An open conn of the client's first address to the echo service."""
    with lab.client.socket(address_family(family), socket.SOCK_STREAM) as sock:
        sock.bind((client_address(lab, family), 0))
        sock.settimeout(0.7)
        sock.connect((lab.topology.vips.of(family), ECHO))
        assert sock.recv(100)
        yield sock


def reload(tunlb: TunlbProcess, text: str) -> None:
    assert tunlb.reload(text)["event"] == "reloaded"


def test_lists_rates_and_defence(lab: LabFactory) -> None:
    made = with_another_client(lab)
    text = made.topology.config_text
    tunlb = made.start_tunlb(text)
    for family in FAMILIES:
        lists(made, tunlb, text, family)
    rates(made, tunlb, with_keys(text, "service", "echo-v4", conn_rate=5, conn_burst=40))
    defence(made, tunlb, text)
    found = counters(tunlb)
    assert found["drop.ACL_DENIED"] >= 4
    assert found["drop.ACL_NOT_ALLOWED"] >= 4
    assert found["drop.CONN_RATE"] >= 140
    assert found["drop.TCP_UNKNOWN_PORT"] >= 1
    planned = {"ACL_DENIED", "ACL_NOT_ALLOWED", "CONN_RATE", "TCP_UNKNOWN_PORT", "PORT_UNREACHABLE"}
    assert drops(found) <= planned | ORDINARY


def lists(made: Lab, tunlb: TunlbProcess, text: str, family: Family) -> None:
    mine, other = client_address(made, family), OTHER[family]
    service = f"echo-{family}"
    reload(tunlb, with_lines(text, {"kind": "acl", "action": "deny", "src": other}))
    assert connects(made, family, mine)
    assert not connects(made, family, other)
    with connection(made, family) as conn:
        conn.send(b"before")
        assert conn.recv(100) == b"before"
        allow = {"kind": "acl", "action": "allow", "src": other, "service": service}
        reload(tunlb, with_lines(text, allow))
        conn.send(b"while no list has it")
        with pytest.raises(TimeoutError):
            conn.recv(100)
        assert connects(made, family, other)
        reload(tunlb, text)
        assert connects(made, family, mine)
        conn.settimeout(5)
        assert conn.recv(100) == b"while no list has it", "the kernel sent it again"
    whole = "0.0.0.0/0" if family == "v4" else "::/0"
    deny = {"kind": "acl", "action": "deny", "src": whole, "service": service}
    reload(tunlb, with_lines(text, deny))
    assert not connects(made, family, other)
    assert clients.fetch(made.client, clients.url(made.topology.vips.of(family), 80)).status == 200


def rates(made: Lab, tunlb: TunlbProcess, text: str) -> None:
    """200 conns at once: the burst is let in, and somebody else is not touched."""
    reload(tunlb, text)
    with ExitStack() as stack:
        socks = [
            stack.enter_context(made.client.socket(socket.AF_INET, socket.SOCK_STREAM))
            for _ in range(200)
        ]
        for sock in socks:
            sock.bind((client_address(made, "v4"), 0))
            sock.setblocking(False)
            assert sock.connect_ex((made.topology.vips.v4, ECHO)) in (0, errno.EINPROGRESS)
        assert connects(made, "v4", OTHER["v4"])
        up: set[socket.socket] = set()
        deadline = time.monotonic() + 10
        while len(up) < 38 and time.monotonic() < deadline:
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.settimeout(0.001)
                    if sock not in up and sock.recv(100):
                        up.add(sock)
        # A SYN that was dropped is sent again after a second, when there are some tokens again.
        assert 38 <= len(up) <= 70


def defence(made: Lab, tunlb: TunlbProcess, text: str) -> None:
    """What a port without a service says, or does not say any more."""

    def knock() -> None:
        with made.client.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(0.7)
            sock.connect((made.topology.vips.v4, 9))

    reload(tunlb, text)
    with pytest.raises(ConnectionRefusedError):
        knock()
    reload(tunlb, with_keys(text, "tunlb", defence_tcp=True))
    with pytest.raises(TimeoutError):
        knock()


# ---- fragments ----------------------------------------------------------------------------------


SIZES = (1473, 4000, 8000, 60000)


def exchange(lab: Lab, family: Family, sizes: Sequence[int] = SIZES) -> None:
    """Datagrams to the echo service and back, cut and put together by the kernels of both."""
    vip = lab.topology.vips.of(family)
    for size in sizes:
        data = pattern(size)
        answer = clients.udp_echo(lab.client, vip, ECHO, data)
        assert answer.data == data
        assert answer.host in lab.topology.server_names


def mac_of(tunlb: TunlbProcess) -> str:
    ports = tunlb.wait_event(("ready",))["ports"]
    assert isinstance(ports, list)
    return str(ports[0]["mac"])


def in_pieces(
    lab: Lab, family: Family, mac: str, sport: int, data: bytes, ident: int
) -> list[bytes]:
    """Frames of a datagram to the echo service, as the client's kernel would send them."""
    own = lab.client.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    vip = lab.topology.vips.of(family)
    whole = packet(client_address(lab, family), vip, udp(sport, ECHO, data))
    return [eth(mac, own, payload=part) for part in cut(whole, 1400, ident)]


WAYS = [("one-arm", 2), ("two-arm", 2), ("dr", 1), ("tun", 1)]


@pytest.mark.parametrize(("topology", "workers"), WAYS, ids=str)
def test_datagrams_larger_than_the_mtu(lab: LabFactory, topology: str, workers: int) -> None:
    made = lab(topology)
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", workers=workers))
    for family in FAMILIES:
        for _ in range(2 * workers):  # other ports, another worker
            exchange(made, family)
    found = 0
    if topology != "tun":
        found = 2 * out_of_order(made, tunlb)
    counted = counters(tunlb)
    assert counted["FRAGMENT_FIRST"] >= 2 * workers * len(SIZES)
    assert counted["FRAGMENT_LATER"] > 100
    assert counted.get("FRAGMENT_HELD", 0) >= found
    assert drops(counted) <= ORDINARY
    if workers == 2:
        assert counted["HANDED_OVER"] > 50


def out_of_order(made: Lab, tunlb: TunlbProcess) -> int:
    """How many of the fragments that it sends in each family come before their first one."""
    mac = mac_of(tunlb)
    early = 0
    for family in FAMILIES:
        early = 0
        with (
            made.client.socket(address_family(family), socket.SOCK_DGRAM) as sock,
            made.client.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
        ):
            wire.bind(("eth0", 0))
            sock.bind((client_address(made, family), 0))
            sock.settimeout(3)
            sport = sock.getsockname()[1]
            for number in range(6):
                data = pattern(7000 if number < 3 else 60_000)
                pieces = in_pieces(made, family, mac, sport, data, 5000 + number)
                order = list(range(len(pieces)))
                if number % 3 == 0:
                    order.reverse()
                elif number % 3 == 1:
                    order = order[1:] + order[:1]
                else:
                    order[1], order[-1] = order[-1], order[1]
                early += order.index(0)
                for at in order:
                    wire.send(pieces[at])
                answer = clients.parse_echo(sock.recv(65535))
                assert answer.data == data
    return early


def passes(lab: Lab) -> bool:
    with contextlib.suppress(TimeoutError):
        exchange(lab, "v4", (4000,))
        return True
    return False


def test_a_flood_of_fragments(lab: LabFactory) -> None:
    """First and later ones of datagrams that are never whole: honest ones pass all the same."""
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    mac = mac_of(tunlb)
    own = made.client.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    vip = made.topology.vips.v4
    count = 20_000 if COMPILED else 4_000
    exchange(made, "v4", (4000,))
    with made.client.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for n in range(count):
            source = f"10.66.{n >> 8 & 255}.{n & 255}"
            body = packet(source, vip, udp(n & 0xFFFF or 1, ECHO, bytes(40)))
            wire.send(eth(mac, own, payload=cut(body, 32, n & 0xFFFF)[n & 1]))
            if n % 1000 == 999:
                eventually(lambda: passes(made))  # behind so many, a full queue may drop one
    exchange(made, "v4")
    reload(tunlb, with_keys(made.topology.config_text, "tunlb", fragments="drop"))
    assert clients.udp_echo(made.client, vip, ECHO, b"small").data == b"small"
    with pytest.raises(TimeoutError):
        clients.udp_echo(made.client, vip, ECHO, bytes(4000), timeout=0.5)
    found = counters(tunlb)
    assert found["drop.FRAGMENT"] == 3
    assert found["FRAGMENT_HELD"] >= count // 2 * 0.9
    planned = {"FRAGMENT", "FRAGMENT_QUEUE_FULL", "FRAGMENT_TIMEOUT", "NO_ROUTE"}
    assert drops(found) <= planned | ORDINARY
