"""Prefixes and ports of a match."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from tunlb.ipvs.match import Match, Prefix, Prefixes
from tunlb.ipvs.matches import bound
from tunlb.wiring import pair


def prefixes(*texts: str) -> Prefixes:
    found = []
    for text in texts:
        net = ip_network(text)
        length = net.prefixlen + (96 if net.version == 4 else 0)
        found.append(Prefix(*pair(net.network_address), length))
    return Prefixes(found)


HELD = (
    ("10.1.0.0/16", "10.1.255.255", True),
    ("10.1.0.0/16", "10.2.0.0", False),
    ("10.1.2.3/32", "10.1.2.3", True),
    ("10.1.2.3/32", "10.1.2.2", False),
    ("0.0.0.0/0", "255.1.2.3", True),
    ("0.0.0.0/0", "fd00::1", False),
    ("128.0.0.0/1", "127.255.255.255", False),
    ("::/0", "fd00::1", True),
    ("fd00::/8", "fdff::1", True),
    ("fd00::/8", "fe00::1", False),
    ("fd00:0:0:1::/64", "fd00:0:0:1:ffff::", True),
    ("fd00:0:0:1::/64", "fd00:0:0:2::", False),
    ("fd00::8/125", "fd00::f", True),
    ("fd00::8/125", "fd00::10", False),
    ("fd00::1/128", "fd00::1", True),
    ("fd00::1/128", "fd01::1", False),
)


@pytest.mark.parametrize(("prefix", "address", "held"), HELD)
def test_a_prefix_holds_what_the_library_says(prefix: str, address: str, held: bool) -> None:
    assert prefixes(prefix).hold(*pair(ip_address(address))) == held
    same = ip_address(address).version == ip_network(prefix).version
    assert held == (same and ip_address(address) in ip_network(prefix))


def test_any_of_several_and_all_of_none() -> None:
    several = prefixes("10.0.0.0/8", "192.0.2.0/24")
    assert several.hold(*pair(ip_address("192.0.2.9")))
    assert not several.hold(*pair(ip_address("192.0.3.9")))
    assert prefixes().hold(*pair(ip_address("192.0.3.9")))


def test_ports_include_both_ends() -> None:
    match = Match(prefixes(), prefixes(), (5, 9), (80, 80), "", "")
    assert [s for s in range(12) if match.ports(s, 80)] == [5, 6, 7, 8, 9]
    assert not match.ports(5, 79)
    assert not match.ports(5, 81)


@pytest.mark.parametrize(
    ("address", "is_bound"),
    [
        ("223.255.255.255", False),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("169.254.0.1", True),
        ("169.253.0.1", False),
        ("ff02::1", True),
        ("fe80::1", True),
        ("febf::1", True),
        ("fec0::1", False),
        ("fd00::1", False),
    ],
)
def test_groups_and_link_local_addresses(address: str, is_bound: bool) -> None:
    parsed = ip_address(address)
    assert bound(parsed.version, *pair(parsed)) == is_bound
