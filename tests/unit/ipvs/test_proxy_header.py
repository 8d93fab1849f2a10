"""The PROXY protocol's headers and TOA, byte by byte."""

from __future__ import annotations

import pytest

from tests.property.test_rewrite import make_conn
from tunlb.ipvs import conn, proxy_header

V4 = ("203.0.113.9", 51000), ("10.0.0.100", 443)
V6 = ("2001:db8::9", 51000), ("fd00::100", 443)
MOST = ("ffff:" * 7 + "ffff", 65535), ("ffff:" * 7 + "fffe", 65535)
SIGNATURE = "0d0a0d0a000d0a515549540a"


def made(ends: tuple[tuple[str, int], tuple[str, int]], proto: int = 6) -> conn.ConnTable:
    table = make_conn(ends, ends)
    table.mem[conn.B_AF] = 6 if ":" in ends[0][0] else 4
    table.mem[conn.B_PROTO] = proto
    return table


def test_version_1() -> None:
    expected = b"PROXY TCP4 203.0.113.9 10.0.0.100 51000 443\r\n"
    assert proxy_header.build(made(V4), 0, 1) == expected
    expected = b"PROXY TCP6 2001:db8::9 fd00::100 51000 443\r\n"
    assert proxy_header.build(made(V6), 0, 1) == expected
    assert len(proxy_header.build(made(MOST), 0, 1)) <= proxy_header.V1_MAX


@pytest.mark.parametrize(("proto", "kind"), [(6, "11"), (17, "12")])
def test_version_2_of_ipv4(proto: int, kind: str) -> None:
    expected = SIGNATURE + "21" + kind + "000c" + "cb007109" + "0a000064" + "c738" + "01bb"
    assert proxy_header.build(made(V4, proto), 0, 2).hex() == expected


@pytest.mark.parametrize(("proto", "kind"), [(6, "21"), (17, "22")])
def test_version_2_of_ipv6(proto: int, kind: str) -> None:
    found = proxy_header.build(made(V6, proto), 0, 2)
    client, vip = "20010db8" + "00" * 11 + "09", "fd" + "00" * 13 + "0100"
    assert found.hex() == SIGNATURE + "21" + kind + "0024" + client + vip + "c738" + "01bb"
    assert len(found) == 52


def test_toa() -> None:
    assert proxy_header.toa(made(V4), 0).hex() == "fe08c738cb007109"
    assert proxy_header.toa(made(V6), 0).hex() == "fe14c73820010db8" + "00" * 11 + "09"
