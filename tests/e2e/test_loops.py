"""Routing loops: refused before they happen, and harmless when they happen all the same."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    Line,
    counters,
    eventually,
    serves,
    service,
    with_keys,
    with_lines,
)
from tunlb.lab import Host, Lab, TunlbProcess, clients
from tunlb.lab.host import ip
from tunlb.lab.process import environment

# A looping packet costs at most this many frames; without a guard it would be tens of thousands
# in the second or so that a test takes.
BOUND = 300
SERVER = {"v4": "10.0.2.11/32", "v6": "fd02::11/128"}


def refusal(host: Host, config: Path) -> str:
    """What tunlb says when it refuses to start."""
    env = [f"{k}={v}" for k, v in environment().items() if k == "PYTHONPATH"]
    done = host.run(
        ["env", *env, sys.executable, "-m", "tunlb", "run", "-c", str(config)],
        check=False,
        timeout=20,
    )
    assert done.returncode == 78, done.stderr
    return done.stderr.partition("tunlb: refused")[2]


def try_a_conn(lab: Lab, address: str, port: int) -> None:
    """A client that is going to be disappointed."""
    with contextlib.suppress(OSError):
        clients.tcp_echo(lab.client, address, port, timeout=1)


def route(lab: Lab, *words: str) -> None:
    family = "-6" if any(":" in word for word in words) else "-4"
    ip(family, "-n", lab.director.ns, "route", "add", *words)


def prepared(lab: Lab) -> None:
    """An administrator made the TUN in advance: its routes are there before tunlb is."""
    ip("-n", lab.director.ns, batch=["tuntap add dev lb0 mode tun", "link set lb0 up"])


def with_force(lab: Lab) -> TunlbProcess:
    return lab.start_tunlb(with_keys(lab.topology.config_text, "tunlb", force=True))


# ---- refused at the start, with the line that fixes it


def test_a_default_route_into_the_tun(lab: LabFactory) -> None:
    made = lab("tun")
    prepared(made)
    ip(
        "-n",
        made.director.ns,
        batch=["route add default via 10.0.1.2 metric 10", "route add default dev lb0"],
    )
    said = refusal(made.director, made.dir / "tunlb.jsonl")
    assert "the default route leads into lb0" in said
    assert "--force" in said
    fix = said.split("fix: ", 1)[1].splitlines()[0]
    made.director.run(["sh", "-ec", fix])
    tunlb = made.start_tunlb()
    assert clients.fetch(made.client, clients.url("10.0.3.100", 80)).status == 200
    assert tunlb.stop() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dest_behind_the_tun(lab: LabFactory, family: Family) -> None:
    made = lab("tun")
    prepared(made)
    route(made, SERVER[family], "dev", "lb0")
    said = refusal(made.director, made.dir / "tunlb.jsonl")
    address = SERVER[family].partition("/")[0]
    assert f"route to the dest {address} leads back into lb0" in said
    for fix in {line.split("fix: ", 1)[1] for line in said.splitlines() if "fix: " in line}:
        made.director.run(["sh", "-ec", fix])
    tunlb = made.start_tunlb()
    assert serves(made)
    assert tunlb.stop() == 0


def test_a_loop_that_appears_is_told_and_refuses_a_reload(lab: LabFactory) -> None:
    made = lab("tun")
    text = made.topology.config_text
    tunlb = made.start_tunlb()
    route(made, SERVER["v4"], "dev", "lb0")
    event = tunlb.wait_event(("routing_problem",))
    assert "10.0.2.11 leads back into lb0; fix: ip route add" in str(event["message"])
    more = service("more", "10.0.3.101", 80, ["10.0.2.12"], laddrs=["10.0.3.200"])
    refused = tunlb.reload(with_lines(text, *more))
    assert refused["event"] == "reload_refused"
    assert "10.0.2.11 leads back into lb0" in str(refused["problems"])
    routes = made.director.run(["ip", "route", "show", "table", "all"]).stdout
    assert "10.0.3.101" not in routes
    ip("-n", made.director.ns, "route", "del", SERVER["v4"], "dev", "lb0")
    tunlb.wait_event(("routing_problem_gone",))
    assert tunlb.reload(with_lines(text, *more))["event"] == "reloaded"
    assert tunlb.stop() == 0


# ---- each guard, at run time


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_routes_our_packets_back(lab: LabFactory, family: Family) -> None:
    """Layer (c): what we wrote comes back with its TTL lowered."""
    made = lab("tun")
    prepared(made)
    route(made, SERVER[family], "dev", "lb0")
    tunlb = with_force(made)
    for _ in range(3):  # one of them is for the dest that loops
        try_a_conn(made, made.topology.vips.of(family), 7)
    found = counters(tunlb)
    assert found["drop.LOOP"] == found["LOOP_REROUTED"] > 0
    assert found["RX_FRAMES"] < BOUND


def to_nowhere(via: str) -> list[Line]:
    """A service on the VIP's port 9, whose only dest is behind a router."""
    return [
        {"kind": "route", "dst": "203.0.113.0/24", "via": via, "port": "lb0"},
        *service("lost", "10.0.0.100", 9, ["203.0.113.9"], laddrs=["10.0.0.200"]),
    ]


