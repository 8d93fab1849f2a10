"""`client_ip` "proxy-v1" and "proxy-v2" over TCP: where the header goes, and that both sides count
right ever after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.flow.kit import Net, Rig, balanced, one
from tests.flow.talk import MSS, STAMPS, Talk, numbers, proxy, sack, talk, tcp_of
from tunlb.hook import Verdict
from tunlb.ipvs.client_address import RESEND_MS
from tunlb.testing.checkers import check
from tunlb.testing.flow import Memory
from tunlb.testing.frames import GSO_TCPV4, GSO_TCPV6
from tunlb.testing.parser import Vnet, parse

SETTLED = 3000  # ms that a Rig lets pass before it is given

HOWS = pytest.mark.parametrize("how", ["proxy-v1", "proxy-v2"])


@HOWS
@pytest.mark.parametrize("mode", ["fnat", "nat"])
@pytest.mark.parametrize("isn", [1000, 0xFFFFFFFF, 0xFFFFFFF0])
def test_a_whole_conversation(net: Net, how: str, mode: str, isn: int) -> None:
    """The header is in the ACK of the handshake, so a server that waits for it may speak first."""
    t = talk(net, how, mode, c=isn).open()
    header = proxy(net, how)
    n = len(header)
    opened = t.up("A", options=STAMPS)
    assert (opened.payload, numbers(opened, t), tcp_of(opened).flags) == (header, (1, 1), "PA")
    assert tcp_of(opened).options == STAMPS
    banner = t.down("PA", b"220 hello\r\n", ack=1 + n, options=STAMPS)
    assert (numbers(banner, t), tcp_of(banner).options) == ((1, 1), STAMPS)
    asked = t.up("PA", b"EHLO\r\n", seq=1, ack=12)
    assert (asked.payload, numbers(asked, t)) == (b"EHLO\r\n", (1 + n, 12))
    assert numbers(t.down("A", seq=12, ack=7 + n), t) == (12, 7)
    assert numbers(t.up("FA", seq=7, ack=12), t) == (7 + n, 12)
    assert numbers(t.down("FA", seq=12, ack=8 + n), t) == (12, 8)
    assert numbers(t.up("A", seq=8, ack=13), t) == (8 + n, 13)
    assert t.rig.counters() == t.counted(PROXY_SENT=1)


@HOWS
def test_the_first_data_does_not_repeat_what_just_left(net: Net, how: str) -> None:
    t = talk(net, how).open()
    n = len(proxy(net, how))
    t.up("A")
    data = t.up("PA", b"GET /", seq=1)
    assert (data.payload, numbers(data, t)) == (b"GET /", (1 + n, 1))
    more = t.up("PA", b"more", seq=6)
    assert (more.payload, numbers(more, t)) == (b"more", (6 + n, 1))
    assert numbers(t.down("A", ack=10 + n), t) == (1, 10)
    assert t.rig.counters() == t.counted(PROXY_SENT=1)


@HOWS
def test_data_that_comes_without_an_ack_before(net: Net, how: str) -> None:
    """A client that saves the ACK of the handshake for its first data, or whose ACK got lost."""
    t = talk(net, how).open()
    header = proxy(net, how)
    data = t.up("PA", b"GET /", options=STAMPS)
    assert (data.payload, numbers(data, t)) == (header + b"GET /", (1, 1))
    more = t.up("A", seq=6)
    assert (more.payload, numbers(more, t)) == (b"", (6 + len(header), 1))


@HOWS
def test_what_overtakes_the_first_segment(net: Net, how: str) -> None:
    t = talk(net, how).open()
    header = proxy(net, how)
    late = t.up("PA", b"second", seq=6)
    assert (late.payload, numbers(late, t)) == (b"second", (6 + len(header), 1))
    early = t.up("PA", b"first", seq=1)
    assert (early.payload, numbers(early, t)) == (header + b"first", (1, 1))


@HOWS
@pytest.mark.parametrize("payload", [b"", b"GET /"])
def test_a_repeated_first_segment_has_the_header_again(net: Net, how: str, payload: bytes) -> None:
    t = talk(net, how).open()
    header = proxy(net, how)
    for _ in range(3):
        again = t.up("PA" if payload else "A", payload)
        assert (again.payload, numbers(again, t)) == (header + payload, (1, 1))
        t.rig.now += RESEND_MS
    t.down("A", ack=1 + len(header))
    known = t.up("A")
    assert (known.payload, numbers(known, t)) == (b"", (1 + len(header), 1))
    assert t.rig.counters() == t.counted(PROXY_SENT=3)


@HOWS
@pytest.mark.parametrize("options", [STAMPS, b""])
@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_a_lost_header_is_sent_again_when_the_dest_asks(
    net: Net, how: str, mode: str, options: bytes
) -> None:
    t = talk(net, how, mode).open()
    header = proxy(net, how)
    t.up("A", options=options)  # lost
    t.up("PA", b"GET /", options=options, window=777)
    asking = t.answer("A", b"", 1, 1, {"options": options + sack((t.c + 1 + len(header), t.c + 6))})
    verdict, sent = t.rig.receive("lan", asking)
    assert verdict == Verdict.ACCEPT
    passed = t.heard(sent[0].frame)
    assert numbers(passed, t) == (1, 1)
    alone = check(sent[1].frame)
    assert (alone.payload, numbers(alone, t)) == (header, (1, 1))
    found = tcp_of(alone)
    assert (found.flags, found.window) == ("PA", 777)
    # What the dest's stamp echoes is the client's.
    assert found.options == (b"\1\1\x08\x0a" + STAMPS[8:] + STAMPS[4:8] if options else b"")
    # Once: what else waits for the gap is not worth another one.
    assert len(t.rig.receive("lan", t.answer("A"))[1]) == 1
    assert numbers(t.down("A", ack=6 + len(header)), t) == (1, 6)
    assert t.rig.counters() == t.counted(PROXY_SENT=1, PROXY_ALONE=1)


@HOWS
def test_first_data_that_fills_the_mtu(net: Net, how: str) -> None:
    """The header leaves in a segment of its own, and data right behind it."""
    t = talk(net, how).open()
    header = proxy(net, how)
    size = 1500 - (40 if net.af == 4 else 60) - 12
    verdict, sent = t.rig.receive(
        "wan", t.frame("PA", bytes(size), 1, 1, None, {"options": STAMPS, "window": 99})
    )
    assert verdict == Verdict.ACCEPT
    data, alone = t.seen(sent[0].frame), check(sent[1].frame)
    assert (data.payload, numbers(data, t)) == (bytes(size), (1 + len(header), 1))
    assert (alone.payload, numbers(alone, t)) == (header, (1, 1))
    assert (tcp_of(alone).options, tcp_of(alone).window) == (STAMPS, 99)
    # One that just fits takes it along.
    t.rig.now += RESEND_MS
    fits = t.up("PA", bytes(size - len(header)), options=STAMPS)
    assert (fits.payload, numbers(fits, t)) == (header + bytes(size - len(header)), (1, 1))
    assert t.rig.counters() == t.counted(PROXY_SENT=1, PROXY_ALONE=1)


def gso(net: Net, size: int) -> dict[str, Any]:
    kind = GSO_TCPV4 if net.af == 4 else GSO_TCPV6
    return {"needs_csum": True, "gso_type": kind, "gso_size": size}


@HOWS
@pytest.mark.parametrize("size", [1, 5000, 60_000])
def test_an_offloaded_first_frame_only_grows(net: Net, how: str, size: int) -> None:
    t = talk(net, how).open()
    header = proxy(net, how)
    data = t.up("PA", bytes(size), offload=gso(net, 1400))
    assert (data.payload, numbers(data, t)) == (header + bytes(size), (1, 1))
    offload = data.find(Vnet)
    assert isinstance(offload, Vnet)
    assert offload.gso_size == 1400
    more = t.up("PA", bytes(size), seq=1 + size, offload=gso(net, 1400))
    assert numbers(more, t) == (1 + size + len(header), 1)
    assert t.rig.counters() == t.counted(PROXY_SENT=1)


@HOWS
def test_an_offloaded_first_frame_that_cannot_grow(net: Net, how: str) -> None:
    """64 KB and a header are more than an IP header can say."""
    t = talk(net, how).open()
    header = proxy(net, how)
    size = 65535 - (40 if net.af == 4 else 20) - len(header) + 1
    verdict, sent = t.rig.receive("wan", t.frame("PA", bytes(size), 1, 1, gso(net, 1400)))
    assert verdict == Verdict.ACCEPT
    data, alone = t.seen(sent[0].frame), check(sent[1].frame)
    assert (len(data.payload), numbers(data, t)) == (size, (1 + len(header), 1))
    assert (alone.payload, numbers(alone, t)) == (header, (1, 1))


@HOWS
@pytest.mark.parametrize("partial", [True, False])
def test_partial_checksums(net: Net, how: str, partial: bool) -> None:
    t = talk(net, how).open()
    first = t.up("PA", b"odd", offload={"needs_csum": partial})
    assert first.payload == proxy(net, how) + b"odd"


@HOWS
@pytest.mark.parametrize("wrong", [0x0001, 0x1234])
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_a_wrong_checksum_stays_wrong(net: Net, how: str, wrong: int, payload: bytes) -> None:
    t = talk(net, how).open()
    sent = one(t.rig.receive("wan", t.frame("PA", payload, 1, 1, None, {"checksum": wrong})))
    found = parse(sent.frame)
    assert found.payload == proxy(net, how) + payload
    assert "wrong checksum" in found.problems[0]


@HOWS
def test_half_a_header_is_nothing_to_the_client(net: Net, how: str) -> None:
    t = talk(net, how).open()
    header = proxy(net, how)
    t.up("A")
    for part in (1, len(header) // 2, len(header) - 1):
        assert numbers(t.down("A", ack=1 + part), t) == (1, 1)
    again = t.up("A")
    assert (again.payload, numbers(again, t)) == (header, (1, 1))


@HOWS
def test_a_client_that_says_nothing_and_closes(net: Net, how: str) -> None:
    t = talk(net, how).open()
    header = proxy(net, how)
    fin = t.up("FA")
    assert (fin.payload, numbers(fin, t), tcp_of(fin).flags) == (header, (1, 1), "FPA")
    assert numbers(t.down("A", ack=2 + len(header)), t) == (1, 2)


@HOWS
@pytest.mark.parametrize("told", [False, True])
def test_a_reset_at_the_first_byte(net: Net, how: str, told: bool) -> None:
    """A reset must have the number that the dest expects (RFC 5961)."""
    t = talk(net, how).open()
    if told:
        t.up("A")
    reset = t.up("R")
    expected = len(proxy(net, how)) if told else 0
    assert (reset.payload, numbers(reset, t)[0]) == (b"", 1 + expected)


@HOWS
def test_keepalives_probe_the_byte_before(net: Net, how: str) -> None:
    t = talk(net, how).open()
    n = len(proxy(net, how))
    t.up("A")
    t.down("A", ack=1 + n)
    assert numbers(t.up("A", seq=0), t) == (n, 1)
    assert numbers(t.down("A", ack=1 + n), t) == (1, 1)


@HOWS
def test_urgent_data_moves_with_the_payload(net: Net, how: str) -> None:
    t = talk(net, how).open()
    n = len(proxy(net, how))
    sent = one(t.rig.receive("wan", t.frame("PAU", b"now!", 1, 1, None, {"urgent": 4})))
    at = 10 + 14 + (20 if net.af == 4 else 40) + 18
    assert int.from_bytes(sent.frame[at : at + 2], "big") == 4 + n
    t.seen(sent.frame)


@HOWS
def test_data_in_a_syn_waits_for_the_handshake(net: Net, how: str) -> None:
    t = talk(net, how)
    syn = t.up("S", b"early", options=MSS)
    assert (syn.payload, numbers(syn, t)[0], tcp_of(syn).mss) == (b"", 0, 1460)
    t.down("SA")
    data = t.up("PA", b"early")
    assert data.payload == proxy(net, how) + b"early"


@HOWS
def test_both_sides_open_at_once(net: Net, how: str) -> None:
    """Each answers the other's SYN (RFC 9293, figure 7); neither has to send a bare ACK."""
    t = talk(net, how)
    t.up("S", options=MSS)
    t.down("S", options=MSS)
    assert numbers(t.up("SA", options=MSS), t) == (0, 1)
    assert numbers(t.down("SA", options=MSS), t) == (0, 1)
    data = t.up("PA", b"GET /")
    assert (data.payload, numbers(data, t)) == (proxy(net, how) + b"GET /", (1, 1))


