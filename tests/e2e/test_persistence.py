"""Clients that keep their dest, and datagrams that do not."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    client_address,
    counters,
    drops,
    eventually,
    lines_of,
    stopped,
    text_of,
    with_keys,
    with_lines,
    without,
    workers_of,
)
from tunlb.lab import Lab, clients
from tunlb.lab.host import Host

# A closed conn holds its template as well, so its end must come soon too.
SOON = {"tcp_time_wait_s": 0.2, "tcp_fin_wait_s": 0.2, "tcp_close_s": 0.2, "tcp_close_wait_s": 0.2}
OTHER = {"v4": "10.0.0.3", "v6": "fd00::3"}
SERVERS = {"v4": ["10.0.0.11", "10.0.0.12", "10.0.0.13"], "v6": ["fd00::11", "fd00::12"]}


def family_of(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == "v4" else socket.AF_INET6


def asked(lab: Lab, family: Family, source: str = "", port: int = 7) -> str:
    """The server that a conn from this address of the client meets."""
    vip = lab.topology.vips.of(family)
    with lab.client.socket(family_of(family), socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.bind((source or client_address(lab, family), 0))
        sock.connect((vip, port))
        return clients.parse_echo(sock.recv(4096)).host


def second_client(lab: Lab) -> None:
    """The client's host gets another address of the same network in each family."""
    lab.client.run(["ip", "addr", "add", f"{OTHER['v4']}/24", "dev", "eth0"])
    lab.client.run(["ip", "addr", "add", f"{OTHER['v6']}/64", "dev", "eth0", "nodad"])


def replaced(lab: Lab, number: int, pid: int) -> bool:
    """Whether another process is this worker now."""
    return workers_of(lab).get(number, pid) != pid


def hosts(lab: Lab, family: Family, sources: Iterable[str] = ("",) * 6) -> Counter[str]:
    return Counter(asked(lab, family, source) for source in sources)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_keeps_its_server(lab: LabFactory, workers: int) -> None:
    """Through reloads and the deaths of workers, until its time is over."""
    made = lab("one-arm")
    text = with_keys(made.topology.config_text, "tunlb", workers=workers)
    text = with_keys(text, "service", persistence_s=60, timeouts=SOON)
    tunlb = made.start_tunlb(text)
    second_client(made)
    for family in FAMILIES:
        (first,) = hosts(made, family)
        others = {asked(made, family, OTHER[family])}
        assert tunlb.reload(with_keys(text, "service", drain_s=60))["event"] == "reloaded"
        assert set(hosts(made, family)) == {first}
        for number, pid in workers_of(made).items():
            os.kill(pid, signal.SIGKILL)
            eventually(partial(replaced, made, number, pid))
        assert set(hosts(made, family)) == {first}
        assert set(hosts(made, family, (OTHER[family],) * 6)) == others
        target = clients.url(made.topology.vips.of(family), 80)
        assert len({clients.fetch(made.client, target).body for _ in range(6)}) == 1
    found = stopped(tunlb)["counters"]
    assert isinstance(found, dict)
    assert found["TEMPLATE_NEW"] >= 6
    assert ("TEMPLATE_ASKED" in found) == (workers > 1)


