"""Topologies are data: what must hold among their parts, and between them and config/."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from tunlb.conf import loads
from tunlb.lab import TOPOLOGIES, Topology
from tunlb.lab.topology import ECHO_PORTS, HTTP_PORTS, IPERF_PORT, Pair

CONFIG = Path(__file__).resolve().parents[3] / "config"
MAX_INTERFACE_NAME = 15

every = pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=list(TOPOLOGIES))


def lines(text: str) -> list[object]:
    return [json.loads(line) for line in text.splitlines() if line and not line.startswith("#")]


def devices(topology: Topology, host: str) -> set[str]:
    found = {"lo"}
    for link in topology.links:
        found |= {link.dev} if link.host == host else set()
        found |= {link.director_dev} if host == "director" else set()
    for spec in topology.hosts:
        found |= {bridge.name for bridge in spec.bridges} if spec.name == host else set()
    return found


@every
def test_the_example_in_config_is_what_the_lab_runs(topology: Topology) -> None:
    example = (CONFIG / f"{topology.name}.jsonl").read_text(encoding="utf-8")
    assert lines(example) == lines(topology.config_text)
    assert f"tunlb lab up {topology.name}" in " ".join(example.replace("#", " ").split())


def test_every_example_in_config_has_a_topology() -> None:
    assert {path.stem for path in CONFIG.glob("*.jsonl")} >= set(TOPOLOGIES)


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_example_in_config_is_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert loads(text, name=path.name).tunlb.name == path.stem
    assert "tunlb lab up" in text


@every
def test_the_configuration_is_valid(topology: Topology) -> None:
    config = loads(topology.config_text, name=topology.name)
    assert len(config.services) == 2 * len(topology.services)
    assert all(len(service.dests) == len(topology.servers) for service in config.services)


@every
def test_one_client_one_director_three_servers(topology: Topology) -> None:
    roles = {host.name: host.role for host in topology.hosts}
    assert roles == {
        "client": "client",
        "director": "director",
        "s1": "server",
        "s2": "server",
        "s3": "server",
    }
    assert topology.server_names == ("s1", "s2", "s3")


@every
def test_devices_are_named_once_shortly_and_exist(topology: Topology) -> None:
    ends = [(link.host, link.dev) for link in topology.links]
    ends += [("director", link.director_dev) for link in topology.links]
    assert len(set(ends)) == len(ends)
    assert {link.host for link in topology.links} == {"client", "s1", "s2", "s3"}
    for host in topology.hosts:
        known = devices(topology, host.name)
        assert {dev for dev, _ in host.addresses} <= known
        assert {member for bridge in host.bridges for member in bridge.members} <= known
        assert all(len(dev) <= MAX_INTERFACE_NAME for dev in known)


@every
def test_servers_have_the_addresses_that_dests_name(topology: Topology) -> None:
    for name, pair in topology.servers:
        [host] = [host for host in topology.hosts if host.name == name]
        own = {a.partition("/")[0] for dev, a in host.addresses if dev == "eth0"}
        assert own == set(pair)


@every
def test_no_address_is_given_twice(topology: Topology) -> None:
    given = [
        str(ipaddress.ip_interface(address).ip)
        for host in topology.hosts
        for dev, address in host.addresses
        if dev != "lo"
    ]
    for port in topology.ports:
        addresses = port["addresses"]
        assert isinstance(addresses, list)
        given += [str(ipaddress.ip_interface(address).ip) for address in addresses]
    given += list(topology.vips)
    for service in loads(topology.config_text).services:
        if service.name.startswith("web-v"):
            given += [str(laddr) for laddr in service.laddrs_expanded]
    assert len(given) == len(set(given))


@every
def test_services_end_at_ports_where_servers_listen(topology: Topology) -> None:
    for service in topology.services:
        listening = (
            (*HTTP_PORTS, *ECHO_PORTS, IPERF_PORT)
            if service.proto == "tcp"
            else (
                *ECHO_PORTS,
                IPERF_PORT,
            )
        )
        assert service.dport in listening
        assert service.fwdmode != "dr" or service.dport == service.vport


@every
def test_all_connections_of_an_iperf3_run_meet(topology: Topology) -> None:
    control, data = topology.service("iperf"), topology.service("iperf-udp")
    assert control.scheduler == data.scheduler == "sh"
    assert control.weights == data.weights


def test_every_mode_and_family_is_shown_somewhere() -> None:
    modes = {service.fwdmode for t in TOPOLOGIES.values() for service in t.services}
    assert modes == {"fnat", "nat", "dr"}


def test_a_service_that_is_not_there() -> None:
    with pytest.raises(KeyError, match="has no service 'mail'"):
        TOPOLOGIES["dr"].service("mail")


def test_a_pair_is_v4_then_v6() -> None:
    pair = Pair(v4="10.0.0.1", v6="fd00::1")
    assert list(pair) == [pair.of("v4"), pair.of("v6")] == ["10.0.0.1", "fd00::1"]
