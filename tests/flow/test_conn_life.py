"""The life of a conn in every forwarding mode: each frame, state, count and timeout, to its end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import V4, Conn, Net, Rig, balanced, states, the_dest
from tunlb.testing.checkers import tcp

# (side, flags, state after it, dest's (actconns, inactconns))
HANDSHAKE = (
    ("up", "S", "SYN_RECV", (0, 1)),
    ("down", "SA", "SYN_RECV", (0, 1)),
    ("up", "A", "ESTABLISHED", (1, 0)),
    ("up", "PA", "ESTABLISHED", (1, 0)),
    ("down", "PA", "ESTABLISHED", (1, 0)),
)
CLIENT_CLOSES = (
    ("up", "FA", "CLOSE_WAIT", (0, 1)),
    ("down", "A", "CLOSE_WAIT", (0, 1)),
    ("down", "FA", "TIME_WAIT", (0, 1)),
    ("up", "A", "TIME_WAIT", (0, 1)),
)
DEST_CLOSES = (
    ("down", "FA", "FIN_WAIT", (0, 1)),
    ("up", "A", "FIN_WAIT", (0, 1)),
    ("up", "FA", "TIME_WAIT", (0, 1)),
    ("down", "A", "TIME_WAIT", (0, 1)),
)
CLIENT_RESETS = (("up", "RA", "CLOSE", (0, 1)),)
DEST_RESETS = (("down", "R", "CLOSE", (0, 1)),)
REFUSED = (("up", "S", "SYN_RECV", (0, 1)), ("down", "RA", "CLOSE", (0, 1)))
LIVES = {
    "client-closes": HANDSHAKE + CLIENT_CLOSES,
    "dest-closes": HANDSHAKE + DEST_CLOSES,
    "client-resets": HANDSHAKE + CLIENT_RESETS,
    "dest-resets": HANDSHAKE + DEST_RESETS,
    "refused": REFUSED,
}
SECONDS = {
    "SYN_RECV": 60,
    "ESTABLISHED": 900,
    "FIN_WAIT": 120,
    "TIME_WAIT": 120,
    "CLOSE": 10,
    "CLOSE_WAIT": 60,
    "ONEWAY": 300,
    "NORMAL": 300,
}


def play(conn: Conn, life: tuple[tuple[str, str, str, tuple[int, int]], ...]) -> None:
    for side, flags, state, counts in life:
        payload = b"hello" if "P" in flags or conn.proto == "udp" else b""
        getattr(conn, side)(flags, payload)
        assert states(conn.rig) == [state], (side, flags)
        dest = the_dest(conn.rig)
        assert (dest.actconns, dest.inactconns) == counts, (side, flags)


def ends_after(conn: Conn, seconds: int) -> None:
    """Alive until a second before its time, gone a second after, with all that it held."""
    rig = conn.rig
    assert rig.advance((seconds - 1) * 1000, step=1000) == []
    assert len(states(rig)) == 1
    assert rig.advance(2000) == []
    assert states(rig) == []
    dest = the_dest(rig)
    assert (dest.actconns, dest.inactconns) == (0, 0)
    assert rig.advance(10_000) == []  # the sweep forgets a pool of which no port is in use
    assert len(rig.director.ipvs.life.pools) == 0
    assert rig.director.ipvs.conns.count == 0
    assert rig.counters() == conn.counted(CONN_EXPIRED=1)


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_tcp(net: Net, mode: str, life) -> None:
    rig = Rig(balanced(net, "tcp", mode))
    conn = Conn(rig, net, "tcp", mode)
    play(conn, life)
    assert rig.counters() == conn.counted()
    ends_after(conn, SECONDS[life[-1][2]])


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("life", ["client-closes", "dest-closes"])
def test_timeout_after_each_state(life: str, steps: int) -> None:
    rig = Rig(balanced(V4))
    conn = Conn(rig, V4)
    rows = LIVES[life][:steps]
    play(conn, rows)
    ends_after(conn, SECONDS[rows[-1][2]])


DR_LIFE = (
    ("up", "S", "SYN_RECV", (0, 1)),
    ("up", "A", "ESTABLISHED", (1, 0)),
    ("up", "PA", "ESTABLISHED", (1, 0)),
    ("up", "FA", "FIN_WAIT", (0, 1)),
    ("up", "A", "FIN_WAIT", (0, 1)),
)


@pytest.mark.parametrize("steps", range(1, 6))
def test_tcp_dr(net: Net, steps: int) -> None:
    rig = Rig(balanced(net, "tcp", "dr"))
    conn = Conn(rig, net, "tcp", "dr")
    play(conn, DR_LIFE[:steps])
    ends_after(conn, SECONDS[DR_LIFE[steps - 1][2]])


UDP_LIFE = (
    ("up", "", "ONEWAY", (0, 1)),
    ("up", "", "ONEWAY", (0, 1)),
    ("down", "", "NORMAL", (0, 1)),
    ("up", "", "NORMAL", (0, 1)),
)


@pytest.mark.parametrize("steps", range(1, 5))
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_udp(net: Net, mode: str, steps: int) -> None:
    rig = Rig(balanced(net, "udp", mode))
    conn = Conn(rig, net, "udp", mode)
    play(conn, UDP_LIFE[:steps])
    ends_after(conn, SECONDS[UDP_LIFE[steps - 1][2]])


def test_udp_dr(net: Net) -> None:
    rig = Rig(balanced(net, "udp", "dr"))
    conn = Conn(rig, net, "udp", "dr")
    play(conn, UDP_LIFE[:2])
    ends_after(conn, 300)


def test_traffic_keeps_a_conn_alive(net: Net) -> None:
    rig = Rig(balanced(net))
    conn = Conn(rig, net).establish()
    for _ in range(3):
        rig.advance(899_000, step=1000)
        conn.down("PA", b"still here")
    assert states(rig) == ["ESTABLISHED"]
    ends_after(conn, 900)


def test_a_lost_reset_from_the_client_does_not_close_a_half_open_conn(net: Net) -> None:
    """INPUT, rst, SYN_RECV stays: anybody could have sent it (semantics 1.2)."""
    rig = Rig(balanced(net))
    conn = Conn(rig, net)
    conn.up("S")
    conn.up("R")
    assert states(rig) == ["SYN_RECV"]
    assert rig.counters() == conn.counted()


def test_dpvs_profile_and_overrides(net: Net) -> None:
    extra = '\n{"kind":"timeouts","profile":"dpvs","tcp_close_s":4}'
    rig = Rig(balanced(net, timeouts={"tcp_established_s": 20}) + extra)
    conn = Conn(rig, net).establish()
    rig.advance(19_000)
    conn.up("A")
    rig.advance(19_000)
    assert states(rig) == ["ESTABLISHED"]
    conn.up("R")
    ends_after(conn, 4)


def test_the_segment_travels_untouched_but_for_its_tuple(net: Net) -> None:
    rig = Rig(balanced(net))
    conn = Conn(rig, net)
    fields: dict[str, Any] = {
        "seq": 0xFFFFFFF0,
        "window": 1234,
        "urgent": 7,
        "options": b"\1\1\4\2",
    }
    header = {"tos": 0x1B, "flow": 0x12345} if net.af == 6 else {"tos": 0x1B, "ident": 0xBEEF}
    seen = conn.up("SEC", b"", tcp(seq=0xFFFFFFF0, window=1234, flags="SEC"), ip=header, **fields)
    original = conn.frame(conn.outside, "SEC", b"", False, ip=header, **fields)
    kept = seen.data[24:]
    # What may differ: TTL, addresses, ports and the two checksums.
    free = {8, 10, 11, *range(12, 20)} if net.af == 4 else {7, *range(8, 40)}
    l4 = 20 if net.af == 4 else 40
    free |= {*range(l4, l4 + 4), l4 + 16, l4 + 17}
    assert {i for i in range(len(kept)) if kept[i] != original[14 + i]} <= free


def test_two_clients_share_nothing(net: Net) -> None:
    rig = Rig(balanced(net))
    first, second = Conn(rig, net).establish(), Conn(rig, net, caddr=net.nowhere).establish()
    third = Conn(rig, net, cport=40001).establish()
    assert len({first.lport, second.lport, third.lport}) == 3
    second.up("R")
    assert states(rig) == ["ESTABLISHED", "CLOSE", "ESTABLISHED"]
    first.down("PA", b"to the first")
    third.down("PA", b"to the third")