def test_it_expires_and_masks_make_one_of_two(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = with_keys(made.topology.config_text, "service", persistence_s=1, timeouts=SOON)
    tunlb = made.start_tunlb(text)
    second_client(made)
    for family in FAMILIES:
        (first,) = hosts(made, family)
        assert asked(made, family, OTHER[family]) != first
        time.sleep(2)
        assert asked(made, family) != first  # rr went on
    for family, mask in (("v4", "255.255.255.0"), ("v6", 64)):
        text = with_keys(text, "service", f"echo-{family}", persistence_mask=mask)
    assert tunlb.reload(text)["event"] == "reloaded"
    time.sleep(2)
    for family in FAMILIES:
        both = (client_address(made, family), OTHER[family]) * 3
        assert len(hosts(made, family, both)) == 1
    assert tunlb.stop() == 0


def test_any_port_is_one_server(lab: LabFactory) -> None:
    """Whichever port a client asks for."""
    made = lab("one-arm")
    text = made.topology.config_text
    for family in FAMILIES:
        vaddr = "10.0.0.101" if family == "v4" else "fd00::101"
        laddrs = "10.0.0.200" if family == "v4" else "fd00::200"
        line: dict[str, object] = {
            "kind": "service",
            "name": f"any-{family}",
            "proto": "tcp",
            "vaddr": vaddr,
        }
        line |= {"vport": 0, "scheduler": "rr", "persistence_s": 30, "laddrs": [laddrs]}
        dests = [
            {"kind": "dest", "service": f"any-{family}", "daddr": daddr}
            for daddr in SERVERS[family]
        ]
        text = with_lines(text, line, *dests)
    tunlb = made.start_tunlb(text)
    for vaddr in ("10.0.0.101", "fd00::101"):
        seen = {clients.tcp_echo(made.client, vaddr, port).host for port in (7, 7777) * 3}
        for port in (80, 8080, 8081):
            seen.add(clients.fetch(made.client, clients.url(vaddr, port)).body.strip())
        assert len(seen) == 1
    assert tunlb.stop() == 0


def test_one_sockets_datagrams_spread(lab: LabFactory) -> None:
    """One-packet scheduling, with direct routing: every server answers the client itself."""
    made = lab("dr")
    text = made.topology.config_text
    for family in FAMILIES:
        text = with_keys(text, "service", f"echo-udp-{family}", ops=True)
    tunlb = made.start_tunlb(text)
    for family in FAMILIES:
        seen: Counter[str] = Counter()
        with made.client.socket(family_of(family), socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((made.topology.vips.of(family), 7))
            for number in range(30):
                sock.send(b"%d" % number)
                answer = clients.parse_echo(sock.recv(4096))
                assert answer.data == b"%d" % number
                seen[answer.host] += 1
        assert seen == {"s1": 10, "s2": 10, "s3": 10}
    found = stopped(tunlb)["counters"]
    assert isinstance(found, dict)
    assert found["OPS_PACKETS"] == 60
    assert "CONN_NEW" not in found


def alone(text: str, *, dests: int, dport: int) -> str:
    """The configuration with one-packet scheduling of the UDP echo, to so many dests of each family
    that have this port.
    """
    lines, seen = [], Counter[str]()
    for line in lines_of(text):
        name = str(line.get("service", line.get("name")))
        if name.startswith("echo-udp-"):
            if line["kind"] == "dest":
                seen[name] += 1
                if seen[name] > dests:
                    continue
                line["dport"] = dport
            else:
                line["ops"] = True
        lines.append(line)
    return text_of(lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_hears_that_nobody_listens(lab: LabFactory, workers: int) -> None:
    """With nat and one-packet scheduling: the kernel believes what quotes what it sent."""
    made = lab("two-arm")
    text = alone(made.topology.config_text, dests=3, dport=9)
    tunlb = made.start_tunlb(with_keys(text, "tunlb", workers=workers))
    for family in FAMILIES:
        with made.client.socket(family_of(family), socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((made.topology.vips.of(family), 7))
            sock.send(b"is anybody there?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(4096)
    found = counters(tunlb)
    assert (found["OPS_PACKETS"], found["ICMP_RELATED"]) == (2, 2)
    assert "OPS_ANSWERS" not in found


def unreachables(host: Host, family: Family) -> int:
    """How many ICMP errors told this host's kernel that something cannot be reached."""
    name = "IcmpInDestUnreachs" if family == "v4" else "Icmp6InDestUnreachs"
    found = host.run(["nstat", "--ignore", "--noupdate", "--zeros", name]).stdout
    return int(found.split(name)[1].split()[0])


def test_the_one_server_hears_that_its_client_is_gone(lab: LabFactory) -> None:
    made = lab("two-arm")
    server = made.host("s1")
    tunlb = made.start_tunlb(alone(made.topology.config_text, dests=1, dport=7777))

    before = {family: unreachables(server, family) for family in FAMILIES}

    def heard(family: Family) -> bool:
        """Ask, and be gone before the answer comes."""
        with made.client.socket(family_of(family), socket.SOCK_DGRAM) as sock:
            sock.sendto(b"never mind", (made.topology.vips.of(family), 7))
        return unreachables(server, family) > before[family]

    for family in FAMILIES:
        eventually(partial(heard, family))
    found = counters(tunlb)
    assert found["ICMP_RELATED"] >= 2
    assert "ICMP_UNRELATED" not in drops(found)


def test_without_its_server_a_client_gets_another(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = with_keys(made.topology.config_text, "service", persistence_s=60, timeouts=SOON)
    tunlb = made.start_tunlb(text)
    first = asked(made, "v4")
    gone = without(text, kind="dest", service="echo-v4", daddr=f"10.0.0.1{first[1]}")
    assert tunlb.reload(gone)["event"] == "reloaded"
    (second,) = hosts(made, "v4")
    assert second != first
    assert tunlb.reload(text)["event"] == "reloaded"
    assert set(hosts(made, "v4")) == {second}
    assert tunlb.stop() == 0
