"""The checkers: what they must not let pass, and what they say."""

from __future__ import annotations

import pytest

from tunlb.testing import checkers as c
from tunlb.testing import frames as f

A4, B4, A6, B6 = "10.0.0.1", "10.0.0.100", "fd00::1", "fd00::100"
TCP4 = f.Flow(f"{A4}:40000", f"{B4}:80")
TCP6 = f.Flow(f"[{A6}]:40000", f"[{B6}]:80")
BULK = bytes(4000)


def error(quote: bytes, v6: bool = False) -> bytes:
    if v6:
        return f.eth(payload=f.ipv6(B6, A6, f.icmp(1, 4, 0, quote)))
    return f.eth(payload=f.ipv4(B4, A4, f.icmp(3, 3, 0, quote)))


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        pytest.param(f.vnet(TCP4.data(checksum=1)), "wrong checksum 0x0001, right is", id="tcp4"),
        pytest.param(f.vnet(TCP6.data(checksum=1)), "wrong checksum 0x0001", id="tcp6"),
        pytest.param(f.vnet(TCP6.udp(checksum=1)), "wrong checksum 0x0001", id="udp6"),
        pytest.param(f.vnet(TCP6.udp(checksum=0)), "UDP over IPv6 without", id="udp6 without"),
        pytest.param(f.vnet(TCP4.syn(ip={"checksum": 7})), "IPv4 header checksum 0007", id="ip"),
        pytest.param(f.vnet(TCP4.syn(ip={"total_len": 400})), "IP length 400, but", id="too long"),
        pytest.param(
            f.vnet(f.eth(payload=f.ipv4(A4, B4, f.icmp(8, checksum=1)))),
            "wrong checksum",
            id="icmp",
        ),
        pytest.param(f.vnet(TCP4.udp(length=30)), "UDP length 30, but 12", id="udp length"),
        pytest.param(f.vnet(TCP4.syn(doff=15)), "TCP header of 60 bytes in 24", id="doff"),
        pytest.param(f.vnet(TCP4.syn() + bytes(20)), "20 bytes behind", id="trailing bytes"),
        pytest.param(f.vnet(TCP4.ack() + b"x"), "1 bytes behind", id="padding that is not zero"),
        pytest.param(f.vnet(TCP4.ack()[:40]), "IP length 40, but 26", id="cut off"),
        pytest.param(f.vnet(b"short"), "no Ethernet frame", id="no frame"),
        pytest.param(b"short", "no virtio-net header", id="no header"),
        pytest.param(
            f.vnet(TCP4.data(), needs_csum=True, field_value=1), "partial checksum", id="partial"
        ),
        pytest.param(
            f.vnet(TCP4.data(), flags=1, csum_start=34, csum_offset=16),
            "partial checksum",
            id="full where a partial one is owed",
        ),
        pytest.param(
            f.PLAIN + f.vnet(TCP4.data(), needs_csum=True)[10:],
            "wrong checksum",
            id="partial where a full one is owed",
        ),
        pytest.param(
            f.vnet(TCP4.data(), needs_csum=True, csum_start=14), "csum_start 14", id="start"
        ),
        pytest.param(
            f.vnet(TCP4.data(), needs_csum=True, csum_offset=6), "csum_offset 6", id="offset"
        ),
        pytest.param(
            f.vnet(TCP4.data(BULK), needs_csum=True, gso_type=4, gso_size=1448),
            "GSO type 4",
            id="gso",
        ),
        pytest.param(
            f.vnet(TCP4.data(BULK), needs_csum=True, gso_type=1), "segment size 0", id="gso size"
        ),
        pytest.param(
            f.vnet(TCP4.data(BULK), gso_type=1, gso_size=9), "without a partial", id="gso alone"
        ),
        pytest.param(f.vnet(f.eth(type=0x86DD, payload=f.ipv4(A4, B4))), "version 4", id="type"),
        pytest.param(f.vnet(error(f.ipv4(A4, B4, checksum=3))), "quoted packet: wrong", id="quote"),
        pytest.param(
            f.vnet(error(f.ipv4(A4, B4, f.udp(1, 2, checksum=3)))),
            "quoted packet: wrong checksum",
            id="quoted transport",
        ),
        pytest.param(
            f.vnet(f.eth(payload=f.ipv6(A6, B6, f.nd_ns(B6), ttl=64))), "hop limit 64", id="nd"
        ),
    ],
)
def test_problems_fail_unasked(frame: bytes, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        c.check(frame)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(f.vnet(TCP4.data(BULK), needs_csum=True, gso_type=1, gso_size=9), id="TSO4"),
        pytest.param(f.vnet(TCP6.udp(BULK), needs_csum=True, gso_type=5, gso_size=9), id="USO6"),
        pytest.param(f.vnet(TCP4.udp(checksum=0)), id="udp4 without a checksum"),
        pytest.param(f.vnet(TCP4.ack() + bytes(6)), id="Ethernet padding"),
        pytest.param(f.vnet(error(TCP4.data()[14:42])), id="a quote that is cut off"),
        pytest.param(f.vnet(error(TCP6.data()[14:], v6=True)), id="a whole quote"),
        pytest.param(f.vnet(f.eth(type=0x88CC, payload=b"?")), id="another protocol"),
    ],
)
def test_right_frames_pass(frame: bytes) -> None:
    c.check(frame)


