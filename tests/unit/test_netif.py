"""Interfaces and the addresses they own."""

from __future__ import annotations

import pytest

from tunlb.netif import ADDRESS, LADDR, VIP, Addresses, Netif

MAPPED = 0xFFFF_0000_0000
LB0 = Netif(0, "lb0", 0x020000000001)
LB1 = Netif(1, "lb1", 0x020000000002)
TUN = Netif(2, "tun0", 0, tun=True)


@pytest.fixture
def addresses() -> Addresses:
    found = Addresses()
    found.add(LB0, 4, 0, MAPPED | 1, ADDRESS)
    found.add(LB0, 4, 0, MAPPED | 2, ADDRESS)
    found.add(LB1, 4, 0, MAPPED | 3, ADDRESS)
    found.add(LB0, 4, 0, MAPPED | 100, VIP)
    found.add(LB0, 6, 1 << 63, 100, VIP)
    found.add(LB1, 4, 0, MAPPED | 200, LADDR)
    return found


@pytest.mark.parametrize(
    ("hi", "lo", "kind"),
    [
        (0, MAPPED | 1, ADDRESS),
        (0, MAPPED | 100, VIP),
        (1 << 63, 100, VIP),
        (0, MAPPED | 200, LADDR),
        (0, MAPPED | 9, 0),
        (0, 1, 0),
        (1 << 63, 101, 0),
    ],
)
def test_kind(addresses: Addresses, hi: int, lo: int, kind: int) -> None:
    assert addresses.kind(hi, lo) == kind
    assert addresses.is_local(hi, lo) is (kind != 0)


def test_an_address_is_answered_for_on_its_own_interface_only(addresses: Addresses) -> None:
    assert addresses.owned_by(LB0, 0, MAPPED | 100)
    assert not addresses.owned_by(LB1, 0, MAPPED | 100)
    assert not addresses.owned_by(LB0, 0, MAPPED | 9)


@pytest.mark.parametrize(
    ("netif", "af", "expected"),
    [
        (LB0, 4, (0, MAPPED | 1)),
        (LB1, 4, (0, MAPPED | 3)),
        (TUN, 4, (0, MAPPED | 1)),
        (LB0, 6, (1 << 63, 100)),
        (LB1, 6, (1 << 63, 100)),
    ],
    ids=["its first", "its own", "any port's", "a VIP of that family", "any VIP of that family"],
)
def test_primary(addresses: Addresses, netif: Netif, af: int, expected: tuple[int, int]) -> None:
    assert addresses.primary(netif, af) == expected


def test_primary_is_never_a_laddr_or_of_the_other_family() -> None:
    found = Addresses()
    found.add(LB0, 4, 0, MAPPED | 200, LADDR)
    found.add(LB0, 4, 0, MAPPED | 100, VIP)
    assert found.primary(LB0, 6) is None
    assert found.primary(LB0, 4) == (0, MAPPED | 100)


def test_a_ports_own_address_stays_its_own_when_a_service_has_it_too() -> None:
    found = Addresses()
    found.add(LB0, 4, 0, MAPPED | 1, ADDRESS)
    found.add(LB1, 4, 0, MAPPED | 1, VIP)
    assert found.kind(0, MAPPED | 1) == ADDRESS
    assert list(found.items()) == [(LB0, 0, MAPPED | 1, ADDRESS)]


def test_a_vlan_shares_the_queue_of_its_port() -> None:
    vlan = Netif(5, "lb0.10", 0x020000000001, vid=10, queue=LB0.queue)
    assert (LB0.queue, LB1.queue, vlan.queue) == (0, 1, 0)
    assert vlan.mac_bytes == bytes.fromhex("020000000001")
