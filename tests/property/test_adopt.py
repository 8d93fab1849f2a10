"""A worker killed at any moment: its successor finds every conn that was whole, and no other.

Uncompiled, the memory is copied before each line that touches a conn, which is finer than any kill
that a test could time; compiled, between two frames.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

import tunlb
from tests.flow.kit import V4, V6, Conn, Net, Rig, dest, dropped, network, service, text
from tunlb.director import Director
from tunlb.ipvs import conn as c
from tunlb.testing.audit import audit
from tunlb.testing.flow import Memory, make_director
from tunlb.testing.frames import vnet

COMPILED = tunlb.build() == "compiled"
ROOMS = (
    *("conn.py", "life.py", "core.py", "birth.py", "transmit.py", "persist.py", "resets.py"),
    *("ops.py", "laddr.py", "fnat.py", "nat.py", "dr.py", "rewrite.py"),
)
NETS = pytest.mark.parametrize("net", [V4, V6], ids=["v4", "v6"])
MODES = pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])


def config(net: Net, mode: str, **keys: Any) -> str:
    return text(*network(net), service(net, mode=mode, **keys), dest(net, mode))


def keys(director: Director) -> set[bytes]:
    """What tells conns apart: both keys, ports and the protocol of every row in use."""
    mem = director.ipvs.conns.mem
    return {
        bytes(mem[row * c.ROW_SIZE : row * c.ROW_SIZE + 73]) for row in director.ipvs.conns.rows()
    }


def moments(memory: Memory, act: Callable[[], object]) -> list[Memory]:
    """The memory as a kill would leave it at each moment of ``act``, without repetitions."""
    seen: dict[bytes, Memory] = {bytes(memory.conns): memory.copy()}

    def look() -> None:
        state = bytes(memory.conns)
        if state not in seen:
            seen[state] = memory.copy()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(ROOMS):
            return None
        look()
        return trace

    if COMPILED:  # it has no lines to stop at
        act()
    else:
        sys.settrace(trace)
        try:
            act()
        finally:
            sys.settrace(None)
    look()
    return list(seen.values())


def adopted(config_text: str, memory: Memory, now: int) -> Director:
    director = make_director(config_text, memory=memory)
    director.start(now)
    director.adopt(now)
    return director


def survive(config_text: str, memory: Memory, rig: Rig, act: Callable[[], object]) -> int:
    """Kill at every moment of ``act``: what is there before and after it is always there."""
    before = keys(rig.director)
    left = moments(memory, act)
    after = keys(rig.director)
    for state in left:
        director = adopted(config_text, state, rig.now)
        found = keys(director)
        assert before & after <= found <= before | after
        audit(director)
    return len(left)


@NETS
@MODES
def test_a_conn_is_born(net: Net, mode: str) -> None:
    lines, memory = config(net, mode), Memory(64)
    rig = Rig(lines, memory=memory)
    others = [Conn(rig, net, mode=mode, cport=40000 + i) for i in range(3)]
    for other in others:
        other.up("S")
    fresh = Conn(rig, net, mode=mode, cport=50000)
    killed = survive(lines, memory, rig, lambda: fresh.up("S"))
    assert COMPILED or killed > 20  # it was looked at while it was half written


@NETS
@MODES
def test_packets_pass(net: Net, mode: str) -> None:
    lines, memory = config(net, mode), Memory(64)
    rig = Rig(lines, memory=memory)
    conn = Conn(rig, net, mode=mode)
    for flags in ("S", "A", "PA", "FA", "R"):
        survive(lines, memory, rig, partial(conn.up, flags))
        if mode != "dr" and flags != "R":
            survive(lines, memory, rig, partial(conn.down, flags))


@NETS
@MODES
def test_a_conn_ends(net: Net, mode: str) -> None:
    lines, memory = config(net, mode), Memory(64)
    rig = Rig(lines, memory=memory)
    conns = [Conn(rig, net, mode=mode, cport=40000 + i) for i in range(5)]
    for conn in conns:
        conn.up("S")
    for row in (2, 0, 4):
        survive(lines, memory, rig, partial(rig.director.ipvs.life.end, row))


@NETS
@MODES
def test_ports_are_used_again(net: Net, mode: str) -> None:
    """A SYN on a closed conn ends it and makes another with the same key."""
    lines, memory = config(net, mode), Memory(64)
    rig = Rig(lines, memory=memory)
    conn = Conn(rig, net, mode=mode)
    conn.up("S")
    conn.up("R")
    conn.lport = 0 if mode == "fnat" else conn.lport
    survive(lines, memory, rig, lambda: conn.up("S"))


@NETS
def test_the_table_is_full(net: Net) -> None:
    lines, memory = config(net, "fnat"), Memory(16)
    rig = Rig(lines, memory=memory)
    for i in range(16):
        Conn(rig, net, cport=40000 + i).up("S")
    survive(lines, memory, rig, lambda: Conn(rig, net, cport=50000).up("S"))


@NETS
@MODES
def test_a_conn_goes_on_as_if_nothing_had_been(net: Net, mode: str) -> None:
    """State, checksums, lport, timeout and counters are those of the conn before."""
    lines, memory = config(net, mode), Memory(64)
    rig = Rig(lines, memory=memory)
    conn = Conn(rig, net, mode=mode)
    conn.up("S")
    if mode != "dr":
        conn.down("SA")
    conn.up("A")
    first = adopted(lines, memory.copy(), rig.now)
    assert (first.ipvs.conns.count, first.ipvs.dests[0].actconns) == (1, 1)
    conn.rig = Rig(lines, memory=memory, now=rig.now)
    conn.rig.director.adopt(conn.rig.now)
    conn.up("PA", b"still")
    if mode != "dr":
        conn.down("PA", b"here")
    conn.rig.advance(899_000, step=1000)
    assert conn.rig.director.ipvs.conns.count == 1
    conn.rig.advance(3000, step=250)
    assert conn.rig.director.ipvs.conns.count == 0
    assert conn.rig.director.counters.snapshot()["CONN_EXPIRED"] == 1


@NETS
def test_a_successor_that_waited_finds_what_was_born_meanwhile(net: Net) -> None:
    """In an upgrade the next worker is made while the last one still forwards."""
    lines, memory = config(net, "fnat"), Memory(64)
    rig = Rig(lines, memory=memory)
    Conn(rig, net).up("S")
    later = Rig(lines, memory=memory, now=rig.now)
    Conn(rig, net, cport=40001).up("S")
    assert later.director.adopt(rig.now) == (2, 0)


@NETS
def test_what_was_due_meanwhile_ends_at_once(net: Net) -> None:
    lines, memory = config(net, "fnat"), Memory(64)
    rig = Rig(lines, memory=memory)
    Conn(rig, net).up("S")
    director = adopted(lines, memory, rig.now + 3_600_000)
    assert director.ipvs.conns.count == 1
    director.tick(rig.now + 3_600_500)
    assert director.ipvs.conns.count == 0


SPOILS = {
    "proto": (c.B_PROTO, 17 + 1),
    "state": (c.B_STATE, 200),
    "fwdmode": (c.B_FWDMODE, 1),
    "no such fwdmode": (c.B_FWDMODE, 250),
    "family": (c.B_AF, 9),
    "dest": (4 * c.D_DEST, 77),
    "no such dest": (4 * c.D_DEST + 3, 255),
    "flags": (2 * c.H_FLAGS, c.VALID | c.ONEWAY),
    "not valid": (2 * c.H_FLAGS, 0),
    "daddr": (8 * (c.Q_KEY + 5), 0x99),
    "dport": (4 * c.D_PORTS + 4 + 2, 0x99),
}


@NETS
@pytest.mark.parametrize("spoilt", SPOILS)
def test_a_row_that_makes_no_sense_is_dropped(net: Net, spoilt: str) -> None:
    """And nothing else is: its neighbour is kept, and its place is used again."""
    lines, memory = config(net, "fnat"), Memory(64)
    rig = Rig(lines, memory=memory)
    for i in range(2):
        Conn(rig, net, cport=40000 + i).up("S")
    offset, value = SPOILS[spoilt]
    memory.conns[c.HEADER_SIZE + offset] = value
    after = Rig(lines, memory=memory, now=rig.now)
    kept = after.director.adopt(rig.now)
    assert kept.kept == 1
    assert kept.dropped == (0 if spoilt == "not valid" else 1)
    Conn(after, net, cport=40001).up("S")
    Conn(after, net, cport=40002).up("S")
    assert list(after.director.ipvs.conns.rows()) == [0, 1]


@NETS
def test_two_rows_with_one_lport_are_one_too_many(net: Net) -> None:
    lines, memory = config(net, "fnat"), Memory(64)
    rig = Rig(lines, memory=memory)
    for i in range(2):
        Conn(rig, net, cport=40000 + i).up("S")
    words = memoryview(memory.conns)[c.HEADER_SIZE :].cast("I")
    words[32 + c.D_PORTS + 1] = words[c.D_PORTS + 1]
    director = adopted(lines, memory, rig.now)
    assert director.ipvs.conns.count == 1
    audit(director)


@NETS
def test_a_dest_that_drains_goes_on_draining(net: Net) -> None:
    """The successor replays the configurations: the time counts from the first one's reload."""
    both, memory = config(net, "fnat", drain_s=60), Memory(64)
    none = text(*network(net), service(net, mode="fnat", drain_s=60))
    rig = Rig(both, memory=memory)
    conn = Conn(rig, net)
    conn.up("S")
    reloaded = rig.now
    rig.reload(none)
    rig.advance(30_000, step=1000)
    later = Rig(both, memory=memory, now=reloaded)
    later.reload(none)
    later.now = rig.now
    assert later.director.adopt(later.now).kept == 1
    conn.rig = later
    conn.up("S")
    later.advance(34_000, step=1000)
    dropped(later, "wan", vnet(conn.frame(conn.outside, "S", b"", False)), "DEST_GONE")
    assert later.director.ipvs.conns.count == 0
