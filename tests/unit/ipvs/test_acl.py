"""Lists of sources against a model: the standard library's networks."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from tunlb.ipvs.acl import PIECE, SourceList

MAPPED = 0xFFFF_0000_0000

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Few bits vary, so that prefixes contain each other and addresses.
numbers_v4 = st.integers(0, 15).map(lambda n: 0x0A000000 | (n & 12) << 22 | (n & 3) << 3)
numbers_v6 = st.integers(0, 31).map(lambda n: (n & 1) << 125 | (n & 6) << 70 | (n >> 3) << 61 | 1)
addresses: st.SearchStrategy[Address] = st.one_of(
    numbers_v4.map(ipaddress.IPv4Address), numbers_v6.map(ipaddress.IPv6Address)
)


def network(address: Address, length: int) -> Network:
    return ipaddress.ip_network((address, length % (address.max_prefixlen + 1)), strict=False)


networks = st.builds(network, addresses, st.integers(0, 128))


def pair(address: Address) -> tuple[int, int]:
    value = int(address) | (MAPPED if address.version == 4 else 0)
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def listed(prefixes: list[Network]) -> SourceList:
    found = SourceList()
    for prefix in prefixes:
        extra = 96 if prefix.version == 4 else 0
        found.add(*pair(prefix.network_address), prefix.prefixlen + extra, prefix.version)
    for _ in found.seal():
        pass
    return found


@given(st.lists(networks, max_size=12), st.lists(addresses, min_size=1))
def test_has(prefixes: list[Network], wanted: list[Address]) -> None:
    sources = listed(prefixes)
    for address in wanted:
        assert sources.has(address.version, *pair(address)) == any(
            prefix.version == address.version and address in prefix for prefix in prefixes
        )
    for af in (4, 6):
        assert sources.covers(af) == any(prefix.version == af for prefix in prefixes)


def test_one_family_is_not_the_other() -> None:
    everybody = listed([ipaddress.ip_network("::/0")])
    assert everybody.has(6, 0, 1)
    assert not everybody.has(4, 0, MAPPED | 0x0A000001)
    assert not listed([ipaddress.ip_network("0.0.0.0/0")]).has(6, 0, MAPPED | 0x0A000001)


def test_many_are_entered_in_pieces() -> None:
    sources = SourceList()
    count = 3 * PIECE + 1
    for i in range(count):
        sources.add(0, MAPPED | i << 8, 96 + 24, 4)
    assert len(list(sources.seal())) == 4
    assert all(sources.has(4, 0, MAPPED | i << 8 | 255) for i in range(count))
    assert not sources.has(4, 0, MAPPED | count << 8)
