"""What a worker is told, written down and read again; a configuration also in pieces."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable

import msgspec
import pytest

from tunlb.boot import PIECE, Applied, Arrived, decode_pieces, encode_pieces
from tunlb.conf import loads
from tunlb.destids import DestIds
from tunlb.lab import TOPOLOGIES


def applied(text: str) -> Applied:
    config = loads(text)
    return Applied(at_ms=7, config=config, ids=tuple(DestIds().assign(config).items()))


def many(dests: int = 0, routes: int = 0, neighs: int = 0, acls: int = 0) -> str:
    """A service of that many dests between two without any."""
    lines: list[dict[str, object]] = [
        {"kind": "port", "name": "lb0", "addresses": ["10.0.0.254/16"]},
        *(
            {
                "kind": "service",
                "name": name,
                "proto": "tcp",
                "vaddr": "10.0.0.100",
                "vport": 80 + i,
                "fwdmode": "nat",
            }
            for i, name in enumerate("abc")
        ),
    ]
    lines += [
        {"kind": "dest", "service": "b", "daddr": f"10.0.{1 + i // 250}.{1 + i % 250}"}
        for i in range(dests)
    ]
    lines += [
        {"kind": "route", "dst": f"172.16.{i}.0/24", "via": "10.0.0.1", "port": "lb0"}
        for i in range(routes)
    ]
    lines += [
        {
            "kind": "neigh",
            "port": "lb0",
            "addr": f"10.0.9.{1 + i}",
            "mac": f"02:00:00:00:00:{i:02x}",
        }
        for i in range(neighs)
    ]
    lines += [
        {"kind": "acl", "action": "deny", "src": f"10.{i >> 8}.{i & 255}.0/24"} for i in range(acls)
    ]
    return "\n".join(map(json.dumps, lines))


def run(lines: Iterable[bytes]) -> tuple[Arrived, int]:
    """What arrives, and in how many pieces."""

    def take() -> Generator[None, None, None]:
        found.append((yield from decode_pieces(lines)))

    found: list[Arrived] = []
    pieces = len(list(take()))
    return found[0], pieces


@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(topology.config_text, id=name) for name, topology in TOPOLOGIES.items()),
        pytest.param(many(), id="no dests"),
        pytest.param(many(dests=1), id="one dest"),
        pytest.param(many(dests=PIECE), id="a piece of dests"),
        pytest.param(many(dests=PIECE + 1), id="one more"),
        pytest.param(many(dests=1000, routes=40, neighs=20), id="many of everything"),
        pytest.param(many(neighs=40), id="neighs without routes"),
        pytest.param(many(acls=1000), id="lists alone"),
    ],
)
def test_what_arrives_in_pieces_is_what_was_sent(text: str) -> None:
    sent = applied(text)
    arrived, pieces = run(encode_pieces(sent).splitlines())
    assert arrived == (sent.at_ms, sent.config, dict(sent.ids))
    assert pieces == len(encode_pieces(sent).splitlines())


def test_no_piece_is_large() -> None:
    few = encode_pieces(applied(many(dests=PIECE))).splitlines()
    more = encode_pieces(applied(many(dests=1000, routes=200, neighs=99, acls=999))).splitlines()
    assert len(more) > 1000 / PIECE
    assert max(map(len, more)) < 2 * max(map(len, few))


@pytest.mark.parametrize("lines", [[], [b"{}"], [b"{"]], ids=["nothing", "no head", "no JSON"])
def test_what_is_no_configuration(lines: list[bytes]) -> None:
    with pytest.raises(msgspec.DecodeError):
        run(lines)
