"""The deltas of a row, and what the modes make of the two keys."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason
from tunlb.ipvs import conn as c
from tunlb.ipvs import rewrite
from tunlb.ipvs.conn import INBOUND, OUTBOUND, ConnTable, hash_secret
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.laddr import LportPools
from tunlb.ipvs.sched import find as find_scheduler
from tunlb.ipvs.service import Service
from tunlb.ipvs.timeouts import Timeouts
from tunlb.ipvs.xmit import find as find_mode
from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.testing import checkers as k
from tunlb.testing import frames as f
from tunlb.wire import ipv4, tcp, vnet

MAPPED = 0xFFFF_0000_0000
CLIENT, VIP, DEST = (MAPPED | n for n in (0x0A000001, 0x0A000064, 0x0A00000B))
LADDRS = tuple((0, MAPPED | n) for n in (0x0A0000C8, 0x0A0000C9))
CPORT, VPORT = 40000, 80


def make_service(laddrs: tuple[tuple[int, int], ...] = LADDRS) -> Service:
    return Service("web", 4, 6, (0, VIP), 80, 80, find_scheduler("rr")(1), Timeouts({}), laddrs)


def born(table: ConnTable) -> int:
    """A row whose INBOUND key is in place."""
    row: int = table.alloc()
    q, d, b = table.mem.cast("Q"), table.mem.cast("I"), table.mem.cast("B")
    q[row * 16 + 1], q[row * 16 + 3] = CLIENT, VIP
    d[row * 32 + c.D_PORTS] = CPORT << 16 | VPORT
    b[row * 128 + c.B_PROTO] = 6
    return row


def outbound(table: ConnTable, row: int) -> tuple[int, int, int, int]:
    """daddr, laddr, dport, lport."""
    q, d = table.mem.cast("Q"), table.mem.cast("I")
    ports = d[row * 32 + c.D_PORTS + 1]
    return q[row * 16 + 5], q[row * 16 + 7], ports >> 16, ports & 0xFFFF


@pytest.mark.parametrize(
    ("mode", "dport", "expected", "flags"),
    [
        ("nat", 8080, (DEST, CLIENT, 8080, CPORT), 0),
        ("nat", 0, (DEST, CLIENT, VPORT, CPORT), 0),
        ("fnat", 8080, (DEST, LADDRS[0][1], 8080, 1025), 0),
        ("fnat", 0, (DEST, LADDRS[0][1], VPORT, 1025), 0),
        ("dr", 80, (DEST, CLIENT, 80, CPORT), c.ONEWAY | c.NO_REWRITE),
    ],
    ids=["nat", "nat keeps the port", "fnat", "fnat keeps the port", "dr"],
)
def test_what_a_mode_makes_of_a_conn(
    mode: str, dport: int, expected: tuple[int, ...], flags: int
) -> None:
    table = ConnTable(4, hash_secret(b""))
    row = born(table)
    bound = find_mode(mode)(LportPools())
    assert bound.bind(table, row, make_service(), Dest(0, 4, 0, DEST, dport), 0) == 0
    assert outbound(table, row) == expected
    assert table.mem.cast("H")[row * 64 + c.H_FLAGS] == flags


def test_fnat_takes_laddrs_in_turn_and_passes_over_an_empty_one() -> None:
    pools = LportPools()
    mode, service, dest = find_mode("fnat")(pools), make_service(), Dest(0, 4, 0, DEST, 8080)
    table = ConnTable(8, hash_secret(b""))
    rows = [born(table) for _ in range(3)]
    assert [mode.bind(table, row, service, dest, 0) for row in rows] == [0] * 3
    assert [outbound(table, row)[1] for row in rows] == [LADDRS[i][1] for i in (0, 1, 0)]
    full = pools.pool(*LADDRS[1], 0, DEST, 8080 << 8 | 6)
    while full.take():
        pass
    more = [born(table) for _ in range(2)]
    assert [mode.bind(table, row, service, dest, 0) for row in more] == [0, 0]
    assert [outbound(table, row)[1:] for row in more] == [
        (LADDRS[0][1], 8080, 1027),
        (LADDRS[0][1], 8080, 1028),
    ]


def test_fnat_is_exhausted_per_dest_and_unbind_gives_back() -> None:
    pools = LportPools()
    service = make_service(LADDRS[:1])
    mode, dest = find_mode("fnat")(pools), Dest(0, 4, 0, DEST, 8080)
    table = ConnTable(8, hash_secret(b""))
    first = born(table)
    assert mode.bind(table, first, service, dest, 0) == 0
    full = pools.pool(*LADDRS[0], 0, DEST, 8080 << 8 | 6)
    while full.take():
        pass
    refused = born(table)
    assert mode.bind(table, refused, service, dest, 0) == DropReason.LPORT_EXHAUSTED
    mode.unbind(table, refused)  # has nothing to give back
    other = born(table)
    assert mode.bind(table, other, service, Dest(1, 4, 0, DEST + 1, 8080), 0) == 0
    mode.unbind(table, first)
    assert full.used == full.size - 1
    assert mode.bind(table, refused, service, dest, 0) == 0
    assert outbound(table, refused)[3] == 1025


def test_deltas_follow_the_keys_and_undo_each_other() -> None:
    """Both directions' deltas add up to nothing (RFC 1624): -0 or 0."""
    table = ConnTable(4, hash_secret(b""))
    row = born(table)
    mode = find_mode("fnat")(LportPools())
    mode.bind(table, row, make_service(), Dest(0, 4, 0, DEST, 8080), 0)
    for direction in (INBOUND, OUTBOUND):
        rewrite.prepare(table, row, direction, 4)
    deltas = table.mem.cast("H")[row * 64 + c.H_DELTA : row * 64 + c.H_DELTA + 4].tolist()
    assert (deltas[0] + deltas[2]) % 0xFFFF == (deltas[1] + deltas[3]) % 0xFFFF == 0
    old = f.ones_sum(bytes((10, 0, 0, 1, 10, 0, 0, 100)))
    new = f.ones_sum(bytes((10, 0, 0, 200, 10, 0, 0, 11)))
    assert (deltas[0] - new + old) % 0xFFFF == 0


def test_a_rewritten_packet() -> None:
    table = ConnTable(4, hash_secret(b""))
    row = born(table)
    mode = find_mode("fnat")(LportPools())
    mode.bind(table, row, make_service(), Dest(0, 4, 0, DEST, 8080), 0)
    rewrite.prepare(table, row, INBOUND, 4)
    pkt = Packet()
    packet = f.ipv4("10.0.0.1", "10.0.0.100", f.tcp(CPORT, VPORT, b"data", flags="PA"), ident=9)
    pkt.load(f.vnet(packet), Netif(0, "tun0", 0, tun=True))
    assert ipv4.parse(pkt) == tcp.parse(pkt) == 0
    rewrite.apply(pkt, table, row, INBOUND)
    vnet.emit(pkt)
    k.check(
        bytes(pkt.mem[pkt.start : pkt.end]),
        k.ipv4(saddr="10.0.0.200", daddr="10.0.0.11", ttl=64, ident=9),
        k.tcp(sport=1025, dport=8080, flags="PA"),
        k.payload(b"data"),
        vnet=False,
        tun=True,
    )
