"""Connections outlive their director: by a file, or because another one computes the same dest."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.kit import (
    LabFactory,
    counters,
    eventually,
    lines_of,
    serves,
    stopped,
    text_of,
    with_keys,
)
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.lab.host import ip
from tunlb.lab.net import processes_in
from tunlb.lab.topology import FAMILIES, Family

CONNS = 8  #: of each family
Talk = list[clients.EchoConnection]


@contextmanager
def talking(lab: Lab) -> Iterator[Talk]:
    """Connections that have said something."""
    with ExitStack() as stack:
        conns = [
            stack.enter_context(clients.connection(lab.client, vip, 7, timeout=10))
            for vip in lab.topology.vips
            for _ in range(CONNS)
        ]
        said(conns, b"hello")
        yield conns


def said(conns: Talk, word: bytes) -> None:
    for conn in conns:
        assert conn.echo(word) == word


def with_snapshot(lab: Lab, workers: int, seconds: float = 0) -> str:
    path = str(lab.dir / "conns")
    text = lab.topology.config_text
    return with_keys(text, "tunlb", snapshot=path, snapshot_s=seconds, workers=workers)


def killed(lab: Lab, tunlb: TunlbProcess) -> None:
    """The machine dies: nobody of tunlb is left, and nothing was said."""
    inside = set(processes_in([lab.director.ns]))
    for pid in inside:
        os.kill(pid, signal.SIGKILL)
    tunlb.process.wait()
    eventually(lambda: not inside & set(processes_in([lab.director.ns])))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("topology", ["one-arm", "two-arm", "dr", "tun"])
def test_a_director_is_stopped_and_started(lab: LabFactory, topology: str, workers: int) -> None:
    made = lab(topology)
    config = with_snapshot(made, workers)
    first = made.start_tunlb(config)
    with talking(made) as conns:
        assert first.stop() == 0
        written = first.wait_event(("snapshot_written",))
        second = made.start_tunlb(config)
        restored = second.wait_event(("snapshot_restored",))
        assert (restored["conns"], restored["left_out"]) == (written["conns"], 0)
        said(conns, b"still here")
        event = stopped(second)
    moved = event["counters"]
    assert isinstance(moved, dict)
    assert moved["CONN_ADOPTED"] >= 2 * CONNS
    assert "CONN_NEW" not in moved


def test_other_laddrs_than_before(lab: LabFactory) -> None:
    """What servers would answer to nobody is left out, and said."""
    made = lab("one-arm")
    config = with_snapshot(made, 1)
    first = made.start_tunlb(config)
    with talking(made):
        assert first.stop() == 0
        written = first.wait_event(("snapshot_written",))
        for kept, other in (
            ("10.0.0.200-10.0.0.209", "10.0.0.210-10.0.0.219"),
            ("fd00::200-fd00::209", "fd00::210-fd00::219"),
        ):
            assert kept in config
            config = config.replace(kept, other)
        second = made.start_tunlb(config)
        restored = second.wait_event(("snapshot_restored",))
        assert (restored["conns"], restored["left_out"]) == (0, written["conns"])
    with talking(made) as conns:
        said(conns, b"by another laddr")
    assert "CONN_ADOPTED" not in counters(second)


def test_a_machine_dies(lab: LabFactory) -> None:
    """What was written at an interval is what is left."""
    made = lab("one-arm")
    config = with_snapshot(made, 1, 0.2)
    first = made.start_tunlb(config)
    with talking(made) as conns:
        seen = len(first.log_lines)
        written = first.wait_event(("snapshot_written",), after=seen)
        if written["conns"] != 2 * CONNS:  # it was being written while the last of them came
            first.wait_event(("snapshot_written",), after=len(first.log_lines))
        killed(made, first)
        second = made.start_tunlb(config)
        said(conns, b"still here")
    assert counters(second)["CONN_ADOPTED"] >= 2 * CONNS


def test_a_snapshot_of_something_else(lab: LabFactory) -> None:
    """It is said, and everything else works."""
    made = lab("one-arm")
    (made.dir / "conns").write_bytes(b"\x7fELF")
    tunlb = made.start_tunlb(with_snapshot(made, 1))
    refused = tunlb.wait_event(("snapshot_refused",))
    assert "was not written by tunlb" in str(refused["error"])
    assert serves(made)
    assert tunlb.stop() == 0
    assert tunlb.wait_event(("snapshot_written",))["conns"] != 0


@pytest.mark.parametrize("how", ["cut", "damaged", "written by anybody"])
def test_a_snapshot_that_is_not_what_was_written(lab: LabFactory, how: str) -> None:
    """None of it is used: the connections of before are reset or lost, and new ones work."""
    made = lab("one-arm")
    config = with_snapshot(made, 1)
    first = made.start_tunlb(config)
    with talking(made):
        assert first.stop() == 0
    path = made.dir / "conns"
    assert path.stat().st_mode & 0o777 == 0o600
    whole = path.read_bytes()
    if how == "cut":
        path.write_bytes(whole[:-300])
    elif how == "damaged":
        path.write_bytes(whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:])
    else:
        path.chmod(0o666)
    second = made.start_tunlb(config)
    refused = second.wait_event(("snapshot_refused",))
    said_so = {"cut": "cut short", "damaged": "damaged", "written by anybody": "chmod 600"}
    assert said_so[how] in str(refused["error"])
    assert serves(made)
    event = stopped(second)["counters"]
    assert isinstance(event, dict)
    assert "CONN_ADOPTED" not in event


def test_a_snapshot_that_cannot_be_written(lab: LabFactory) -> None:
    made = lab("one-arm")
    nowhere = str(made.dir / "no" / "such" / "folder")
    tunlb = made.start_tunlb(with_keys(made.topology.config_text, "tunlb", snapshot=nowhere))
    assert tunlb.wait_event(("snapshot_missing",))
    assert serves(made)
    assert tunlb.stop() == 0
    assert "No such file" in str(tunlb.wait_event(("snapshot_failed",))["error"])


# -- two directors


def stateless(lab: Lab, suffix: str) -> str:
    """The lab's configuration for one of two directors: ports of its own, the same services."""
    lines = lines_of(with_keys(lab.topology.config_text, "tunlb", seed="2f6c0a7d11"))
    kept = []
    for line in lines:
        if line["kind"] == "service":
            if line["fwdmode"] == "fnat":
                continue
            line["scheduler"] = "mh"
            line["fallback"] = line["proto"] == "tcp"
        if line["kind"] == "dest" and str(line["service"]).startswith("web-fnat"):
            continue
        if line["kind"] == "port" and suffix:
            line["name"] = f"{line['name']}{suffix}"
            line["addresses"] = [
                str(address).replace(".254/", ".253/").replace("::fe/", "::fd/")
                for address in line["addresses"]  # type: ignore[attr-defined]
            ]
        kept.append(line)
    return text_of(kept)


