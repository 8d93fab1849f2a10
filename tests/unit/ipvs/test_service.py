"""Which service a packet belongs to: exact port, then range, then any; and what a service does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sched import find
from tunlb.ipvs.service import Service, ServiceTable
from tunlb.ipvs.timeouts import Timeouts

TCP, UDP = 6, 17
VIP = (0, 0xFFFF_0A00_0064)
VIP6 = (0xFD << 120 >> 64, 0x100)


def make(
    name: str, first: int, last: int, proto: int = TCP, vaddr: tuple[int, int] = VIP
) -> Service:
    af = 4 if vaddr[0] == 0 else 6
    return Service(name, af, proto, vaddr, first, last, find("rr")(1), Timeouts({}))


def table(*services: Service) -> ServiceTable:
    found = ServiceTable()
    for service in services:
        found.add(service)
    return found


@pytest.mark.parametrize(
    ("proto", "vaddr", "port", "expected"),
    [
        (TCP, VIP, 80, "exact"),
        (TCP, VIP, 90, "low"),
        (TCP, VIP, 95, "inside"),
        (TCP, VIP, 99, "low"),
        (TCP, VIP, 100, "high"),
        (TCP, VIP, 89, "any"),
        (TCP, VIP, 111, "any"),
        (TCP, VIP, 0, "any"),
        (TCP, VIP, 65535, "any"),
        (UDP, VIP, 80, None),
        (UDP, VIP, 53, "udp"),
        (TCP, VIP6, 80, "v6"),
        (TCP, VIP6, 81, None),
        (TCP, (0, 0), 80, None),
    ],
    ids=str,
)
def test_lookup(proto: int, vaddr: tuple[int, int], port: int, expected: str | None) -> None:
    services = table(
        make("any", 0, 65535),
        make("high", 100, 110),
        make("low", 90, 99),
        make("exact", 80, 80),
        make("inside", 95, 95),
        make("udp", 53, 53, UDP),
        make("v6", 80, 80, vaddr=VIP6),
    )
    found = services.lookup(proto, *vaddr, port)
    assert (None if found is None else found.name) == expected


@pytest.mark.parametrize(
    ("proto", "vaddr", "expected"), [(TCP, VIP, True), (UDP, VIP, False), (TCP, VIP6, False)]
)
def test_vip_has(proto: int, vaddr: tuple[int, int], expected: bool) -> None:
    assert table(make("web", 80, 80)).vip_has(proto, *vaddr) is expected


@st.composite
def port_ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Ranges of at least two ports that do not overlap: the configuration allows no others."""
    cuts = draw(st.lists(st.integers(1, 300), unique=True, max_size=12).map(sorted))
    return [(a, b - 1) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if b - a >= 2]


@given(
    spans=port_ranges(),
    exact=st.sets(st.integers(1, 300), max_size=6),
    everything=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_lookup_is_the_brute_force(
    spans: list[tuple[int, int]], exact: set[int], everything: bool, order
) -> None:
    services = [make("range", *span) for span in spans] + [make("exact", p, p) for p in exact]
    if everything:
        services.append(make("any", 0, 65535))
    order.shuffle(services)
    found = table(*services)
    for port in (*range(302), 65535):
        holding = [s for s in services if s.first_port <= port <= s.last_port]
        # the narrowest of those that hold the port is what "exact, range, any" means
        expected = min(holding, key=lambda s: s.last_port - s.first_port, default=None)
        assert found.lookup(TCP, *VIP, port) is expected


@pytest.fixture
def dest() -> Callable[..., Dest]:
    def build(**fields: Any) -> Dest:
        return Dest(0, 4, 0, 0xFFFF_0A00_000B, 80, **fields)

    return build


@pytest.mark.parametrize(
    ("weight", "max_conn", "conns", "available", "expected"),
    [
        (1, 0, 10**6, True, True),
        (0, 0, 0, True, False),
        (1, 2, 1, True, True),
        (1, 2, 2, True, False),
        (1, 0, 0, False, False),
    ],
    ids=["no limit", "quiescent", "below max_conn", "at max_conn", "removed"],
)
def test_a_dest_may_take_a_conn(
    dest: Callable[..., Dest],
    weight: int,
    max_conn: int,
    conns: int,
    available: bool,
    expected: bool,
) -> None:
    found = dest(weight=weight, max_conn=max_conn)
    found.actconns, found.inactconns = conns // 2, conns - conns // 2
    found.available = available
    assert found.valid() is expected


def test_an_active_conn_weighs_256_inactive_ones(dest: Callable[..., Dest]) -> None:
    found = dest()
    found.actconns, found.inactconns = 2, 3
    assert found.overhead() == 515


def test_dests_take_their_services_timeouts(dest: Callable[..., Dest]) -> None:
    service = make("web", 80, 80)
    service.timeouts = Timeouts({0: 10, 3: 30, 15: 150})
    found = dest()
    service.set_dests([found])
    assert service.scheduler.dests == [found]
    assert found.service_name == "web"
    assert [found.timeouts.of(state) for state in (0, 1, 3, 15)] == [10, 0, 30, 150]


def test_a_dest_counts_for_its_service(dest: Callable[..., Dest]) -> None:
    """Whichever object the service is after a reload, and whatever it had before it belonged."""
    first, second = make("web", 80, 80), make("web", 80, 80)
    first.max_conn = second.max_conn = 9
    found = dest()
    first.set_dests([found])
    for _ in range(3):
        more(found, 1)
    assert (found.load(), first.carried.count) == (3, 3)
    second.set_dests([found])
    assert (first.carried.count, second.carried.count) == (0, 3)
    more(found, -1)
    assert (found.inactconns, second.carried.count) == (2, 2)
    second.max_conn = 0
    second.set_dests([found])
    assert not found.limited


def more(found: Dest, change: int) -> None:
    """What Life does."""
    found.inactconns += change
    if found.limited:
        found.count(change)


@pytest.mark.parametrize(("min_conn", "open_at"), [(0, 7), (1, 0), (5, 4), (10, 9)])
def test_an_overloaded_dest_opens_again(
    dest: Callable[..., Dest], min_conn: int, open_at: int
) -> None:
    found = dest(max_conn=10)
    found.min_conn = min_conn
    for _ in range(9):
        more(found, 1)
    assert found.valid()
    more(found, 1)
    for load in range(9, open_at, -1):
        more(found, -1)
        assert (found.load(), found.valid()) == (load, False)
    more(found, -1)
    assert found.valid()
    while found.load() < 9:
        more(found, 1)
    assert found.valid()


def test_addresses_of_both_families_are_kept_apart() -> None:
    """An IPv4 vaddr is found by a number, an IPv6 one by its words, also where the upper is 0."""
    low = (0, 0x1_0000_0000 | VIP[1] & 0xFFFFFFFF)
    services = table(
        make("v4", 80, 80), make("low", 80, 80, vaddr=low), make("v6", 80, 80, vaddr=VIP6)
    )
    for vaddr, name in ((VIP, "v4"), (low, "low"), (VIP6, "v6")):
        found = services.lookup(TCP, *vaddr, 80)
        assert found is not None
        assert found.name == name
        assert services.vip_has(TCP, *vaddr)
    assert services.lookup(TCP, 1, VIP[1], 80) is None
    assert services.lookup(UDP, *VIP, 80) is None
