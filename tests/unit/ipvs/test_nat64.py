"""NAT64 as a mode: MTUs, what it takes of a former worker's rows, and its laddrs."""

from __future__ import annotations

import pytest

from tunlb.counters import Counters
from tunlb.ipvs import conn as c
from tunlb.ipvs.conn import ConnTable, hash_secret
from tunlb.ipvs.dest import FWD_NAT64, Dest
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.nat64 import Nat64
from tunlb.ipvs.sched import find
from tunlb.ipvs.service import Service
from tunlb.ipvs.timeouts import Timeouts
from tunlb.ipvs.xmit import names
from tunlb.netif import LADDR, NOWHERE, Addresses
from tunlb.outbox import Sender
from tunlb.route import RouteTable

MAPPED = 0xFFFF_0000_0000
V4, V6 = (0, MAPPED | 0x0A01000B), (0xFD01 << 48, 0x11)
LADDRS = ((0, MAPPED | 0x0A0100C8), (0xFD01 << 48, 0x200), (0, MAPPED | 0x0A0100C9))


def dest(af: int) -> Dest:
    return Dest(0, af, *(V4 if af == 4 else V6), 8080, fwdmode=FWD_NAT64)


def mode() -> Nat64:
    return Nat64(LportPools(), Counters(), Sender())


@pytest.mark.parametrize(
    ("af", "direction", "mtu", "expected"),
    [
        (4, 0, 1500, 1520),
        (4, 1, 1500, 1480),
        (6, 0, 1500, 1480),
        (6, 1, 1500, 1520),
        (4, 0, 65521, 65535),
    ],
)
def test_path_mtu(af: int, direction: int, mtu: int, expected: int) -> None:
    assert mode().path_mtu(dest(af), direction, mtu) == expected


def test_its_number_is_its_own_and_nobody_names_it() -> None:
    assert mode().number == FWD_NAT64 == 7
    assert "nat64" not in names()


def test_laddrs_of_the_dests_family() -> None:
    service = Service("w", 6, 6, V6, 80, 80, find("rr")(1), Timeouts({}), LADDRS)
    assert service.laddrs_of(4) == (LADDRS[0], LADDRS[2])
    assert service.laddrs_of(6) == (LADDRS[1],)


def bound(af: int) -> tuple[Nat64, ConnTable, Dest]:
    made, table = mode(), ConnTable(16, hash_secret(b"nat64"))
    ours = Addresses()
    for laddr in LADDRS:
        ours.add(NOWHERE, 0, *laddr, LADDR)
    made.rewire(ours, RouteTable())
    row = table.alloc()
    q, d = table.mem.cast("Q"), table.mem.cast("I")
    q[0], q[1] = V6 if af == 4 else V4
    q[2], q[3] = LADDRS[1] if af == 4 else LADDRS[0]
    d[c.D_PORTS] = 40000 << 16 | 80
    table.mem[c.B_PROTO] = 6
    table.mem[c.B_AF] = 10 - af
    real = dest(af)
    service = Service("w", 10 - af, 6, V6, 80, 80, find("rr")(1), Timeouts({}), LADDRS)
    assert made.bind(table, row, service, real, 0) == 0
    return made, table, real


@pytest.mark.parametrize("af", [4, 6])
def test_a_row_that_it_filled_fits(af: int) -> None:
    made, table, real = bound(af)
    assert table.mem.cast("H")[c.H_FLAGS] == c.XMIT | c.NO_REWRITE
    assert made.fits(table, 0, real)


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("what", ["family", "laddr", "daddr", "dport", "gone"])
def test_a_row_that_it_did_not_fill_does_not_fit(af: int, what: str) -> None:
    made, table, real = bound(af)
    q = table.mem.cast("Q")
    if what == "family":
        table.mem[c.B_AF] = af
    elif what == "laddr":
        q[6], q[7] = LADDRS[1] if af == 4 else LADDRS[0]
    elif what == "daddr":
        q[5] += 1
    elif what == "gone":
        made.rewire(Addresses(), RouteTable())
    else:
        table.mem.cast("I")[c.D_PORTS + 1] += 1 << 16
    assert not made.fits(table, 0, real)
