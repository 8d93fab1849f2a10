"""Real servers behind tunnels: bulk, datagrams, both families, and paths that become narrow."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    LabFactory,
    client_address,
    counters,
    drops,
    lines_of,
    text_of,
    with_keys,
)
from tunlb.lab import Lab, clients
from tunlb.lab.host import Host, ip
from tunlb.lab.servers import pattern

DECAP = Path(__file__).with_name("decap.py")
TUN = "decap0"
GUE_PORT = 6080
WRAPPINGS: tuple[dict[str, object], ...] = (
    {"type": "ipip"},
    {"type": "gre", "csum": True},
    {"type": "gue", "csum": True},
)
OTHER: dict[Family, Family] = {"v4": "v6", "v6": "v4"}
# Router solicitations and reports of groups, as in test_modes.
PLANNED_DROPS = {"MARTIAN", "NOT_FORWARDED", "ICMP_IGNORED", "OTHERHOST", "TX_BLOCKED"}


@contextlib.contextmanager
def decapsulating(host: Host, device: str = "eth0") -> Iterator[dict[str, int]]:
    """A server that takes packets out of tunnels; what it saw, once it has ended."""
    seen: dict[str, int] = {}
    process = host.popen(
        [sys.executable, "-I", "-S", str(DECAP), device, TUN, str(GUE_PORT)],
        stdin=subprocess.PIPE,
        stderr=None,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().strip() == "ready"
    ip("-n", host.ns, "link", "set", TUN, "mtu", "1500", "up")
    try:
        yield seen
    finally:
        process.stdin.close()
        seen.update(json.loads(process.stdout.readline() or "{}"))
        process.wait(5)


def on_lo(lab: Lab) -> None:
    """Servers that hold the VIPs, where the topology's do not."""
    for name in lab.topology.server_names:
        for vip, length in zip(lab.topology.vips, (32, 128), strict=True):
            ip("-n", lab.host(name).ns, "addr", "add", f"{vip}/{length}", "dev", "lo")


def by_tunnel(
    lab: Lab,
    outer: Mapping[Family, Family],
    wrappings: Sequence[dict[str, object]] = WRAPPINGS,
) -> str:
    """The lab's configuration with a tunnel to each dest, of another wrapping each."""
    lines = lines_of(lab.topology.config_text)
    servers = [pair for _, pair in lab.topology.servers]
    for line in lines:
        if line["kind"] == "service":
            line["fwdmode"] = "tunnel"
        elif line["kind"] == "dest":
            number = next(n for n, pair in enumerate(servers) if line["daddr"] in tuple(pair))
            family: Family = "v6" if ":" in str(line["daddr"]) else "v4"
            line["daddr"] = servers[number].of(outer[family])
            line["tunnel"] = wrappings[number]
    return text_of(lines)