@HOWS
def test_sack_of_what_the_client_sent(net: Net, how: str) -> None:
    t = talk(net, how).open()
    n = len(proxy(net, how))
    t.up("A")
    t.up("PA", bytes(100))
    t.up("PA", bytes(100), seq=201)
    c = t.c
    # While the header is under way, and behind it; a D-SACK of the header itself says nothing.
    blocks = sack((c + 1, c + 1 + n), (c + 201 + n, c + 301 + n))
    seen = t.down("A", ack=101 + n, options=STAMPS + blocks)
    assert numbers(seen, t) == (1, 101)
    moved = sack((c + 1 - n, c + 1), (c + 201, c + 301))
    assert tcp_of(seen).options == STAMPS + moved
    other = talk(net, how).open()
    other.up("A")
    other.up("PA", bytes(100), seq=101)
    seen = other.down("A", ack=1, options=blocks)
    assert tcp_of(seen).options == b"\1\1\5\x0a" + sack((c + 201, c + 301))[4:] + b"\1" * 8
    alone = sack((c + 1, c + 1 + n))
    assert tcp_of(other.down("A", ack=1, options=alone)).options == b"\1" * 12


@pytest.mark.parametrize(
    "options",
    [
        b"\5\x0a" + bytes(6),
        b"\5\1\1\1",
        b"\5",
        b"\xfe\xff\5\x0a",
        b"\5\2\1\1",
        b"\5\5\1\1\1\1\1\1",
        b"\0\5\x0a\0" + bytes(8),
    ],
)
def test_options_that_lie(net: Net, options: bytes) -> None:
    """They go through as they are: what is no SACK block is not ours to judge."""
    t = talk(net, "proxy-v2").open()
    t.up("A")
    asked = t.frame("PA", b"x", 2, 1, None, {"options": options})
    for port, frame in (("wan", asked), ("lan", t.answer("A", b"y", 1, 30, {"options": options}))):
        passed = parse(one(t.rig.receive(port, frame)).frame)
        assert tcp_of(passed).options.rstrip(b"\0") == options.rstrip(b"\0")
        assert not [problem for problem in passed.problems if "checksum" in problem]


