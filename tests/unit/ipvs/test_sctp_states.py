"""SCTP's states through what RFC 9260 has associations do, as the director sees both directions."""

from __future__ import annotations

import pytest

from tunlb.ipvs.proto.sctp import STATES, Sctp
from tunlb.ipvs.protocol import (
    CLOSING,
    DIR_INPUT,
    DIR_INPUT_ONLY,
    DIR_OUTPUT,
    ESTABLISHED,
    HALF_OPEN,
)
from tunlb.packet import L3_OFFSET, Packet
from tunlb.testing import sctp as s

L4 = L3_OFFSET + 20
CHUNKS = {
    "init": s.init(),
    "init-ack": s.init(kind=s.INIT_ACK),
    "echo": s.chunk(s.COOKIE_ECHO, b"cookie"),
    "ack": s.chunk(s.COOKIE_ACK),
    "data": s.chunk(s.DATA, bytes(12), 3),
    "sack": s.chunk(s.SACK, bytes(12)),
    "heartbeat": s.chunk(s.HEARTBEAT, bytes(4)),
    "shutdown": s.chunk(s.SHUTDOWN, bytes(4)),
    "shutdown-ack": s.chunk(s.SHUTDOWN_ACK),
    "complete": s.chunk(s.SHUTDOWN_COMPLETE),
    "error": s.chunk(s.ERROR, bytes(8)),
    "abort": s.chunk(s.ABORT),
}
OPENED = [
    ("up init", "INIT1"),
    ("down init-ack", "COOKIE_SENT"),
    ("up echo data", "COOKIE_REPLIED"),
    ("down ack sack", "ESTABLISHED"),
]

LIVES = {
    "a client closes": [
        *OPENED,
        ("up shutdown", "SHUTDOWN_RECEIVED"),
        ("down shutdown-ack", "SHUTDOWN_ACK_SENT"),
        ("up complete", "CLOSED"),
    ],
    "a dest closes": [
        *OPENED,
        ("down shutdown", "SHUTDOWN_SENT"),
        ("up shutdown-ack", "CLOSED"),
        ("down complete", "CLOSED"),
    ],
    # RFC 9260 section 9.2: each acknowledges the other's.
    "both close at once": [
        *OPENED,
        ("up shutdown", "SHUTDOWN_RECEIVED"),
        ("down shutdown", "SHUTDOWN_RECEIVED"),
        ("down shutdown-ack", "SHUTDOWN_ACK_SENT"),
        ("up shutdown-ack", "CLOSED"),
    ],
    "an INIT is lost, and comes again": [("up init", "INIT1"), ("up init", "INIT"), *OPENED[1:]],
    # Section 5.2.1: also with another tag, which the director does not read.
    "an INIT comes again behind its answer": [
        *OPENED[:2],
        ("up init", "COOKIE_SENT"),
        ("down init-ack", "COOKIE_SENT"),
        *OPENED[2:],
    ],
    # Both send an INIT: each answers the other's with an INIT ACK.
    "a collision": [
        ("up init", "INIT1"),
        ("down init", "COOKIE_WAIT"),
        ("up init-ack", "COOKIE"),
        ("down echo", "COOKIE_ECHOED"),
        ("up ack", "ESTABLISHED"),
    ],
    # Section 5.2.2: the answer is the dest's; the conn stays.
    "a restart": [
        *OPENED,
        ("up init", "ESTABLISHED"),
        ("down init-ack", "ESTABLISHED"),
        ("up echo", "ESTABLISHED"),
        ("down ack", "ESTABLISHED"),
    ],
    # Section 9.2: a peer that has forgotten the association, whose ports are still in use here.
    "an INIT while the dest waits for the end": [
        *OPENED,
        ("up shutdown", "SHUTDOWN_RECEIVED"),
        ("down shutdown-ack", "SHUTDOWN_ACK_SENT"),
        ("up init", "SHUTDOWN_ACK_SENT"),
        ("down shutdown-ack", "SHUTDOWN_ACK_SENT"),
        ("up complete", "CLOSED"),
    ],
    "a client refuses": [*OPENED[:2], ("up abort", "CLOSED")],
    "a dest refuses": [("up init", "INIT1"), ("down abort", "REJECTED")],
    "a stale cookie": [*OPENED[:3], ("down error", "CLOSED")],
    "a cookie with an ABORT behind": [*OPENED[:2], ("up echo abort", "CLOSED")],
    "bundled control chunks": [*OPENED, ("up sack shutdown", "ESTABLISHED")],
    "what is idle lives": [*OPENED, ("up heartbeat", "ESTABLISHED"), ("down data", "ESTABLISHED")],
    "direct routing": [
        ("only init", "INIT1"),
        ("only echo", "ESTABLISHED"),
        ("only data", "ESTABLISHED"),
        ("only shutdown", "SHUTDOWN_RECEIVED"),
        ("only complete", "CLOSED"),
    ],
    "direct routing, the dest closes": [
        ("only init", "INIT1"),
        ("only echo", "ESTABLISHED"),
        ("only shutdown-ack", "CLOSED"),
    ],
    "direct routing, the dest opened it": [
        ("only init-ack", "COOKIE_ECHOED"),
        ("only error", "COOKIE_ECHOED"),
        ("only ack", "ESTABLISHED"),
    ],
}
DIRECTIONS = {"up": DIR_INPUT, "down": DIR_OUTPUT, "only": DIR_INPUT_ONLY}


