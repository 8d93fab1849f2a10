"""The answers of the lab's HTTP service."""

from __future__ import annotations

import json

import pytest

from tunlb.lab import servers

PEER = ("fd00::2", 5000, 0, 0)


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        ("GET / HTTP/1.1", "200 OK", b"s1\n"),
        ("GET /bytes/3 HTTP/1.1", "200 OK", b"\x00\x01\x02"),
        ("GET /bytes/252 HTTP/1.0", "200 OK", servers.PATTERN + b"\x00"),
        ("GET /bytes/-1 HTTP/1.1", "404 Not Found", b""),
        ("GET /elsewhere HTTP/1.1", "404 Not Found", b""),
        ("nonsense", "404 Not Found", b""),
    ],
)
def test_answers(line: str, status: str, body: bytes) -> None:
    answer = servers.respond("s1", PEER, f"{line}\r\nHost: x\r\n\r\n".encode())
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        f"HTTP/1.0 {status}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    assert rest == body


def test_a_body_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "MAX_BYTES", 10)
    answer = servers.respond("s1", PEER, b"GET /bytes/999999999999 HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n" + servers.pattern(10))


@pytest.mark.parametrize(
    ("address", "shown"), [("::ffff:10.0.0.2", "10.0.0.2"), ("fd00::2", "fd00::2")]
)
def test_a_greeting_shows_the_peer_in_its_own_family(address: str, shown: str) -> None:
    answer = servers.respond("s1", (address, 5000, 0, 0), b"GET /peer HTTP/1.1\r\n\r\n")
    said = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert said == {"host": "s1", "peer": shown, "port": 5000}