@HOWS
def test_a_new_connection_on_the_same_ports(net: Net, how: str) -> None:
    """The dest took a SYN for a new one although our state is not CLOSE: it gets its own header."""
    t = talk(net, how).open()
    header = proxy(net, how)
    t.up("A")
    t.down("FA", ack=1 + len(header))
    t.c = 900_000
    t.s = 7_000_000
    assert numbers(t.up("S"), t)[0] == 0
    assert numbers(t.down("SA"), t) == (0, 1)
    again = t.up("A")
    assert (again.payload, numbers(again, t)) == (header, (1, 1))


@HOWS
def test_a_new_connection_on_the_same_ports_is_refused(net: Net, how: str) -> None:
    """A dest that has forgotten the old one acknowledges the SYN, which no header was put into."""
    t = talk(net, how).open()
    n = len(proxy(net, how))
    t.up("A")
    t.down("A", ack=1 + n)
    t.c = 900_000
    t.up("S")
    assert numbers(t.down("RA", ack=1), t)[1] == 1


@HOWS
@pytest.mark.parametrize("window", [65535, 8192, 107, 20, 0])
def test_room_for_the_header_is_not_the_clients(net: Net, how: str, window: int) -> None:
    t = talk(net, how)
    t.up("S", options=MSS)
    answer = t.down("SA", options=MSS, window=window)
    assert tcp_of(answer).window == max(window - len(proxy(net, how)), 0)
    # From then on the dest itself counts it.
    t.up("A")
    assert tcp_of(t.down("A", ack=1 + len(proxy(net, how)), window=window)).window == window


