"""The stateless fallback: a director goes on with conns whose SYN another one saw."""

from __future__ import annotations

import pytest

from tests.flow.fragmenting import cut, joined
from tests.flow.kit import (
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Conn,
    Net,
    Rig,
    balanced,
    counted,
    dest,
    dropped,
    network,
    service,
    states,
    text,
)
from tunlb.counters import Event
from tunlb.hook import Verdict
from tunlb.ipvs.conn import H_FLAGS, RESETS
from tunlb.testing.checkers import check, ip
from tunlb.testing.flow import Memory
from tunlb.testing.frames import eth, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment

NETS = pytest.mark.parametrize("net", [V4, V6], ids=["v4", "v6"])
STATELESS = pytest.mark.parametrize("scheduler", ["mh", "sh", "conhash", "dh"])


def directors(config: str) -> tuple[Rig, Rig]:
    return Rig(config), Rig(config)


def over_to(rig: Rig, conn: Conn, net: Net, mode: str) -> Conn:
    """The same conn, seen through another director from now on."""
    return Conn(rig, net, mode=mode, caddr=conn.caddr, daddr=conn.daddr)


def two_dests(net: Net, mode: str, scheduler: str) -> str:
    return text(
        *network(net),
        service(net, "tcp", mode, scheduler=scheduler, fallback=True),
        dest(net, mode),
        dest(net, mode, daddr=net.dest2),
    )


def client(net: Net, number: int) -> str:
    """One of many clients behind the router: most of these schedulers look at no port."""
    return f"{net.remote.removesuffix('7')}{10 + number}"


def born(rig: Rig, net: Net, mode: str, number: int) -> Conn:
    """A conn to whichever dest its scheduler picks."""
    for daddr in (net.dest, net.dest2):
        conn = Conn(rig, net, mode=mode, caddr=client(net, number), daddr=daddr)
        frame = conn.frame(conn.outside, "S", b"", False)
        _, sent = rig.receive("wan", vnet(frame))
        if conn.dest_mac in sent[0].frame[10:16].hex(":"):
            return conn
    raise AssertionError("no dest took it")


@NETS
@STATELESS
@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_another_director_sends_it_to_the_same_dest(net: Net, mode: str, scheduler: str) -> None:
    first, second = directors(two_dests(net, mode, scheduler))
    for number in range(16):
        conn = born(first, net, mode, number)
        there = over_to(second, conn, net, mode)
        there.up("PA", b"from the middle")  # verifies that it goes to the dest of `conn`
    assert states(second) == ["ESTABLISHED"] * 16
    assert second.director.counters.event(Event.CONN_RESUMED) == 16


@NETS
def test_counters_of_a_resumed_conn(net: Net) -> None:
    rig = Rig(balanced(net, "tcp", "nat", scheduler="mh", fallback=True))
    conn = Conn(rig, net, mode="nat")
    conn.up("A")
    conn.down("PA", b"and back")
    assert rig.counters() == conn.counted(CONN_NEW=-1, CONN_RESUMED=1)


@NETS
@pytest.mark.parametrize(("flags", "state"), [("FA", "CLOSE_WAIT"), ("PA", "ESTABLISHED")])
def test_a_resumed_conn_is_tracked_from_there(net: Net, flags: str, state: str) -> None:
    rig = Rig(balanced(net, "tcp", "nat", scheduler="mh", fallback=True))
    Conn(rig, net, mode="nat").up(flags)
    assert states(rig) == [state]


@NETS
def test_the_dest_may_be_the_first_to_speak(net: Net) -> None:
    """Its data or its retransmissions pass before the client says anything."""
    rig = Rig(balanced(net, "tcp", "nat", scheduler="mh", fallback=True))
    conn = Conn(rig, net, mode="nat")
    conn.down("PA", b"an answer")
    conn.up("A")
    assert states(rig) == ["ESTABLISHED"]
    assert rig.counters() == conn.counted(CONN_NEW=-1, CONN_RESUMED=1)


