"""ICMP and ICMPv6: presence, checksum, what is an error, sealing."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason
from tunlb.testing import checkers as c
from tunlb.testing import frames as f
from tunlb.wire import icmp, ipv4, ipv6

ENDS = {4: ("10.0.0.1", "10.0.0.100"), 6: ("fd00::1", "fd00::100")}


@pytest.fixture
def message(load):
    def build(af: int, payload) -> object:
        pkt = load(f.ip(*ENDS[af], payload, proto=1 if af == 4 else 58), tun=True)
        assert (ipv4 if af == 4 else ipv6).parse(pkt) == 0
        return pkt

    return build


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("length", range(9))
def test_a_header_takes_eight_bytes(af, length, message) -> None:
    pkt = message(af, b"\x08" + bytes(length - 1) if length else b"")
    assert icmp.parse(pkt) == (0 if length == 8 else DropReason.L4_HEADER)
    if length == 8:
        assert pkt.icmp_type == 8


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("payload", [b"", b"x", b"ping", bytes(1473)])
def test_a_right_checksum(af, payload, message) -> None:
    pkt = message(af, f.icmp(8, 0, 0x12340001, payload))
    assert icmp.verify(pkt) == 0


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("value", [0, 1, 0xFFFF])
def test_a_wrong_checksum(af, value, message) -> None:
    pkt = message(af, f.icmp(8, 0, 0x12340001, b"ping", checksum=value))
    assert icmp.verify(pkt) == DropReason.ICMP_INVALID
    pkt.data_valid = True
    assert icmp.verify(pkt) == 0


def test_a_checksum_without_the_pseudo_header_is_wrong_in_v6(message) -> None:
    body = f.echo(1, 1).build(bytes(4), bytes(4))
    assert icmp.verify(message(4, body)) == 0
    assert icmp.verify(message(6, body)) == DropReason.ICMP_INVALID


@pytest.mark.parametrize(
    ("af", "errors", "others"),
    [(4, (3, 4, 11, 12), (0, 5, 8, 13)), (6, (1, 2, 3, 4, 100, 127), (128, 129, 133, 135, 136))],
    ids=["v4", "v6"],
)
def test_is_error(af, errors, others, message) -> None:
    for kind in (*errors, *others):
        pkt = message(af, f.icmp(kind))
        assert icmp.parse(pkt) == 0
        assert icmp.is_error(pkt) == (kind in errors)


@pytest.mark.parametrize("af", [4, 6])
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_seal(af, payload, message) -> None:
    kind = 0 if af == 4 else 129
    pkt = message(af, f.icmp(kind, 0, 7, payload, checksum=0xBEEF))
    icmp.seal(pkt)
    c.check(pkt.frame(), c.icmp(type=kind, info=7), c.payload(payload), vnet=False, tun=True)
