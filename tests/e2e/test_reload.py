"""SIGHUP and SIGTERM while real connections are open."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    counters,
    eventually,
    lines_of,
    serves,
    service,
    stopped,
    with_keys,
    with_lines,
    without,
)
from tunlb.lab import Lab, clients
from tunlb.lab.clients import EchoConnection

Edit = Callable[[str, Family], str]
S1 = {"v4": "10.0.0.11", "v6": "fd00::11"}
SERVERS = {"v4": ["10.0.0.11", "10.0.0.12"], "v6": ["fd00::11", "fd00::12"]}
LADDRS = {"v4": "10.0.0.200-10.0.0.209", "v6": "fd00::200-fd00::209"}


@contextmanager
def held(lab: Lab, family: Family, count: int = 50) -> Iterator[list[EchoConnection]]:
    """Connections that are open, and still echo at the end of the block."""
    with ExitStack() as stack:
        vip = lab.topology.vips.of(family)
        conns = [stack.enter_context(clients.connection(lab.client, vip, 7)) for _ in range(count)]
        yield conns
        echo_all(conns)


def echo_all(conns: list[EchoConnection]) -> None:
    for number, conn in enumerate(conns):
        assert conn.echo(b"%d" % number) == b"%d" % number


def hosts(lab: Lab, family: Family, fetches: int = 6) -> Counter[str]:
    vip = lab.topology.vips.of(family)
    return Counter(clients.tcp_echo(lab.client, vip, 7).host for _ in range(fetches))


def remove_dest(text: str, family: Family) -> str:
    return without(text, kind="dest", service=f"echo-{family}", daddr=S1[family])


def quiesce_dest(text: str, family: Family) -> str:
    text = remove_dest(text, family)
    return with_lines(
        text,
        {
            "kind": "dest",
            "service": f"echo-{family}",
            "daddr": S1[family],
            "dport": 7777,
            "weight": 0,
        },
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edit", [remove_dest, quiesce_dest], ids=["removed", "weight 0"])
def test_a_dest_that_leaves_keeps_its_conns(lab: LabFactory, edit: Edit, family: Family) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    tunlb = made.start_tunlb()
    with held(made, family) as conns:
        assert {conn.host for conn in conns} == {"s1", "s2", "s3"}
        assert tunlb.reload(edit(text, family))["event"] == "reloaded"
        echo_all(conns)
        assert hosts(made, family) == {"s2": 3, "s3": 3}
        assert tunlb.reload(text)["event"] == "reloaded"
        assert hosts(made, family) == {"s1": 2, "s2": 2, "s3": 2}
    assert tunlb.stop() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_services_come_and_go(lab: LabFactory, family: Family) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    vip = made.topology.vips.of(family)
    fresh = service(
        "fresh", vip, 8, SERVERS[family], dport=7777, scheduler="rr", laddrs=[LADDRS[family]]
    )
    tunlb = made.start_tunlb()
    with held(made, family) as conns:
        with pytest.raises(OSError, match="refused"):
            clients.tcp_echo(made.client, vip, 8)
        tunlb.reload(with_lines(text, *fresh))
        assert clients.tcp_echo(made.client, vip, 8).host in ("s1", "s2")
        name = f"echo-{family}"
        gone = without(without(text, kind="dest", service=name), kind="service", name=name)
        tunlb.reload(gone)
        with pytest.raises(OSError, match="refused"):
            clients.tcp_echo(made.client, vip, 7)
        with pytest.raises(OSError, match="refused"):
            clients.tcp_echo(made.client, vip, 8)
        echo_all(conns)
    assert tunlb.stop() == 0


def test_conns_of_a_removed_dest_end_when_it_has_drained(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = with_keys(made.topology.config_text, "service", drain_s=0.2)
    tunlb = made.start_tunlb(text)
    vip = made.topology.vips.v4
    with ExitStack() as stack:
        conns = [stack.enter_context(clients.connection(made.client, vip, 7)) for _ in range(3)]
        tunlb.reload(remove_dest(text, "v4"))
        stays = [conn for conn in conns if conn.host != "s1"]
        [drained] = [conn for conn in conns if conn.host == "s1"]

        def has_ended() -> bool:
            drained._sock.settimeout(0.1)
            try:
                return drained.echo(b"x") != b"x"
            except OSError:
                return True

        eventually(has_ended)
        echo_all(stays)
    found = counters(tunlb)
    assert found.get("drop.DEST_GONE", 0) + found.get("CONN_EXPIRED", 0) >= 1


def test_an_invalid_file_changes_nothing(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    tunlb = made.start_tunlb()
    bad = with_lines(
        remove_dest(text, "v4"),
        {"kind": "servcie", "name": "x"},
        {"kind": "dest", "service": "nobody", "daddr": "10.0.0.11", "weight": -1},
        {"kind": "dest", "service": "echo-v4", "daddr": "10.0.0.311"},
    )
    with held(made, "v4") as conns:
        event = tunlb.reload(bad)
        assert event["event"] == "reload_refused"
        problems = event["problems"]
        assert isinstance(problems, list)
        assert len(problems) >= 3
        for part in ("servcie", "weight", "10.0.0.311"):
            assert [line for line in problems if part in line], part
        assert all(str(tunlb.config) in line for line in problems)
        assert hosts(made, "v4") == {"s1": 2, "s2": 2, "s3": 2}
        tunlb.config.unlink()
        tunlb.process.send_signal(signal.SIGHUP)
        refused = eventually(
            lambda: [e for e in tunlb.events if e["event"] == "reload_refused"][1:]
        )
        assert "No such file" in str(refused[0]["problems"])
        echo_all(conns)
        assert tunlb.reload(text)["event"] == "reloaded"
    assert tunlb.stop() == 0


def test_a_burst_of_signals_ends_with_the_latest(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    last = remove_dest(text, "v4")
    tunlb = made.start_tunlb()
    with held(made, "v4"):
        for number in range(20):
            fresh = tunlb.config.with_suffix(".new")
            fresh.write_text(last if number % 2 else text, encoding="utf-8")
            fresh.replace(tunlb.config)
            tunlb.process.send_signal(signal.SIGHUP)
        eventually(lambda: hosts(made, "v4", 3)["s1"] == 0)
        done = [event for event in tunlb.events if event["event"] == "reloaded"]
        assert 1 <= len(done) <= 20
        assert not [event for event in tunlb.events if event["event"] == "reload_refused"]
    assert tunlb.stop() == 0


def test_what_needs_a_restart_is_named_and_left(lab: LabFactory) -> None:
    made = lab("one-arm")
    text = made.topology.config_text
    changed = with_keys(with_keys(text, "tunlb", conn_max=1000), "port", "lb0", mtu=1400)
    changed = with_lines(changed, {"kind": "port", "name": "lb1"})
    tunlb = made.start_tunlb()
    event = tunlb.reload(remove_dest(changed, "v4"))
    needs = event["needs_restart"]
    assert isinstance(needs, list)
    assert sorted(needs) == ["port[lb0].mtu", "port[lb1]", "tunlb.conn_max"]
    assert hosts(made, "v4") == {"s2": 3, "s3": 3}
    links = made.director.run(["ip", "-o", "link"]).stdout
    assert "lb1" not in links
    assert "mtu 1500" in made.director.run(["ip", "link", "show", "lb0"]).stdout
    assert stopped(tunlb)["conn_max"] == 1048576


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once(lab: LabFactory, how: signal.Signals) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    with clients.connection(made.client, made.topology.vips.v4, 7):
        tunlb.process.send_signal(how)
        assert tunlb.process.wait(3) == 0
    assert tunlb.events[-1]["event"] == "stopped"
    assert "lb0" not in made.director.run(["ip", "-o", "link"]).stdout
    made.tunlbs.clear()
    again = made.start_tunlb()
    assert serves(made)
    assert again.stop() == 0


def test_grace(lab: LabFactory) -> None:
    """Old conns go on, new ones are refused; a second signal ends it."""
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", stop_grace_s=60))
    with held(made, "v4") as conns:
        tunlb.process.terminate()
        assert tunlb.wait_event(("stopping",))["conns"] == 50
        with pytest.raises(OSError, match="refused"):
            clients.tcp_echo(made.client, made.topology.vips.v4, 7)
        echo_all(conns)
    tunlb.process.terminate()
    assert tunlb.process.wait(3) == 0


def test_grace_ends_by_itself(lab: LabFactory) -> None:
    made = lab("one-arm")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", stop_grace_s=0.3))
    tunlb.process.terminate()
    assert tunlb.process.wait(5) == 0
    assert "stopping" in [event["event"] for event in tunlb.events]


def test_a_tun_takes_its_routes_back(lab: LabFactory) -> None:
    """And a reload changes them: a VIP that comes is routed, one that goes is not."""
    made = lab("tun")
    before = made.director.run(["ip", "rule"]).stdout
    tunlb = made.start_tunlb()
    more = service(
        "fresh",
        "10.0.3.101",
        80,
        ["10.0.2.11"],
        dport=8080,
        laddrs=[made.topology.laddrs.v4 if made.topology.laddrs else ""],
    )
    target = clients.url("10.0.3.101", 80)
    assert tunlb.reload(with_lines(made.topology.config_text, *more))["event"] == "reloaded"
    assert clients.fetch(made.client, target).body == "s1\n"
    assert tunlb.reload(made.topology.config_text)["event"] == "reloaded"
    table = made.director.run(["ip", "route", "show", "table", "all", "proto", "116"]).stdout
    assert "10.0.3.100" in table
    assert "10.0.3.101" not in table
    assert tunlb.stop() == 0
    assert made.director.run(["ip", "rule"]).stdout == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vip_and_laddr_on_a_tun_drain(lab: LabFactory, family: Family) -> None:
    """The kernel's routes to what a reload takes away stay as long as its conns may."""
    made = lab("tun")
    text = with_keys(made.topology.config_text, "service", drain_s=4)
    vip = made.topology.vips.of(family)
    keys = [key for line in lines_of(text) if (key := line.get("name", line.get("service")))]
    gone = text
    for name in {str(key) for key in keys if str(key).endswith(family)}:
        gone = without(without(gone, kind="dest", service=name), kind="service", name=name)
    tunlb = made.start_tunlb(text)

    def routed() -> bool:
        shown = made.director.run(["ip", "route", "get", vip], check=False).stdout
        return "dev lb0" in shown

    with clients.connection(made.client, vip, 7) as conn:
        assert conn.echo(b"before") == b"before"
        assert tunlb.reload(gone)["event"] == "reloaded"
        assert conn.echo(b"while it drains") == b"while it drains"
        assert routed()
        eventually(lambda: not routed(), 15)
    assert tunlb.stop() == 0