@NETS
@pytest.mark.parametrize("vport", ["8000-8099", 0], ids=["a range", "any port"])
def test_a_dest_that_keeps_the_port(net: Net, vport: str | int) -> None:
    line = dest(net, "nat")
    del line["dport"]
    lines = service(net, "tcp", "nat", scheduler="mh", fallback=True, vport=vport)
    rig = Rig(text(*network(net), lines, line))
    Conn(rig, net, mode="nat", vport=8050, dport=8050).down("A")
    assert states(rig) == ["ESTABLISHED"]


@NETS
def test_a_dest_whose_client_is_another_ones_is_routed(net: Net) -> None:
    """What the client's own packets would not come back to is no conn of this service."""
    rig = Rig(two_dests(net, "nat", "mh"))
    took = {(conn := born(rig, net, "nat", number)).daddr: conn for number in range(16)}
    assert set(took) == {net.dest, net.dest2}
    fresh = Rig(two_dests(net, "nat", "mh"))
    wrong = Conn(fresh, net, mode="nat", caddr=took[net.dest].caddr, daddr=net.dest2)
    fresh.receive("lan", vnet(wrong.frame(wrong.inside, "A", b"", True)))
    assert states(fresh) == []
    assert fresh.counters() == {"FORWARDED": 1}


@NETS
@pytest.mark.parametrize("flags", ["SA", "R", "RA", "F", ""], ids=lambda flags: flags or "none")
def test_what_is_no_middle_of_a_conn(net: Net, flags: str) -> None:
    rig = Rig(balanced(net, "tcp", "nat", scheduler="mh", fallback=True))
    conn = Conn(rig, net, mode="nat")
    dropped(rig, "wan", vnet(conn.frame(conn.outside, flags, b"", False)), "TCP_NOT_SYN")
    assert states(rig) == []


@NETS
def test_without_the_option(net: Net) -> None:
    rig = Rig(balanced(net, "tcp", "nat", scheduler="mh"))
    conn = Conn(rig, net, mode="nat")
    dropped(rig, "wan", vnet(conn.frame(conn.outside, "A", b"", False)), "TCP_NOT_SYN")


@NETS
def test_a_director_that_stops_still_goes_on_with_old_conns(net: Net) -> None:
    rig = Rig(balanced(net, "tcp", "nat", scheduler="mh", fallback=True))
    rig.director.ipvs.birth.quiescent = True
    Conn(rig, net, mode="nat").up("A")
    assert states(rig) == ["ESTABLISHED"]


@NETS
def test_a_dest_without_weight_is_nobodys(net: Net) -> None:
    lines = service(net, "tcp", "nat", scheduler="mh", fallback=True)
    rig = Rig(text(*network(net), lines, dest(net, "nat", weight=0)))
    conn = Conn(rig, net, mode="nat")
    rig.receive("wan", vnet(conn.frame(conn.outside, "A", b"", False)))
    assert states(rig) == []
    rig.receive("lan", vnet(conn.frame(conn.inside, "A", b"", True)))
    assert states(rig) == []
    assert rig.counters() == counted(FORWARDED=1, drop_NO_DEST=1, ICMP_ERRORS_SENT=1)


@NETS
def test_a_reload_keeps_and_drops_the_option(net: Net) -> None:
    with_it = balanced(net, "tcp", "nat", scheduler="mh", fallback=True)
    without = balanced(net, "tcp", "nat", scheduler="mh")
    rig = Rig(with_it)
    rig.reload(without)
    conn = Conn(rig, net, mode="nat")
    rig.receive("lan", vnet(conn.frame(conn.inside, "A", b"", True)))
    assert states(rig) == []
    rig.reload(with_it)
    rig.reload(with_it + "\n")  # unchanged lines keep their objects
    conn.down("A")
    assert states(rig) == ["ESTABLISHED"]


# -- a full table

FULL = 32


def flood(rig: Rig, net: Net, mode: str, count: int, first: int = 1) -> None:
    """Bare ACKs of conns that nobody knows, each from a client of its own."""
    for number in range(first, first + count):
        conn = Conn(rig, net, mode=mode, cport=number)
        verdict, _ = rig.receive("wan", vnet(conn.frame(conn.outside, "A", b"", False)))
        assert verdict == Verdict.ACCEPT


