"""`client_ip` "toa": the option in every segment until the dest has answered one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import Net, Rig, balanced, one
from tests.flow.talk import MSS, STAMPS, Talk, numbers, sack, talk, tcp_of, toa
from tunlb.testing.flow import Memory
from tunlb.testing.frames import GSO_TCPV4, GSO_TCPV6
from tunlb.testing.parser import Vnet, parse

FORGED = b"\xfe\x08\x00\x50\x0a\x00\x00\x01"


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_until_the_dest_answers(net: Net, mode: str) -> None:
    t = talk(net, "toa", mode)
    option = toa(net)
    syn = t.up("S", options=MSS + STAMPS)
    assert tcp_of(syn).options == MSS + STAMPS
    # The client leaves room from now on.
    answer = t.down("SA", options=MSS + STAMPS)
    assert tcp_of(answer).mss == 1460 - len(option)
    opened = t.up("A", options=STAMPS)
    assert (tcp_of(opened).options, numbers(opened, t)) == (option + STAMPS, (1, 1))
    data = t.up("PA", b"GET /", options=STAMPS)
    assert (tcp_of(data).options, data.payload) == (option + STAMPS, b"GET /")
    again = t.up("PA", b"GET /")
    assert tcp_of(again).options == option
    fin = t.up("FA", seq=6)
    assert tcp_of(fin).options == option
    assert t.special
    assert numbers(t.down("A", ack=6), t) == (1, 6)
    assert not t.special
    assert tcp_of(t.up("PA", b"more", seq=6)).options == b""
    assert t.rig.counters() == t.counted(TOA_SENT=4)


def test_a_client_that_has_heard_the_dest_needs_it_no_more(net: Net) -> None:
    t = talk(net, "toa").open()
    assert tcp_of(t.up("A")).options == toa(net)
    t.down("PA", b"220 hello\r\n")
    assert tcp_of(t.up("A")).options == toa(net)  # sent before the greeting came
    assert tcp_of(t.up("A", ack=12)).options == b""
    assert not t.special
    assert t.rig.counters() == t.counted(TOA_SENT=2)


def test_neither_syn_nor_reset_has_it(net: Net) -> None:
    t = talk(net, "toa")
    assert tcp_of(t.up("S")).options == b""
    assert tcp_of(t.up("A")).options == b""  # before the dest's answer nothing is known
    t.down("SA")
    assert tcp_of(t.up("R")).options == b""
    assert t.rig.counters() == t.counted()


def test_what_a_client_forges_is_taken_out(net: Net) -> None:
    t = talk(net, "toa")
    assert tcp_of(t.up("S", options=MSS + FORGED)).options == MSS + b"\1" * 8
    t.down("SA", options=MSS)
    found = tcp_of(t.up("A", options=FORGED + FORGED))
    assert found.options == toa(net) + b"\1" * 16
    other = talk(net, "toa").open()
    # Nor does filling the options up leave room for a lie, or none for the truth.
    filled = FORGED * 2 + STAMPS + sack((1, 2))
    assert tcp_of(other.up("A", options=filled)).options == toa(net) + STAMPS
    filled = b"\x1e\x28" + bytes(38)
    assert tcp_of(other.up("A", options=filled)).options == toa(net)


FAST_OPEN = b"\x22\x0a" + bytes(8) + b"\1\1"


@pytest.mark.parametrize("options", [MSS, MSS + FAST_OPEN, FAST_OPEN + STAMPS])
def test_no_fast_open(net: Net, options: bytes) -> None:
    """A kernel that takes data from a SYN opens the connection there, and never looks again."""
    t = talk(net, "toa")
    syn = t.up("S", b"early", options=options)
    assert syn.payload == b""
    assert tcp_of(syn).options == options.replace(FAST_OPEN, b"\1" * len(FAST_OPEN))
    t.down("SA", options=MSS)
    data = t.up("PA", b"early", options=FORGED)
    assert (tcp_of(data).options, data.payload) == (toa(net) + b"\1" * 8, b"early")


@pytest.mark.parametrize("ack", [0, 2, 77, 0x80000001])
def test_a_wrong_acknowledgement_buys_no_lie(net: Net, ack: int) -> None:
    """What a client claims to have heard is no sign that its dest has opened the connection."""
    t = talk(net, "toa").open()
    wrong = t.up("A", ack=ack, options=FORGED)
    assert tcp_of(wrong).options == toa(net) + b"\1" * 8
    # Nor is a challenge (RFC 5961), which a kernel sends before it opens one.
    t.down("A")
    wrong = t.up("A", ack=ack, options=FORGED)
    assert tcp_of(wrong).options == toa(net) + b"\1" * 8
    assert tcp_of(t.up("A", options=FORGED)).options == toa(net) + b"\1" * 8
    t.down("FA")
    assert tcp_of(t.up("A", ack=2)).options == b""
    assert not t.special


def test_what_comes_without_an_acknowledgement_tells_nothing(net: Net) -> None:
    t = talk(net, "toa").open()
    assert tcp_of(t.up("F", options=FORGED)).options == b"\1" * 8
    assert tcp_of(t.up("A")).options == toa(net)


def test_a_dest_with_syn_cookies_answers_twice(net: Net) -> None:
    """Its second SYN-ACK has another number; it is that which the client acknowledges."""
    t = talk(net, "toa").open()
    t.s += 0x01000000
    t.down("SA", options=MSS)
    assert tcp_of(t.up("A")).options == toa(net)
    assert t.special


def test_a_trusted_balancer_tells_it_itself(net: Net) -> None:
    theirs = b"\xfe\x08\x00\x07\xcb\x00\x71\x05"
    t = Talk(Rig(balanced(net, client_ip="toa", client_ip_trust=[net.remote])), net).open()
    assert not t.special
    assert tcp_of(t.up("A", options=theirs)).options == theirs
    assert t.down("FA").payload == b""
    t.c, t.s = 900_000, 7_000_000
    t.up("S")
    t.down("SA")
    assert tcp_of(t.up("A", options=theirs)).options == theirs
    assert t.rig.counters() == t.counted()


@pytest.mark.parametrize("close", ["dest", "client"])
def test_a_new_connection_on_the_same_ports(net: Net, close: str) -> None:
    """Its dest has forgotten what we take for half-closed: the new one is told anew."""
    t = talk(net, "toa").open()
    t.up("PA", b"x")
    t.down("A", ack=2)
    assert not t.special
    if close == "dest":
        t.down("FA", ack=2)
    else:
        t.up("FA", seq=2)
    t.c, t.s = 900_000, 7_000_000
    assert tcp_of(t.up("S", options=MSS + FORGED)).options == MSS + b"\1" * 8
    t.down("SA", options=MSS)
    assert tcp_of(t.up("A", options=FORGED)).options == toa(net) + b"\1" * 8


def gso(net: Net, size: int) -> dict[str, Any]:
    kind = GSO_TCPV4 if net.af == 4 else GSO_TCPV6
    return {"needs_csum": True, "gso_type": kind, "gso_size": size}


@pytest.mark.parametrize("room", [100, 0, 3])
def test_segments_of_an_offloaded_frame_still_fit(net: Net, room: int) -> None:
    t = talk(net, "toa").open()
    full = 1500 - (40 if net.af == 4 else 60)
    data = t.up("PA", bytes(20_000), offload=gso(net, full - room))
    offload = data.find(Vnet)
    assert isinstance(offload, Vnet)
    assert tcp_of(data).options == toa(net)
    assert offload.gso_size == min(full - len(toa(net)), full - room)
    assert offload.hdr_len == 14 + 1500 - full + len(toa(net))
    assert data.payload == bytes(20_000)


def test_no_room_in_the_mtu(net: Net) -> None:
    t = talk(net, "toa").open()
    size = 1500 - (40 if net.af == 4 else 60) - len(toa(net))
    assert tcp_of(t.up("PA", bytes(size))).options == toa(net)
    full = t.up("PA", bytes(size + 1))
    assert (tcp_of(full).options, len(full.payload)) == (b"", size + 1)
    assert t.rig.counters() == t.counted(TOA_SENT=1, TOA_OMITTED=1)


def test_an_offloaded_frame_that_cannot_grow(net: Net) -> None:
    t = talk(net, "toa").open()
    size = 65535 - (40 if net.af == 4 else 20)
    assert tcp_of(t.up("PA", bytes(size), offload=gso(net, 1000))).options == b""
    assert t.rig.counters() == t.counted(TOA_OMITTED=1)


@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_a_wrong_checksum_stays_wrong(net: Net, payload: bytes) -> None:
    t = talk(net, "toa").open()
    frame = t.frame("PA", payload, 1, 1, None, {"checksum": 0x1234, "options": FORGED})
    found = parse(one(t.rig.receive("wan", frame)).frame)
    assert tcp_of(found).options == toa(net) + b"\1" * 8
    assert "wrong checksum" in found.problems[0]


@pytest.mark.parametrize("options", [b"\xfe", b"\xfe\1", b"\xfe\x28", b"\xfe\0", b"\0\xfe\x08"])
def test_options_that_lie(net: Net, options: bytes) -> None:
    t = talk(net, "toa").open()
    frame = t.frame("PA", b"x", 1, 1, None, {"options": options})
    found = parse(one(t.rig.receive("wan", frame)).frame)
    assert tcp_of(found).options[: len(toa(net))] == toa(net)
    assert not [problem for problem in found.problems if "checksum" in problem]


@pytest.mark.parametrize("mss", [50, 64, 83])
def test_a_small_mss_is_left_alone(net: Net, mss: int) -> None:
    t = talk(net, "toa")
    t.up("S")
    lowered = mss - len(toa(net))
    assert tcp_of(t.down("SA", mss=mss)).mss == (lowered if lowered >= 64 else mss)


@pytest.mark.parametrize("killed_behind", range(3))
def test_a_successor_goes_on(net: Net, killed_behind: int) -> None:
    text = balanced(net, client_ip="toa")
    memory = Memory()
    t = Talk(Rig(text, memory=memory), net)
    steps = [
        lambda: tcp_of(t.up("S")).options == b"",
        lambda: numbers(t.down("SA"), t) == (0, 1),
        lambda: tcp_of(t.up("A")).options == toa(net),
        lambda: tcp_of(t.up("PA", b"GET /")).options == toa(net),
    ]
    for number, step in enumerate(steps):
        assert step(), number
        if number == killed_behind:
            t.rig = Rig(text, memory=memory.copy())
            assert t.rig.director.adopt(t.rig.now) == (1, 0)
