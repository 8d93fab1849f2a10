"""The look-ups against the obvious way to do them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from tunlb.conf import AddressRange
from tunlb.conf.lookup import Prefixes, Spans, overlaps

Network = tuple[bool, int, int]
networks = st.tuples(st.booleans(), st.integers(0, 255), st.integers(0, 8))


def network(row: Network) -> str:
    """Prefixes in a space of 256 addresses of either family, so that they meet."""
    v6, host, length = row
    start = host >> (8 - length) << (8 - length)
    return f"fd00::{start:x}/{120 + length}" if v6 else f"10.0.0.{start}/{24 + length}"


def address(v6: bool, host: int) -> str:
    return f"fd00::{host:x}" if v6 else f"10.0.0.{host}"


@given(st.lists(networks, max_size=20), st.booleans(), st.integers(0, 255))
def test_longest_prefix(rows: list[Network], v6: bool, host: int) -> None:
    prefixes: Prefixes[int] = Prefixes()
    nets = [ip_network(network(row)) for row in rows]
    for index, net in enumerate(nets):
        assert prefixes.add(net, index) == nets.index(net)
    wanted = ip_address(address(v6, host))
    holding = [net for net in nets if net.version == wanted.version and wanted in net]
    found = prefixes.find(wanted)
    if not holding:
        assert found is None
    else:
        longest = max(holding, key=lambda net: net.prefixlen)
        assert found == (longest, nets.index(longest))


ends = st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 8))


@given(st.lists(ends, max_size=12), ends)
def test_spans(rows: list[Network], probe: Network) -> None:
    def span(row: Network) -> AddressRange:
        v6, first, size = row
        return AddressRange(ip_address(address(v6, first)), ip_address(address(v6, first + size)))

    spans = Spans((span(row), row) for row in rows)
    wanted = span(probe)
    touching = [row for row in rows if row[0] == probe[0] and span(row).meets(wanted)]
    found = spans.touching(wanted)
    assert (found in touching) if touching else found is None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=12))
def test_overlaps(rows: list[tuple[int, int]]) -> None:
    spans = [(first, first + size) for first, size in rows]

    def meet(one: int, other: int) -> bool:
        return spans[one][0] <= spans[other][1] and spans[other][0] <= spans[one][1]

    pairs = [(a, b) for a in range(len(spans)) for b in range(a + 1, len(spans)) if meet(a, b)]
    found = list(overlaps(spans))
    assert set(found) <= set(pairs)
    assert bool(found) == bool(pairs)