@NETS
@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_a_flood_of_acks_pushes_out_itself_alone(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, "tcp", mode, scheduler="mh", fallback=True), conn_max=FULL)
    known = [Conn(rig, net, mode=mode, cport=60000 + n).establish() for n in range(4)]
    moved = [Conn(rig, net, mode=mode, cport=61000 + n) for n in range(4)]
    for conn in moved:
        conn.up("A", b"x")
        if mode == "nat":
            conn.down("A", b"y")
    flood(rig, net, mode, 5 * FULL)
    conns = rig.director.ipvs.conns
    assert conns.count == FULL
    kept = [*known, *moved] if mode == "nat" else known
    before = rig.counters()["CONN_RESUMED"]
    for conn in kept:
        conn.up("A", b"still here")
    assert rig.counters()["CONN_RESUMED"] == before
    # A client that connects finds room, and so does a conn of the others: each is there again
    # with its next packet.
    Conn(rig, net, mode=mode, cport=62000).establish()
    for conn in moved:
        conn.up("A", b"me too")
    assert "drop.CONN_TABLE_FULL" not in rig.counters()


@NETS
def test_what_both_sides_spoke_on_is_as_good_as_any(net: Net) -> None:
    """And when a worker that dies leaves them."""
    memory = Memory(FULL)
    config = balanced(net, "tcp", "nat", scheduler="mh", fallback=True)
    rig = Rig(config, memory=memory)
    flood(rig, net, "nat", FULL - 1)
    moved = Conn(rig, net, mode="nat", cport=61000)
    moved.up("A")
    moved.down("A")
    second = Rig(config, memory=memory.copy(), now=rig.now)
    second.director.adopt(second.now)
    flood(second, net, "nat", 3 * FULL, first=1000)
    moved.rig = second
    before = second.counters()["CONN_RESUMED"]
    moved.down("A", b"still here")
    assert second.counters()["CONN_RESUMED"] == before == 3 * FULL


@NETS
@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_two_directors_that_do_not_agree_about_the_dests(net: Net, mode: str) -> None:
    """One has heard of a dest more: few conns move, and none of those of other dests."""
    lines = [*network(net), service(net, "tcp", mode, scheduler="mh", fallback=True)]
    one = dest(net, mode)
    rig = Rig(text(*lines, one))
    other = Rig(text(*lines, one, dest(net, mode, daddr=net.dest2)))
    stayed = 0
    for number in range(64):
        conn = born(rig, net, mode, number)
        frame = conn.frame(conn.outside, "A", b"", False)
        _, sent = other.receive("wan", vnet(frame))
        stayed += conn.dest_mac == sent[0].frame[10:16].hex(":")
    assert 16 < stayed < 48, "half of them belong to the other one now"


@NETS
def test_a_segment_in_fragments_goes_on(net: Net) -> None:
    rig = Rig(balanced(net, "tcp", "nat", scheduler="mh", fallback=True))
    data = bytes(range(256)) * 12
    whole = packet(net.remote, net.vip, segment(40000, 80, data, flags="A"))
    parts = [vnet(eth(WAN_MAC, ROUTER_MAC, payload=part)) for part in cut(whole)]
    sent = rig.send("wan", parts[::-1])
    assert check(joined([one.frame for one in sent]), ip(daddr=net.dest)).payload == data
    assert states(rig) == ["ESTABLISHED"]


@NETS
def test_a_dest_that_spoke_first_is_reset_in_the_end(net: Net) -> None:
    """As every conn of such a service is."""
    keys = {"scheduler": "mh", "fallback": True, "reset_on_expire": True}
    rig = Rig(balanced(net, "tcp", "nat", **keys))
    conn = Conn(rig, net, mode="nat")
    conn.down("PA", b"an answer")
    conn.up("A")
    (row,) = rig.director.ipvs.conns.rows()
    assert rig.director.ipvs.conns.mem.cast("H")[row * 64 + H_FLAGS] & RESETS
