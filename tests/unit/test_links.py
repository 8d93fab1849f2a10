"""What needs no kernel to be checked; the rest is in tests/e2e/test_ports.py."""

from __future__ import annotations

import pytest

from tunlb.links import derive_mac
from tunlb.links.tun import TABLE_BASE, tun_table

KERNEL_MACS = [bytes.fromhex(mac) for mac in ("000000000000", "02aabbccddee", "feffffffffff")]


@pytest.mark.parametrize("kernel_mac", KERNEL_MACS, ids=bytes.hex)
def test_a_derived_mac_is_local_unicast_and_our_own(kernel_mac: bytes) -> None:
    mac = derive_mac(kernel_mac, "lb0").to_bytes(6, "big")
    assert mac[0] & 0x03 == 0x02
    assert (mac[0] ^ kernel_mac[0]) & 0x04, "this bit tells the two sides apart"
    assert derive_mac(kernel_mac, "lb0").to_bytes(6, "big") == mac


def test_derived_macs_differ_by_device_and_by_kernel_side() -> None:
    names = ("lb0", "lb1", "out", "in")
    assert len({derive_mac(mac, name) for mac in KERNEL_MACS for name in names}) == 12


def test_each_tun_has_a_table_that_nobody_else_uses() -> None:
    tables = {tun_table(name) for name in ("lb0", "lb1", "tun0")}
    assert len(tables) == 3
    assert all(TABLE_BASE <= table < TABLE_BASE + (1 << 24) for table in tables)
