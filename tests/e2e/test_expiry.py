"""What real sockets see when tunlb ends their conns, refuses new ones or starts a server slowly."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    eventually,
    stopped,
    with_keys,
    without,
    workers_of,
)
from tunlb.lab import Lab, TunlbProcess, clients

S1 = {"v4": "10.0.0.11", "v6": "fd00::11"}
PORT = 9999  # of a server whose sockets are the test's own


def family_of(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == "v4" else socket.AF_INET6


def tcp_to(lab: Lab, family: Family) -> socket.socket:
    sock = lab.client.socket(family_of(family), socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect((lab.topology.vips.of(family), 7))
    return sock


@contextmanager
def both_ends(lab: Lab, family: Family) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A conn from the client to s1, and both its sockets; some data went both ways."""
    with ExitStack() as stack:
        listener = stack.enter_context(lab.host("s1").socket(family_of(family), socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(5)
        listener.bind(("", PORT))
        listener.listen()
        client = stack.enter_context(tcp_to(lab, family))
        server, _ = listener.accept()
        stack.enter_context(server)
        server.settimeout(5)
        client.sendall(b"x" * 70_000)
        taken = 0
        while taken < 70_000:
            taken += len(server.recv(65536))
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"
        yield client, server


def only_s1(text: str, family: Family, **keys: object) -> str:
    """The echo service with one dest, the test's own server."""
    name = f"echo-{family}"
    for n in (2, 3):
        text = without(text, kind="dest", service=name, daddr=S1[family][:-1] + str(n))
    text = with_keys(text, "service", name, **keys)
    return text.replace('"dport": 7777', f'"dport": {PORT}')


def seconds_until_reset(sock: socket.socket) -> float:
    began = time.monotonic()
    with pytest.raises(ConnectionResetError):
        sock.recv(100)
    return time.monotonic() - began


def test_both_ends_of_an_idle_conn_are_reset(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    for family in FAMILIES:
        keys = {"reset_on_expire": True, "timeouts": {"tcp_established_s": 1}}
        text = only_s1(text, family, **keys)
    tunlb = made.start_tunlb(text)
    for family in FAMILIES:
        with both_ends(made, family) as (client, server):
            assert 0.5 < seconds_until_reset(client) < 3
            assert seconds_until_reset(server) < 0.5
    found = stopped(tunlb)["counters"]
    assert isinstance(found, dict)
    assert (found["CONN_RESET"], found["RESETS_SENT"]) == (2, 4)


@pytest.mark.parametrize("name", ["one-arm", "two-arm"])
def test_a_removed_dest_resets_both_at_once(lab: LabFactory, name: str) -> None:
    """The clients connect anew, to another server."""
    made = lab(name)
    text = with_keys(made.topology.config_text, "service", expire_nodest="reset", scheduler="fo")
    tunlb = made.start_tunlb(text)
    servers = dict(made.topology.servers)
    for family in FAMILIES:
        with ExitStack() as stack:
            conns = [stack.enter_context(tcp_to(made, family)) for _ in range(20)]
            (host,) = {clients.parse_echo(conn.recv(4096)).host for conn in conns}
            gone = {"service": f"echo-{family}", "daddr": servers[host].of(family)}
            assert tunlb.reload(without(text, kind="dest", **gone))["event"] == "reloaded"
            assert max(seconds_until_reset(conn) for conn in conns) < 1
        assert clients.tcp_echo(made.client, made.topology.vips.of(family), 7).host != host
    found = stopped(tunlb)["counters"]
    assert isinstance(found, dict)
    assert (found["CONN_RESET"], found["RESETS_SENT"]) == (40, 80)


def test_rescheduled_conns_hear_when_they_speak(lab: LabFactory) -> None:
    """With direct routing too: there the client alone."""
    for name in ("one-arm", "dr"):
        made = lab(name)
        text = with_keys(made.topology.config_text, "service", expire_quiescent="reschedule")
        tunlb = made.start_tunlb(text)
        vip = made.topology.vips.v4
        with clients.connection(made.client, vip, 7) as conn:
            assert conn.echo(b"x") == b"x"
            quiet = with_keys(text, "dest", weight=0)
            assert tunlb.reload(quiet)["event"] == "reloaded"
            time.sleep(0.3)
            with pytest.raises(ConnectionResetError):
                conn.echo(b"x")
        assert tunlb.stop() == 0


def test_a_udp_flow_goes_elsewhere_at_once(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    for family in FAMILIES:
        for word in ("reset", "reschedule"):
            text = with_keys(made.topology.config_text, "service", expire_nodest=word)
            assert tunlb.reload(text)["event"] == "reloaded"
            flow_moves(made, tunlb, text, family)
    assert tunlb.stop() == 0


def flow_moves(made: Lab, tunlb: TunlbProcess, text: str, family: Family) -> None:
    with made.client.socket(family_of(family), socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((made.topology.vips.of(family), 7))

        def host() -> str:
            sock.send(b"who")
            return clients.parse_echo(sock.recv(4096)).host

        first = host()
        assert [host() for _ in range(3)] == [first] * 3
        gone = {"service": f"echo-udp-{family}", "daddr": S1[family][:-1] + first[1]}
        assert tunlb.reload(without(text, kind="dest", **gone))["event"] == "reloaded"
        second = host()
        assert second != first
        assert [host() for _ in range(3)] == [second] * 3


def refused(lab: Lab, vip: str) -> bool:
    try:
        clients.tcp_echo(lab.client, vip, 7)
    except OSError:
        return True
    return False


def test_limits_of_a_dest_and_of_a_service(lab: LabFactory) -> None:
    made = lab("one-arm")
    vip = made.topology.vips.v4
    soon = {"tcp_fin_wait_s": 0.2, "tcp_time_wait_s": 0.2, "tcp_close_s": 0.2}
    text = with_keys(made.topology.config_text, "service", "echo-v4", timeouts=soon)
    for server in ("s2", "s3"):
        text = without(text, kind="dest", service="echo-v4", daddr=f"10.0.0.1{server[1]}")
    lines = text.replace(
        '"service": "echo-v4"', '"service": "echo-v4", "max_conn": 4, "min_conn": 2'
    )
    tunlb = made.start_tunlb(lines)

    conns = [clients.EchoConnection(made.client, vip, 7) for _ in range(4)]
    assert refused(made, vip)
    for conn in conns[2:]:
        conn.close()
    time.sleep(1)
    assert refused(made, vip)  # 2 are left, and min_conn is 2
    conns[1].close()
    eventually(lambda: not refused(made, vip), 3)
    assert conns[0].echo(b"x") == b"x"
    conns[0].close()
    limited = with_keys(text, "service", "echo-v4", max_conn=3)
    time.sleep(1)
    assert tunlb.reload(limited)["event"] == "reloaded"
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(clients.connection(made.client, vip, 7))
        assert refused(made, vip)
    eventually(lambda: not refused(made, vip), 3)
    found = stopped(tunlb)["counters"]
    assert isinstance(found, dict)
    assert found["drop.NO_DEST"] >= 2
    assert found["drop.SERVICE_FULL"] >= 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whose", ["dest", "service"])
def test_a_limit_is_that_of_both_workers(lab: LabFactory, family: Family, whose: str) -> None:
    """To the conn, however unevenly they are spread, and when one of the workers is replaced."""
    made = lab("one-arm")
    vip, name = made.topology.vips.of(family), f"echo-{family}"
    soon = {"tcp_fin_wait_s": 0.2, "tcp_time_wait_s": 0.2, "tcp_close_s": 0.2}
    text = with_keys(made.topology.config_text, "tunlb", workers=2)
    text = with_keys(text, "service", name, timeouts=soon)
    for server in ("12", "13"):
        net = "10.0.0." if family == "v4" else "fd00::"
        text = without(text, kind="dest", service=name, daddr=f"{net}{server}")
    if whose == "service":
        text = with_keys(text, "service", name, max_conn=7)
    else:
        own = f'"service": "{name}"'
        text = text.replace(own, f'{own}, "max_conn": 7, "min_conn": 5')
    tunlb = made.start_tunlb(text)
    with ExitStack() as stack:
        conns = [stack.enter_context(clients.connection(made.client, vip, 7)) for _ in range(7)]
        assert all(refused(made, vip) for _ in range(10))
        number, pid = workers_of(made).popitem()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: workers_of(made).get(number, pid) != pid)
        assert all(conn.echo(b"x") == b"x" for conn in conns)
        assert all(refused(made, vip) for _ in range(10))
    eventually(lambda: not refused(made, vip), 3)
    found = stopped(tunlb)["counters"]
    assert isinstance(found, dict)
    assert found["drop.NO_DEST" if whose == "dest" else "drop.SERVICE_FULL"] >= 20


def test_a_server_starts_slowly(lab: LabFactory) -> None:
    """It gets a small share at first, and in the end the same as the others."""
    made = lab("one-arm")
    seconds = 3
    text = with_keys(
        made.topology.config_text, "service", "echo-v4", scheduler="wrr", slow_start_s=seconds
    )
    without_s3 = without(text, kind="dest", service="echo-v4", daddr="10.0.0.13")
    tunlb = made.start_tunlb(without_s3)
    vip = made.topology.vips.v4

    def shares(count: int) -> Counter[str]:
        return Counter(clients.tcp_echo(made.client, vip, 7).host for _ in range(count))

    assert tunlb.reload(text)["event"] == "reloaded"
    began = time.monotonic()
    early = shares(21)
    assert time.monotonic() - began < 1, "too slow a machine to see it"
    assert 0 < early["s3"] <= 4, early
    time.sleep(seconds + 0.5)
    assert set(shares(30).values()) == {10}
    assert tunlb.stop() == 0