@HOWS
def test_a_dest_with_syn_cookies_answers_twice(net: Net, how: str) -> None:
    """Its second SYN-ACK has another number; what we send alone acknowledges that."""
    t = talk(net, how).open()
    t.s += 0x01000000
    t.down("SA", options=MSS)
    t.up("A")
    t.up("PA", b"GET /")
    _, sent = t.rig.receive("lan", t.answer("A"))
    alone = check(sent[1].frame)
    assert (alone.payload, numbers(alone, t)) == (proxy(net, how), (1, 1))


@HOWS
def test_a_late_syn_ack_says_nothing_new(net: Net, how: str) -> None:
    t = talk(net, how).open()
    n = len(proxy(net, how))
    t.up("A")
    t.down("A", ack=1 + n)
    assert numbers(t.down("SA"), t) == (0, 1)
    assert numbers(t.up("PA", b"x", seq=1), t) == (1 + n, 1)


@HOWS
def test_the_other_half_of_the_numbers(net: Net, how: str) -> None:
    """Two gigabytes on, the first byte seems to lie ahead; it does not."""
    t = talk(net, how).open()
    n = len(proxy(net, how))
    t.up("A")
    t.down("A", ack=1 + n)
    for far in (0x7FFFFFFF, 0x80000001, 0xFFFFFFFF):
        assert numbers(t.up("PA", b"x", seq=far), t)[0] == (far + n) & 0xFFFFFFFF
        assert numbers(t.down("A", ack=far + n), t)[1] == far


