"""Ports with a host, and dests that are the host."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from tunlb.conf import ConfigError, diff, live, loads
from tunlb.conf.host import host_interfaces, host_members, local_vips, port_of

PORT: dict[str, Any] = {
    "kind": "port",
    "name": "lb0",
    "bridge": "br0",
    "host": "h0",
    "addresses": ["10.0.0.254/24"],
}
SERVICE: dict[str, Any] = {
    "kind": "service",
    "name": "web",
    "proto": "tcp",
    "vaddr": "10.0.0.100",
    "vport": 80,
    "fwdmode": "local",
}
DEST: dict[str, Any] = {"kind": "dest", "service": "web", "daddr": "10.0.0.100"}
OTHER: dict[str, Any] = {"kind": "port", "name": "lb1", "addresses": ["10.1.0.254/24"]}


def text(*lines: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, lines))


GOOD = {
    "the vaddr": [PORT, SERVICE, DEST],
    "the port's address": [PORT, SERVICE, DEST | {"daddr": "10.0.0.254"}],
    "an address of the host's": [
        PORT | {"host_addresses": ["10.9.0.1/32"]},
        SERVICE,
        DEST | {"daddr": "10.9.0.1"},
    ],
    "the vport written": [PORT, SERVICE, DEST | {"dport": 80}],
    "one dest of an fnat service": [
        PORT,
        SERVICE | {"fwdmode": "fnat", "laddrs": ["10.0.0.200"]},
        DEST | {"fwdmode": "local"},
        DEST | {"daddr": "10.0.0.11"},
    ],
    "a VIP that the host has": [
        PORT | {"host_addresses": ["10.0.0.100/32"]},
        SERVICE | {"fwdmode": "nat"},
        DEST | {"daddr": "10.0.0.11"},
    ],
}

BAD: dict[str, tuple[list[dict[str, Any]], tuple[int, str, str]]] = {
    "no host": (
        [PORT | {"host": None}, SERVICE, DEST],
        (3, "$.fwdmode", "the port that has 10.0.0.100 has no host"),
    ),
    "another's address": (
        [PORT, SERVICE, DEST | {"daddr": "10.0.0.11"}],
        (3, "$.daddr", "10.0.0.11 is not an address of the host of port"),
    ),
    "the address of a port without": (
        [PORT, OTHER, SERVICE, DEST | {"daddr": "10.1.0.254"}],
        (4, "$.daddr", "is not an address of the host of port"),
    ),
    "the name of a VLAN": (
        [PORT | {"host": "lb0.7", "vlans": [{"id": 7, "addresses": ["10.7.0.254/24"]}]}],
        (1, "$.host", '"lb0.7" is already the name of a device (line 1)'),
    ),
    "a mapped port": (
        [PORT, SERVICE, DEST | {"dport": 8080}],
        (3, "$.dport", "local cannot map ports"),
    ),
    "a VIP on a VLAN": (
        [
            PORT | {"vlans": [{"id": 7, "addresses": ["10.7.0.254/24"]}]},
            SERVICE | {"vaddr": "10.7.0.100"},
            DEST | {"daddr": "10.7.0.100"},
        ],
        (3, "$.fwdmode", "has no host"),
    ),
    "a tun": (
        [PORT | {"type": "tun", "bridge": None, "host": "h0"}],
        (1, "$.host", "is a tun"),
    ),
    "a port's name": ([PORT, OTHER | {"host": "lb0"}], (2, "$.host", '"lb0" is already')),
    "its own name": ([PORT | {"host": "lb0"}], (1, "$.host", '"lb0" is already')),
    "another's host": ([PORT, OTHER | {"host": "h0"}], (2, "$.host", '"h0" is already')),
    "a mirror without": (
        [OTHER | {"host_mirror": True}],
        (1, "$.host_mirror", "the port has no host"),
    ),
    "a host of a backup": (
        [PORT, {"kind": "port", "name": "lb9", "backup_of": "lb0", "host": "h9"}],
        (2, "$.host", "a backup has those of"),
    ),
    "a VIP that another kernel side has": (
        [OTHER | {"host_addresses": ["10.1.0.9/32"]}, SERVICE | {"vaddr": "10.1.0.9"}],
        (2, "$.vaddr", "is the host address of port"),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert loads(text(*GOOD[name])).ports[0].host == "h0"


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    lines, (line, path, message) = BAD[name]
    with pytest.raises(ConfigError) as caught:
        loads(text(*lines))
    (found,) = [p for p in caught.value.problems if (p.line, p.path) == (line, path)]
    assert message in str(found)
    assert found.hint


def test_what_the_host_has() -> None:
    config = loads(
        text(
            PORT | {"host_addresses": ["10.9.0.1/32", "fd00::1/64"]},
            OTHER | {"host": "h1"},
            SERVICE,
            DEST,
            SERVICE | {"name": "two", "vaddr": "10.1.0.100"},
            DEST | {"service": "two", "daddr": "10.1.0.100"},
        )
    )
    first, second = config.ports
    assert [f"{a}/{n}" for a, n in host_interfaces(config, first)] == [
        "10.0.0.254/24",
        "10.9.0.1/32",
        "fd00::1/64",
        "10.0.0.100/32",
    ]
    drained = frozenset({ip_address("10.1.0.7"), ip_address("10.0.0.7")})
    assert [f"{a}/{n}" for a, n in host_interfaces(config, second, drained)] == [
        "10.1.0.254/24",
        "10.1.0.7/32",
        "10.1.0.100/32",
    ]
    assert local_vips(config) == {ip_address("10.0.0.100"), ip_address("10.1.0.100")}
    assert port_of(config, ip_address("10.2.0.1")) is None


def test_a_vlan_has_no_host() -> None:
    vlan = {"id": 7, "addresses": ["10.0.0.129/25"]}
    config = loads(text(PORT | {"vlans": [vlan]}))
    assert port_of(config, ip_address("10.0.0.200")) is None
    assert port_of(config, ip_address("10.0.0.100")) is config.ports[0]


def test_the_members_of_a_bond() -> None:
    backup = {"kind": "port", "name": "lb9", "backup_of": "lb0", "bridge": "br9"}
    config = loads(text(PORT, backup, OTHER))
    assert host_members(config, config.ports[0]) == ["br0", "br9"]
    assert host_members(config, config.ports[2]) == ["lb1"]


def test_a_reload_takes_the_mirror_and_not_the_host() -> None:
    old = loads(text(PORT))
    new = loads(text(PORT | {"host": "h9", "host_mirror": True}))
    assert diff(old, new).restart_keys == ("port[lb0].host",)
    (port,) = live(old, new).ports
    assert (port.host, port.host_mirror) == ("h0", True)
