"""Several workers, each with templates of its own, choose as one."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.flow.kit import V4, Conn, Net, dest, network, service, text
from tests.flow.test_workers import COUNT, Anywhere
from tunlb.ipvs.persist import HOLD
from tunlb.testing.audit import audit_templates
from tunlb.testing.checkers import check
from tunlb.testing.flow import Rig
from tunlb.testing.frames import vnet
from tunlb.testing.parser import Ip

PERSISTENCE_S = 100


def config(net: Net, **keys: Any) -> str:
    keys = {"persistence_s": PERSISTENCE_S, **keys}
    both = dest(net), dest(net, daddr=net.dest2)
    return text(*network(net), service(net, **keys), *both)


def client(net: Net, number: int) -> str:
    return f"198.51.100.{number}" if net.af == 4 else f"2001:db8::{number:x}"


def daddr_of(rig: Anywhere, net: Net, caddr: str, cport: int, flags: str = "S") -> str:
    probe = Conn(rig, net, caddr=caddr, cport=cport)  # type: ignore[arg-type]
    _, sent = rig.receive("wan", vnet(probe.frame(probe.outside, flags, b"", False)))
    found = check(sent[0].frame).find(Ip)
    assert isinstance(found, Ip)
    return found.daddr


def rigs(anywhere: Anywhere) -> list[Rig]:
    return anywhere.workers.rigs


def holders(anywhere: Anywhere) -> int:
    """How many workers have a template."""
    return sum(rig.director.ipvs.life.templates > 0 for rig in rigs(anywhere))


def open_everywhere(anywhere: Anywhere, net: Net, caddr: str, start: int = 1000) -> set[str]:
    """Conns of one client at every worker, established; where they went."""
    found = {daddr_of(anywhere, net, caddr, start + i) for i in range(30)}
    for i in range(30):
        daddr_of(anywhere, net, caddr, start + i, "A")
    assert holders(anywhere) == COUNT
    return found


@pytest.mark.parametrize("fwdmode", ["fnat", "nat"])
def test_every_worker_sends_a_client_to_the_same_dest(net: Net, fwdmode: str) -> None:
    rig = Anywhere(config(net, fwdmode=fwdmode))
    dests = set()
    for number in range(1, 9):
        found = open_everywhere(rig, net, client(net, number))
        assert len(found) == 1
        dests |= found
    assert dests == {net.dest, net.dest2}
    assert not [name for name in rig.counters() if name.startswith("drop.")]
    # Whose home it is needs not ask; the others do so once, but for those in flight.
    assert 0 < rig.counters()["TEMPLATE_ASKED"] <= 8 * (COUNT - 1)
    for one in rigs(rig):
        audit_templates(one.director)


def test_networks_have_one_home(net: Net) -> None:
    rig = Anywhere(config(net, persistence_mask=24 if net.af == 4 else 64))
    found = {daddr_of(rig, net, client(net, 1 + i), 1000 + i) for i in range(60)}
    assert len(found) == 1


def test_a_home_remembers_for_the_others(net: Net) -> None:
    """A client that speaks to one worker only, for long; then to the others."""
    for number in range(1, 7):
        rig = Anywhere(config(net, timeouts={"tcp_established_s": 10_000}))
        caddr = client(net, number)
        probe = Conn(rig, net, caddr=caddr, cport=77)  # type: ignore[arg-type]
        at_first = daddr_of(rig, net, caddr, 77)
        probe.daddr = at_first
        daddr_of(rig, net, caddr, 77, "A")
        daddr_of(rig, net, client(net, 99), 1)  # rr goes on
        rig.workers.advance(5 * PERSISTENCE_S * 1000, step=1000)
        assert open_everywhere(rig, net, caddr) == {at_first}


def test_what_nobody_uses_ends_everywhere(net: Net) -> None:
    rig = Anywhere(config(net, timeouts={"tcp_established_s": 5}))
    open_everywhere(rig, net, client(net, 1))
    rig.workers.advance((PERSISTENCE_S + 70) * 1000, step=1000)
    assert holders(rig) == 0
    assert rig.conns() == [0] * COUNT


def test_half_open_conns_leave_nothing_at_their_home(net: Net) -> None:
    rig = Anywhere(config(net, persistence_s=10_000, timeouts={"tcp_syn_recv_s": 5}))
    for number in range(1, 31):
        daddr_of(rig, net, client(net, number), 5)
    assert holders(rig) == COUNT
    rig.workers.advance(125_000, step=1000)
    assert holders(rig) == 0


def test_every_worker_may_die(net: Net) -> None:
    rig = Anywhere(config(net))
    caddr = client(net, 1)
    found = open_everywhere(rig, net, caddr)
    for worker in range(COUNT):
        rig.workers.kill(worker)
    assert open_everywhere(rig, net, caddr, 5000) == found


def test_a_home_without_an_answer_refuses(net: Net) -> None:
    lines = text(*network(net), service(net, persistence_s=5), dest(net, weight=0))
    rig = Anywhere(lines)
    for i in range(6):
        probe = Conn(rig, net, cport=100 + i)  # type: ignore[arg-type]
        rig.receive("wan", vnet(probe.frame(probe.outside, "S", b"", False)))
    assert rig.counters()["drop.NO_DEST"] == 6
    assert holders(rig) == 0


GOOD = (HOLD, 6, 80, 0, 50_000)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        bytes([HOLD]),
        bytes([HOLD]) * 43,
        bytes([HOLD]) * 44,
        bytes([HOLD]) + bytes(43),
        b"\x00" * 44,
        bytes([HOLD]) + b"\xff" * 43,
    ],
    ids=str,
)
def test_a_message_that_makes_no_sense_is_ignored(message: bytes) -> None:
    rig = Anywhere(config(V4))
    for one in rigs(rig):
        one.director.hear(message, one.now)
    assert holders(rig) == 0


@pytest.mark.parametrize(
    ("word", "value", "taken"),
    [
        (0, HOLD, True),
        (1, 17, False),
        (2, 81, False),
        (3, 1, True),
        (3, 2, False),
        (3, 0xFFFF_FFFF, False),
        (4, 0, False),
        (5, 1, False),
        (7, 1, False),
        (8, 1, False),
    ],
)
def test_a_message_is_believed_as_far_as_it_may_be_true(word: int, value: int, taken: bool) -> None:
    """As if it came from the wire: a worker has no privileges and may be in wrong hands."""
    hold = struct.Struct(">BBHIIQQQQ")
    rig = Anywhere(config(V4))
    vaddr, network_lo = 0xFFFF_0A00_0064, 0xFFFF_C633_6400
    words = [*GOOD, 0, network_lo, 0, vaddr]
    words[word] = value
    for one in rigs(rig):
        one.director.hear(hold.pack(*words), one.now)
        audit_templates(one.director)
    assert holders(rig) == (COUNT if taken else 0)