@pytest.mark.parametrize("killed_behind", range(6))
def test_a_successor_goes_on(net: Net, killed_behind: int) -> None:
    """Killed behind any packet, a worker leaves what the next one needs."""
    text = balanced(net, client_ip="proxy-v2")
    header = proxy(net, "proxy-v2")
    n = len(header)
    memory = Memory()
    t = Talk(Rig(text, memory=memory), net)
    steps: list[Callable[[], bool]] = [
        lambda: numbers(t.up("S"), t)[0] == 0,
        lambda: numbers(t.down("SA"), t) == (0, 1),
        lambda: t.up("A").payload == header,
        lambda: numbers(t.up("PA", b"GET /"), t) == (1 + n, 1),
        lambda: numbers(t.down("A", ack=6 + n), t) == (1, 6),
        lambda: numbers(t.up("PA", b"x", seq=6), t) == (6 + n, 1),
    ]
    for number, step in enumerate(steps):
        assert step(), number
        if number == killed_behind:
            t.rig = Rig(text, memory=memory.copy(), now=t.rig.now - SETTLED)
            assert t.rig.director.adopt(t.rig.now) == (1, 0)


def test_a_reload_is_for_new_conns(net: Net) -> None:
    t = talk(net, "proxy-v2").open()
    t.rig.reload(balanced(net, client_ip="proxy-v1"))
    assert t.up("A").payload == proxy(net, "proxy-v2")
    other = talk(net, "none")
    other.rig.reload(balanced(net, client_ip="proxy-v1"))
    other.open()
    assert other.up("A").payload == proxy(net, "proxy-v1")


@HOWS
def test_a_trusted_balancer_tells_it_itself(net: Net, how: str) -> None:
    """Its header is the only one, and its connection pays for none."""
    others, own = ("192.0.2.0/24", net.remote) if net.af == 4 else ("2001:db8:7::/48", net.remote)
    keys: dict[str, Any] = {"client_ip": how, "client_ip_trust": [others, own]}
    t = Talk(Rig(balanced(net, **keys)), net).open()
    assert not t.special
    assert t.up("A").payload == b""
    theirs = t.up("PA", b"PROXY TCP4 203.0.113.5 203.0.113.6 1 2\r\nGET /")
    assert theirs.payload.startswith(b"PROXY TCP4 203.0.113.5")
    assert t.rig.counters() == t.counted()
    # Nobody else's is taken: ours comes first.
    t = Talk(Rig(balanced(net, **keys | {"client_ip_trust": [others]})), net).open()
    assert t.up("PA", b"PROXY TCP4").payload == proxy(net, how) + b"PROXY TCP4"
    # For new connections, as all of it.
    t.rig.reload(balanced(net, **keys))
    assert t.up("PA", b"PROXY TCP4", ack=2).payload == b"PROXY TCP4"
    assert numbers(t.up("A", seq=11), t)[0] == 11 + len(proxy(net, how))


def test_without_it_a_conn_pays_nothing(net: Net) -> None:
    t = talk(net, "none").open()
    assert not t.special
    assert numbers(t.up("A"), t) == (1, 1)
    assert t.rig.counters() == t.counted()