def start_second(lab: Lab) -> TunlbProcess:
    control = {"TUNLB_CONTROL": str(lab.dir / "second.sock")}
    return lab.start_tunlb(stateless(lab, "b"), env=control)


def send_to(lab: Lab, tunlb: TunlbProcess) -> None:
    """What a router does when it moves the VIPs' flows, and the dests' way back, to a director."""
    ready = tunlb.wait_event(("ready",))
    macs = [port["mac"] for port in ready["ports"]]  # type: ignore[attr-defined]
    for vip in lab.topology.vips:
        _neigh(lab.client.ns, vip, macs[0])
    if len(macs) == 2:
        for server in lab.topology.server_names:
            for gateway in ("10.0.2.254", "fd02::fe"):
                _neigh(lab.host(server).ns, gateway, macs[1])


def _neigh(ns: str, address: str, mac: str) -> None:
    ip("-n", ns, "neigh", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent")


@pytest.mark.parametrize("topology", ["dr", "two-arm"])
def test_another_director_carries_on(lab: LabFactory, topology: str) -> None:
    """ECMP moves all flows from one director to a second one, and back."""
    made = lab(topology)
    first = made.start_tunlb(stateless(made, ""))
    second = start_second(made)
    send_to(made, first)
    with talking(made) as conns:
        send_to(made, second)
        said(conns, b"through the other one")
        first.stop()
        said(conns, b"and the first is gone")
        third = made.start_tunlb(stateless(made, ""))
        send_to(made, third)
        said(conns, b"back again")
        for director in (second, third):
            assert counters(director)["CONN_RESUMED"] == 2 * CONNS


def test_a_dest_speaks_first_after_the_change(lab: LabFactory) -> None:
    """The answer is on its way while the flow moves: no RST reaches anybody."""
    made = lab("two-arm")
    first = made.start_tunlb(stateless(made, ""))
    second = start_second(made)
    send_to(made, first)
    with talking(made) as conns:
        for conn in conns:
            conn.send(b"xxxx")
        send_to(made, second)
        for conn in conns:
            assert conn.receive(4) == b"xxxx"
        said(conns, b"on")


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_fallback_they_are_lost(lab: LabFactory, family: Family) -> None:
    """What the test above would show if it could not fail."""
    made = lab("dr")
    without = stateless(made, "b").replace('"fallback": true', '"fallback": false')
    first = made.start_tunlb(stateless(made, ""))
    second = made.start_tunlb(without, env={"TUNLB_CONTROL": str(made.dir / "second.sock")})
    send_to(made, first)
    vip = made.topology.vips.of(family)
    with clients.connection(made.client, vip, 7, timeout=1) as conn:
        assert conn.echo(b"hello") == b"hello"
        send_to(made, second)
        with pytest.raises(TimeoutError):
            conn.echo(b"lost")
