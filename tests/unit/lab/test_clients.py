"""Reading what clients print."""

from __future__ import annotations

import json

import pytest

from tunlb.lab import LabError, clients
from tunlb.lab.servers import greeting

TCP = {
    "end": {
        "sum_sent": {"bits_per_second": 9.1e9, "retransmits": 7},
        "sum_received": {"bits_per_second": 9.0e9},
    }
}
UDP = {"end": {"sum": {"bits_per_second": 2e8, "lost_percent": 25}}}


def test_tcp_counts_what_arrived() -> None:
    result = clients.parse_iperf3(json.dumps(TCP), udp=False)
    assert (result.gbps, result.lost_percent, result.retransmits) == (9.0, 0.0, 7)
    assert result.report == TCP


def test_udp_counts_what_arrived() -> None:
    result = clients.parse_iperf3(json.dumps(UDP), udp=True)
    assert result.gbps == pytest.approx(0.15)
    assert result.lost_percent == 25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"error": "unable to connect to server"}', "iperf3 failed: unable to connect"),
        ("iperf3: error", "something unexpected: 'iperf3: error'"),
        ('{"end": {}}', "something unexpected"),
        ('{"end": {"sum": {"bits_per_second": 0, "lost_percent": null}}}', "unexpected"),
        ("[]", "something unexpected"),
    ],
    ids=["refused", "no-json", "no-sums", "nothing-arrived", "no-object"],
)
def test_what_iperf3_prints_when_it_fails(text: str, said: str) -> None:
    with pytest.raises(LabError, match=said):
        clients.parse_iperf3(text, udp=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.0.0.1", "http://10.0.0.1:80/x"), ("fd00::1", "http://[fd00::1]:80/x")],
)
def test_an_ipv6_literal_is_bracketed(address: str, expected: str) -> None:
    assert clients.url(address, 80, "/x") == expected


def test_an_echo_is_a_greeting_and_the_bytes() -> None:
    datagram = greeting("s1", ("::ffff:10.0.0.2", 4242, 0, 0)) + b"line\nline"
    assert clients.parse_echo(datagram) == clients.Echo("s1", "10.0.0.2", 4242, b"line\nline")