@pytest.mark.parametrize("mixed", [False, True], ids=["one family", "mixed families"])
def test_servers_behind_tunnels(lab: LabFactory, mixed: bool) -> None:
    """One server behind each wrapping; the client sees no difference."""
    made = lab("dr")
    outer: dict[Family, Family] = OTHER if mixed else {"v4": "v4", "v6": "v6"}
    hosts = [made.host(name) for name in made.topology.server_names]
    with contextlib.ExitStack() as stack:
        seen = [stack.enter_context(decapsulating(host)) for host in hosts]
        tunlb = made.start_tunlb(by_tunnel(made, outer))
        for family in FAMILIES:
            vip = made.topology.vips.of(family)
            for size in (1, 1300, 60_000, 60_000, 60_000):
                answer = clients.tcp_echo(made.client, vip, 7, pattern(size))
                assert answer.data == pattern(size)
                assert answer.peer == client_address(made, family)
            bodies = {
                clients.fetch(made.client, clients.url(vip, 80)).body.strip() for _ in range(6)
            }
            assert bodies == set(made.topology.server_names)
            for size in (0, 1, 1300):
                datagram = clients.udp_echo(made.client, vip, 7, pattern(size))
                assert datagram.data == pattern(size)
        gbps = clients.iperf3(made.client, made.topology.vips.v4, seconds=1).gbps
        assert gbps > (0.1 if COMPILED else 0.02)
        found = counters(tunlb)
    assert found["SEGMENTS_CUT"] > 100
    assert drops(found) <= PLANNED_DROPS | {"MTU_EXCEEDED"}, found
    assert found.get("drop.MTU_EXCEEDED", 0) < 50
    for number, kind in enumerate(("ipip", "gre", "gue")):
        assert seen[number][f"{kind}4"] > 10
        assert seen[number][f"{kind}6"] > 10
        assert seen[number].get("wrong", 0) == 0
    assert seen[1]["gre-csum"] == seen[1]["gre4"] + seen[1]["gre6"]
    assert seen[2]["gue-csum"] == seen[2]["gue4"] + seen[2]["gue6"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tunnel_by_a_tun(lab: LabFactory, family: Family) -> None:
    """The director's kernel routes the outer packets on."""
    made = lab("tun")
    on_lo(made)
    with contextlib.ExitStack() as stack:
        for name in made.topology.server_names:
            stack.enter_context(decapsulating(made.host(name)))
        lines = [
            line
            for line in lines_of(by_tunnel(made, {"v4": "v4", "v6": "v6"}))
            if line["kind"] in ("port", "route")
            or "echo" in f"{line.get('name', line.get('service'))}"
        ]
        for line in lines:
            line.pop("laddrs", None)
            line.pop("dport", None)
        tunlb = made.start_tunlb(text_of(lines))
        vip = made.topology.vips.of(family)
        for _ in range(3):
            answer = clients.tcp_echo(made.client, vip, 7, pattern(60_000))
            assert answer.data == pattern(60_000)
            assert answer.peer == client_address(made, family)
            assert clients.udp_echo(made.client, vip, 7, pattern(900)).data == pattern(900)
        found = counters(tunlb)
    assert found["SEGMENTS_CUT"] > 30
    assert drops(found) <= PLANNED_DROPS | {"MTU_EXCEEDED"}, found


def echoed(lab: Lab, vip: str, data: bytes) -> bool:
    """Whether the datagram comes back; the first ones teach the sender the path's MTU."""
    for _ in range(4):
        with contextlib.suppress(TimeoutError, OSError):
            if clients.udp_echo(lab.client, vip, 7, data, timeout=1.0).data == data:
                return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mixed", [False, True], ids=["one family", "mixed families"])
def test_datagrams_larger_than_the_mtu(lab: LabFactory, mixed: bool, workers: int) -> None:
    """The client's kernel cuts them, tunlb what does not fit, and the server's puts it together."""
    made = lab("dr")
    outer: dict[Family, Family] = OTHER if mixed else {"v4": "v4", "v6": "v6"}
    with contextlib.ExitStack() as stack:
        for name in made.topology.server_names:
            stack.enter_context(decapsulating(made.host(name)))
        tunlb = made.start_tunlb(with_keys(by_tunnel(made, outer), "tunlb", workers=workers))
        for family in FAMILIES:
            vip = made.topology.vips.of(family)
            for size in (1473, 4000, 9000, 60_000):
                for _ in range(3):
                    assert echoed(made, vip, pattern(size)), (family, size)
        found = counters(tunlb)
    assert found["FRAGMENT_FIRST"] >= 24
    assert found["FRAGMENTS_CUT"] > 100
    assert drops(found) <= PLANNED_DROPS | {"MTU_EXCEEDED", "FRAGMENT_ORPHAN"}, found
    assert found.get("drop.MTU_EXCEEDED", 0) < 100


def test_a_client_that_does_not_look_for_the_mtu(lab: LabFactory) -> None:
    """Its segments have no DF, and ICMP would tell it nothing."""
    made = lab("dr")
    made.client.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc"])
    with contextlib.ExitStack() as stack:
        for name in made.topology.server_names:
            stack.enter_context(decapsulating(made.host(name)))
        tunlb = made.start_tunlb(by_tunnel(made, {"v4": "v4", "v6": "v6"}))
        vip = made.topology.vips.v4
        for _ in range(6):
            assert clients.tcp_echo(made.client, vip, 7, pattern(60_000)).data == pattern(60_000)
        found = counters(tunlb)
    assert found["SEGMENTS_CUT"] > 100
    assert found["FRAGMENTS_CUT"] > 100
    assert drops(found) <= PLANNED_DROPS, found