def test_all_differences_are_listed_at_once() -> None:
    with pytest.raises(AssertionError) as caught:
        c.check(
            f.vnet(TCP4.syn(checksum=1)),
            c.ipv4(saddr="10.0.0.2", ttl=63),
            c.tcp(flags="SA", sport=lambda port: port < 1024),
            c.udp(),
            c.payload(b"data"),
        )
    text = str(caught.value)
    for line in (
        "- wrong checksum 0x0001",
        "- ipv4.saddr: expected '10.0.0.2', got '10.0.0.1'",
        "- ipv4.ttl: expected 63, got 64",
        "- tcp.flags: expected 'SA', got 'S'",
        "- tcp.sport: 40000 was not accepted",
        "- no udp header",
        "- payload: expected 4 bytes b'data', got 0 bytes",
    ):
        assert line in text
    assert "0000  00 00" in text


def test_an_unknown_field_is_a_mistake_of_the_test() -> None:
    with pytest.raises(TypeError, match=r"tcp has no .*port"):
        c.tcp(port=80)


def test_matchers_of_a_quoted_packet() -> None:
    frame = f.vnet(error(f.Flow(TCP4.client, TCP4.server).data()[14:42]))
    c.check(
        frame,
        c.icmp(type=3, code=3),
        c.quoted(c.ipv4(saddr=A4, daddr=B4), c.tcp(sport=40000, dport=80, seq=1000)),
    )
    with pytest.raises(AssertionError, match=r"quoted ipv4\.saddr"):
        c.check(frame, c.quoted(c.ipv4(saddr=B4)))
    with pytest.raises(AssertionError, match="no quoted packet"):
        c.check(f.vnet(TCP4.ack()), c.quoted())


def test_version_is_checked_with_the_name() -> None:
    c.check(f.vnet(TCP4.ack()), c.ipv4(), c.ip())
    with pytest.raises(AssertionError, match=r"ipv6\.version: expected 6, got 4"):
        c.check(f.vnet(TCP4.ack()), c.ipv6())


def test_nd_fields() -> None:
    frame = f.vnet(f.eth(payload=f.ipv6(A6, B6, f.nd_na(A6, f.CLIENT_MAC), ttl=255)))
    c.check(frame, c.icmp(type=136, target=A6, lladdr=f.CLIENT_MAC, info=0x60000000))


def test_a_predicate_for_the_payload() -> None:
    c.check(f.vnet(TCP4.data(b"data")), c.payload(lambda data: data.startswith(b"da")))
    with pytest.raises(AssertionError, match="payload of 4 bytes was not accepted"):
        c.check(f.vnet(TCP4.data(b"data")), c.payload(lambda data: False))