def make_router(lab: Lab) -> None:
    """The third server sends what is not for it back to tunlb."""
    host = lab.host("s3")
    host.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    ip("-n", host.ns, "route", "add", "203.0.113.0/24", "via", "10.0.0.254")


def test_a_router_sends_our_packets_back(lab: LabFactory) -> None:
    """Layer (c) on a TAP: a loop that no question to our own kernel can foresee."""
    made = lab("one-arm")
    make_router(made)
    tunlb = made.start_tunlb(with_lines(made.topology.config_text, *to_nowhere("10.0.0.13")))
    try_a_conn(made, "10.0.0.100", 9)
    assert serves(made)
    found = counters(tunlb)
    assert found["drop.LOOP"] == found["LOOP_RETURNED"] > 0
    assert found["RX_FRAMES"] < BOUND


def test_two_routers_that_send_a_packet_round(lab: LabFactory) -> None:
    """Layer (b): after two more hops no fingerprint matches, and the TTL ends it."""
    made = lab("two-arm")
    for server in ("s3", "s2"):
        made.host(server).run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    ip("-n", made.host("s3").ns, "route", "add", "203.0.113.0/24", "via", "10.0.2.12")
    line = {"kind": "route", "dst": "203.0.113.0/24", "via": "10.0.2.13", "port": "lb-in"}
    tunlb = made.start_tunlb(with_lines(made.topology.config_text, line))
    with pytest.raises(TimeoutError):
        clients.udp_echo(made.client, "203.0.113.9", 9, timeout=0.3)
    assert serves(made)
    found = counters(tunlb)
    assert found["drop.TTL_EXCEEDED"] == found["ICMP_ERRORS_SENT"] == 1
    assert 15 < found["FORWARDED"] < 25
    assert found["RX_FRAMES"] < BOUND


def test_a_bridge_that_returns_our_frames(lab: LabFactory) -> None:
    """Layer (a): our own source MAC. The self-check names it too."""
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    made.director.run(["bridge", "link", "set", "dev", "lb0", "hairpin", "on"])
    event = tunlb.wait_event(("routing_problem",))
    assert "fix: bridge link set dev lb0 hairpin off" in str(event["message"])
    # Groups and what the bridge does not know are flooded, and come back.
    eventually(lambda: serves(made))
    ip("-n", made.director.ns, "link", "set", "br0", "type", "bridge", "ageing_time", "0")
    assert serves(made)
    made.director.run(["bridge", "link", "set", "dev", "lb0", "hairpin", "off"])
    tunlb.wait_event(("routing_problem_gone",))
    found = counters(tunlb)
    assert found["drop.OWN_MAC"] > 0
    assert found["RX_FRAMES"] < BOUND
