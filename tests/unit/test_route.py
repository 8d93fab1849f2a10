"""The routing table is the longest prefix, over both families."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunlb.netif import Netif
from tunlb.route import Route, RouteTable

PORT = Netif(0, "lb0", 0x020000000001, 1500)
MAPPED = 0xFFFF_0000_0000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def pair(address: Address) -> tuple[int, int]:
    value = int(address) | (MAPPED if address.version == 4 else 0)
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def make(*networks: str) -> tuple[RouteTable, dict[str, Route]]:
    table, routes = RouteTable(), {}
    for text in networks:
        network = ipaddress.ip_network(text)
        routes[text] = Route(PORT)
        length = network.prefixlen + (96 if network.version == 4 else 0)
        table.add(*pair(network.network_address), length, routes[text])
    return table, routes


ALL = (
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3/32",
    "::/0",
    "fd00::/8",
    "fd00::/64",
    "fd00::1/128",
)


@pytest.mark.parametrize(
    ("address", "networks", "expected"),
    [
        ("10.1.2.3", ALL, "10.1.2.3/32"),
        ("10.1.2.4", ALL, "10.1.0.0/16"),
        ("10.2.0.1", ALL, "10.0.0.0/8"),
        ("11.0.0.1", ALL, "0.0.0.0/0"),
        ("fd00::1", ALL, "fd00::1/128"),
        ("fd00::2", ALL, "fd00::/64"),
        ("fd00:0:0:1::", ALL, "fd00::/8"),
        ("2001:db8::1", ALL, "::/0"),
        ("10.0.0.1", ("::/0",), None),
        ("fd00::1", ("0.0.0.0/0",), None),
        ("::fffe:ffff:1", ("0.0.0.0/0", "::/0"), "::/0"),
        ("10.0.0.1", (), None),
    ],
)
def test_lookup(address: str, networks: tuple[str, ...], expected: str | None) -> None:
    table, routes = make(*networks)
    found = table.lookup(*pair(ipaddress.ip_address(address)))
    assert found is (None if expected is None else routes[expected])


def test_a_prefix_may_be_given_by_any_of_its_addresses_and_is_replaced() -> None:
    table = RouteTable()
    first, second = Route(PORT), Route(PORT)
    table.add(0, MAPPED | 0x0A000001, 120, first)
    table.add(0, MAPPED | 0x0A0000FE, 120, second)
    assert table.lookup(0, MAPPED | 0x0A000007) is second


@pytest.mark.parametrize(("mtu", "expected"), [(0, 1500), (1400, 1400), (9000, 1500)])
def test_a_route_is_never_wider_than_its_port(mtu: int, expected: int) -> None:
    assert Route(PORT, mtu=mtu).mtu == expected


def test_on_link_or_by_a_gateway() -> None:
    assert Route(PORT).on_link
    route = Route(PORT, (0, MAPPED | 1))
    assert (route.on_link, route.via_hi, route.via) == (False, 0, MAPPED | 1)


def test_whose_path_is_known() -> None:
    """That of a neighbour is the link; of what is further away somebody has to tell."""
    via = (0, MAPPED | 1)
    tun = Netif(1, "tun0", 0, 1500, tun=True)
    assert Route(PORT).mtu_known
    assert Route(PORT, via, 1400).mtu_known
    assert Route(tun, mtu=1400).mtu_known
    assert not Route(PORT, via).mtu_known
    assert not Route(tun).mtu_known, "the kernel is not the end of the path"


# Few bits vary, so that prefixes nest and addresses meet them.
bits = st.sampled_from((0, 1, 1 << 31, 1 << 8, 3 << 30, 0xFFFFFFFF))
v4 = bits.map(ipaddress.IPv4Address)
v6 = st.tuples(bits, bits, bits, bits).map(
    lambda w: ipaddress.IPv6Address(w[0] << 96 | w[1] << 64 | w[2] << 32 | w[3])
)
v4_networks = st.tuples(v4, st.integers(0, 32)).map(lambda n: ipaddress.ip_network(n, strict=False))
v6_networks = st.tuples(v6, st.integers(0, 128)).map(
    lambda n: ipaddress.ip_network(n, strict=False)
)


def is_mapped(address: Address) -> bool:
    return address.version == 6 and int(address) >> 32 == 0xFFFF


@given(
    networks=st.lists(st.one_of(v4_networks, v6_networks), max_size=12),
    addresses=st.lists(
        st.one_of(v4, v6).filter(lambda a: not is_mapped(a)), min_size=1, max_size=8
    ),
)
def test_lookup_is_the_brute_force(networks: list[Network], addresses: list[Address]) -> None:
    # The mapped block means IPv4 inside tunlb, so an IPv6 route into it is another table's.
    networks = [n for n in networks if not (n.prefixlen >= 96 and is_mapped(n.network_address))]
    table, routes = make(*dict.fromkeys(map(str, networks)))
    for address in addresses:
        holding = [network for network in networks if address in network]
        best = max(holding, key=lambda network: network.prefixlen, default=None)
        expected = None if best is None else routes[str(best)]
        assert table.lookup(*pair(address)) is expected
