"""Every scheduler forwards, in both families; what some do with conns' states; a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.flow.kit import (
    ROUTER_MAC,
    WAN_MAC,
    Conn,
    Net,
    Rig,
    balanced,
    counted,
    dest,
    network,
    one,
    service,
    text,
    the_dest,
)
from tunlb.hook import Verdict
from tunlb.ipvs import sched
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.scheduler import Scheduler
from tunlb.packet import Packet
from tunlb.testing.checkers import check, ip, tcp
from tunlb.testing.frames import eth, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.parser import Ip

each = pytest.mark.parametrize("name", sched.names())


class Last(Scheduler):
    """The last valid dest of the list."""

    def schedule(self, pkt: Packet, now: int) -> Dest | None:
        return next((dest for dest in reversed(self.dests) if dest.valid()), None)


LAST = f"{__name__}:Last"


def two(net: Net, name: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    """A configuration of two dests with these keys."""
    lines = [service(net, scheduler=name), dest(net, **first), dest(net, daddr=net.dest2, **second)]
    return text(*network(net), *lines)


def syn(net: Net, cport: int) -> bytes:
    body = packet(net.remote, net.vip, segment(cport, 80, flags="S"))
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))


def went_to(rig: Rig, net: Net, cport: int) -> str:
    """Where the conn of a new client port goes; "" for port unreachable."""
    verdict, sent = rig.receive("wan", syn(net, cport))
    if verdict == Verdict.DROP:
        check(sent[0].frame, ip(saddr=net.vip, daddr=net.remote))
        return ""
    frame = check(one((verdict, sent)).frame, ip(saddr=net.laddr, ttl=63), tcp(dport=8080))
    header = frame.find(Ip)
    assert isinstance(header, Ip)
    return header.daddr


@each
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_every_scheduler_forwards(net: Net, proto: str, name: str) -> None:
    rig = Rig(balanced(net, proto, scheduler=name))
    conns = [Conn(rig, net, proto, cport=cport).establish() for cport in (100, 101)]
    for conn in conns:
        conn.up("PA", b"question")
        conn.down("PA", b"answer")
    assert rig.counters() == counted(*conns)


@each
def test_every_scheduler_follows_a_reload(net: Net, name: str) -> None:
    rig = Rig(two(net, name, {}, {}))
    picked = [went_to(rig, net, cport) for cport in range(100, 116)]
    assert set(picked) <= {net.dest, net.dest2}
    for address in (net.dest, net.dest2):
        assert the_dest(rig, address).load() == picked.count(address)
    rig.reload(two(net, name, {"weight": 0}, {}))
    assert {went_to(rig, net, cport) for cport in range(200, 216)} == {net.dest2}
    rig.reload(two(net, name, {"weight": 3}, {"weight": 0}))
    assert {went_to(rig, net, cport) for cport in range(300, 316)} == {net.dest}
    rig.reload(two(net, name, {"weight": 0}, {"weight": 0}))
    assert went_to(rig, net, 400) == ""
    assert rig.counters()["CONN_NEW"] == 48


@each
def test_one_scheduler_becomes_another(net: Net, name: str) -> None:
    rig = Rig(two(net, "wrr", {}, {}))
    assert went_to(rig, net, 100) == net.dest
    rig.reload(two(net, name, {"weight": 0}, {}))
    assert went_to(rig, net, 101) == net.dest2
    assert type(next(iter(rig.director.services())).scheduler) is sched.find(name)
    rig.reload(two(net, "rr", {}, {}))
    assert {went_to(rig, net, 102), went_to(rig, net, 103)} == {net.dest, net.dest2}


def test_failover_and_back(net: Net) -> None:
    rig = Rig(two(net, "fo", {"weight": 1}, {"weight": 2, "max_conn": 2}))
    first = Conn(rig, net, cport=100, daddr=net.dest2).establish()
    assert [went_to(rig, net, cport) for cport in (101, 102)] == [net.dest2, net.dest]
    first.up("R")
    rig.advance(11_000)
    assert went_to(rig, net, 103) == net.dest2


def test_overflow_counts_established_conns(net: Net) -> None:
    rig = Rig(two(net, "ovf", {"weight": 1}, {"weight": 2}))
    # Half-open conns are not active yet: they all go to the same dest.
    assert {went_to(rig, net, cport) for cport in range(50, 60)} == {net.dest2}
    for cport in (100, 101, 102):
        Conn(rig, net, cport=cport, daddr=net.dest2).establish()
    for cport in (103, 104):
        Conn(rig, net, cport=cport, daddr=net.dest).establish()
    assert went_to(rig, net, 105) == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # (active + 1) / weight of (1, 3): 1/1 or 1/3, then 2/3, then 3/3, where the first one wins
        ("sed", [2, 2, 1, 2, 2, 2, 1]),
        # each has one before any has two; then as sed
        ("nq", [1, 2, 2, 2, 2, 2, 1]),
    ],
)
def test_delays_follow_established_conns(net: Net, name: str, expected: list[int]) -> None:
    rig = Rig(two(net, name, {"weight": 1}, {"weight": 3}))
    for cport, number in enumerate(expected, start=100):
        Conn(rig, net, cport=cport, daddr=(net.dest, net.dest2)[number - 1]).establish()


@pytest.mark.parametrize("name", ["sh", "mh", "conhash"])
def test_a_client_keeps_its_dest(net: Net, name: str) -> None:
    rig = Rig(two(net, name, {}, {}))
    assert len({went_to(rig, net, cport) for cport in range(100, 116)}) == 1


def test_a_scheduler_of_a_users_own(net: Net) -> None:
    rig = Rig(two(net, LAST, {}, {}))
    assert {went_to(rig, net, cport) for cport in range(100, 104)} == {net.dest2}
    rig.reload(two(net, LAST, {}, {"weight": 0}))
    assert went_to(rig, net, 104) == net.dest
    rig.reload(two(net, "rr", {}, {}))
    assert {went_to(rig, net, 105), went_to(rig, net, 106)} == {net.dest, net.dest2}
    rig.reload(two(net, LAST, {}, {}))
    assert went_to(rig, net, 107) == net.dest2


class Picky(Last):
    """Does not stand a quiescent dest: in `update`, or, when there are two, in `prepare`."""

    def prepare(self, dests: list[Dest], weights: list[int]) -> Iterator[None]:
        if weights.count(0) == 2:
            raise RuntimeError("prepare")
        yield

    def update(self, dests: list[Dest]) -> None:
        if any(dest.weight == 0 for dest in dests):
            raise RuntimeError("update")
        super().update(dests)


@pytest.mark.parametrize(
    ("weights", "errors"),
    [((1, 0), ["update"]), ((0, 0), ["prepare", "update"])],
    ids=["one", "both"],
)
def test_one_that_does_not_stand_its_dests(
    net: Net, weights: tuple[int, int], errors: list[str]
) -> None:
    """It is told to whoever listens, the worker goes on, and a better configuration mends it."""
    told: list[str] = []
    rig = Rig(
        two(net, f"{__name__}:Picky", {}, {}), on_error=lambda who, error: told.append(str(error))
    )
    assert went_to(rig, net, 100) == net.dest2
    first, second = ({"weight": weight} for weight in weights)
    rig.reload(two(net, f"{__name__}:Picky", first, second))
    assert told == errors
    assert rig.counters()["HOOK_ERRORS"] == len(errors)
    went_to(rig, net, 101)
    rig.reload(two(net, f"{__name__}:Picky", {}, {}))
    assert told == errors
    assert went_to(rig, net, 102) == net.dest2


def test_it_keeps_what_it_knows_across_a_reload(net: Net) -> None:
    rig = Rig(two(net, LAST, {}, {}))
    before = next(iter(rig.director.services())).scheduler
    rig.reload(two(net, LAST, {"weight": 5}, {}))
    assert next(iter(rig.director.services())).scheduler is before