def loaded(names: list[str]) -> Packet:
    body = s.sctp(1, 2, *(CHUNKS[name] for name in names)).build(bytes(4), bytes(4))
    pkt = Packet()
    pkt.l4, pkt.end = L4, L4 + len(body)
    pkt.mem[L4 : pkt.end] = body
    return pkt


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
def test_lives(life: list[tuple[str, str]]) -> None:
    protocol, state = Sctp(), 0
    for step, (packet, expected) in enumerate(life):
        way, *names = packet.split()
        state = protocol.next_state(loaded(names), state, DIRECTIONS[way])
        assert STATES[state] == expected, (step, packet)


@pytest.mark.parametrize("way", DIRECTIONS)
def test_an_abort_ends_whatever_there_is(way: str) -> None:
    for state in range(len(STATES)):
        new = Sctp().next_state(loaded(["abort"]), state, DIRECTIONS[way])
        assert STATES[new] in ("CLOSED", "REJECTED")


@pytest.mark.parametrize("way", DIRECTIONS)
@pytest.mark.parametrize("kind", [5, 12, 13, 15, 16, 64, 128, 192, 255])
def test_a_chunk_that_nobody_knows_moves_nothing_but_the_first_state(way: str, kind: int) -> None:
    pkt = loaded(["data"])
    pkt.mem[L4 + 12] = kind
    for state, name in enumerate(STATES[:-1]):
        new = STATES[Sctp().next_state(pkt, state, DIRECTIONS[way])]
        assert new in ((name,) if state not in (0, 5) else (name, "ESTABLISHED"))


def test_a_state_that_cannot_be_ends() -> None:
    """What a row of a former worker says is not trusted."""
    for state in (14, 15, 255):
        assert STATES[Sctp().next_state(loaded(["data"]), state, DIR_INPUT)] == "CLOSED"


def test_only_what_is_over_makes_room_for_an_init() -> None:
    reopened = {name for n, name in enumerate(STATES) if Sctp().reopens(loaded(["init"]), n)}
    assert reopened == {"CLOSED", "REJECTED"}
    assert not any(Sctp().reopens(loaded(["data"]), n) for n in range(len(STATES)))


def test_who_is_evicted() -> None:
    kinds = {name: Sctp().kind(n) for n, name in enumerate(STATES)}
    assert kinds["ESTABLISHED"] == ESTABLISHED
    assert {name for name, kind in kinds.items() if kind == HALF_OPEN} == set(STATES[:8])
    assert {name for name, kind in kinds.items() if kind == CLOSING} == set(STATES[9:])
