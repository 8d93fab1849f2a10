"""What is asked of `ip`, and names. That it works is shown end to end."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tunlb.lab import TOPOLOGIES, Lab, LabError
from tunlb.lab.host import ip
from tunlb.lab.net import check_suffix, host_commands, link_commands, processes_in
from tunlb.lab.topology import Bridge, HostSpec, Link, Pair, Topology

SMALL = Topology(
    name="small",
    summary="",
    hosts=(
        HostSpec(
            name="director", role="director", bridges=(Bridge(name="br0", members=("to-c",)),)
        ),
        HostSpec(name="client", role="client"),
    ),
    links=(Link("client", "eth0", "to-c"),),
    vips=Pair(v4="10.0.0.100", v6="fd00::100"),
    servers=(),
    ports=(),
    services=(),
)


def test_both_ends_of_a_link_are_made_inside_namespaces() -> None:
    assert link_commands(SMALL, "x") == [
        "link add to-c type veth peer name eth0 netns tunlb-x-client",
        "link add br0 type bridge",
        "link set to-c master br0",
        "link set br0 up",
        "link set to-c up",
    ]


def test_a_host_gets_its_devices_up_before_addresses_and_routes() -> None:
    spec = HostSpec(
        name="s1",
        role="server",
        addresses=(("eth0", "10.0.0.11/24"), ("lo", "fd00::100/128")),
        routes=("default via 10.0.0.1",),
    )
    assert host_commands(spec, ["eth0"]) == [
        "link set lo up",
        "link set eth0 up",
        "addr add 10.0.0.11/24 dev eth0",
        "addr add fd00::100/128 dev lo nodad",
        "route add default via 10.0.0.1",
    ]


@pytest.mark.parametrize("suffix", ["", "-x", "a/b", "..", "A", "x" * 41, "a b"])
def test_names_that_are_refused(suffix: str) -> None:
    with pytest.raises(LabError, match=re.escape(repr(suffix))):
        check_suffix(suffix)


def test_the_default_name_is_this_process_s_own() -> None:
    lab = Lab(TOPOLOGIES["dr"])
    assert lab.suffix == f"dr-{os.getpid()}"
    assert lab.director.ns == f"tunlb-dr-{os.getpid()}-director"


@pytest.mark.parametrize("name", [*TOPOLOGIES])
def test_no_lab_s_namespace_belongs_to_a_lab_of_another_name(name: str) -> None:
    """`down dr` must not meet `dr-1234`: no host's name contains what separates the parts."""
    assert all("-" not in host.name for host in TOPOLOGIES[name].hosts)


def fake_ip(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "ip").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_failing_batch_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = "echo 'Error: Nexthop has invalid gateway.' >&2; echo 'Command failed -:2' >&2"
    fake_ip(tmp_path, monkeypatch, f"{complaint}; exit 1")
    with pytest.raises(LabError) as caught:
        ip("-n", "tunlb-x-client", batch=["link set lo up", "route add default via 9.9.9.9"])
    assert str(caught.value) == (
        "`ip -n tunlb-x-client -batch -` failed: Error: Nexthop has invalid gateway."
        " / Command failed -:2 (line 2: 'route add default via 9.9.9.9')"
    )


def test_ip_itself_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="install the package iproute2"):
        ip("link")


def test_processes_of_our_own_namespace_are_never_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads to the machine's own namespace must not end every process of it."""
    (tmp_path / "tunlb-dr-client").symlink_to("/proc/self/ns/net")
    monkeypatch.setattr("tunlb.lab.net.NETNS_DIR", tmp_path)
    assert processes_in(["tunlb-dr-client", "tunlb-dr-absent"]) == []
