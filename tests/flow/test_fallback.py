"""The stateless fallback: a director goes on with conns whose SYN another one saw."""

from __future__ import annotations

import pytest

from tests.flow.kit import (
    V4,
    V6,
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
from tunlb.testing.frames import vnet

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
