"""The virtio-net header: what is believed, what is refused, what is written."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason
from tunlb.testing import frames as f
from tunlb.wire import ether, ipv4, ipv6, tcp, udp, vnet

TCP4 = f.Flow("10.0.0.1:40000", "10.0.0.100:80")
TCP6 = f.Flow("[fd00::1]:40000", "[fd00::100]:80")
L4_4, L4_6 = 34, 54
BULK = bytes(4000)


def read(pkt) -> int:
    """The checks in the pipeline's order, as far as this header is concerned."""
    reason = vnet.parse(pkt) or ether.parse(pkt)
    reason = reason or (ipv4 if pkt.ether_type == f.ETH_P_IP else ipv6).parse(pkt)
    return reason or vnet.check(pkt)


@pytest.mark.parametrize(
    ("frame", "start", "offset", "gso_type", "gso_size"),
    [
        pytest.param(f.vnet(TCP4.data()), 0, 0, 0, 0, id="plain"),
        pytest.param(f.vnet(TCP4.data(), needs_csum=True), L4_4, 16, 0, 0, id="partial tcp4"),
        pytest.param(f.vnet(TCP6.data(), needs_csum=True), L4_6, 16, 0, 0, id="partial tcp6"),
        pytest.param(f.vnet(TCP4.udp(), needs_csum=True), L4_4, 6, 0, 0, id="partial udp4"),
        pytest.param(
            f.vnet(TCP4.data(BULK), needs_csum=True, gso_type=1, gso_size=1448),
            *(L4_4, 16, 1, 1448),
            id="TSO4",
        ),
        pytest.param(
            f.vnet(TCP6.data(BULK), needs_csum=True, gso_type=4 | 0x80, gso_size=1428),
            *(L4_6, 16, 0x84, 1428),
            id="TSO6 with ECN",
        ),
        pytest.param(
            f.vnet(TCP6.udp(BULK), needs_csum=True, gso_type=5, gso_size=1200),
            *(L4_6, 6, 5, 1200),
            id="USO6",
        ),
    ],
)
def test_good_headers(frame, start, offset, gso_type, gso_size, load) -> None:
    pkt = load(frame, vnet=True)
    assert read(pkt) == 0
    assert pkt.csum_start == (start and pkt.start + start)
    assert (pkt.csum_offset, pkt.gso_type, pkt.gso_size) == (offset, gso_type, gso_size)
    assert pkt.partial() == (start != 0)


def test_data_valid_is_noted_unless_a_checksum_is_owed(load) -> None:
    pkt = load(f.vnet(TCP4.data(), data_valid=True), vnet=True)
    assert read(pkt) == 0
    assert pkt.data_valid
    pkt = load(f.vnet(TCP4.data(), data_valid=True, needs_csum=True), vnet=True)
    assert read(pkt) == 0
    assert not pkt.data_valid


def lie(frame: bytes, **fields) -> bytes:
    return f.vnet(frame, **{"needs_csum": True, "gso_type": 1, "gso_size": 1448, **fields})


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(
            f.vnet(TCP4.data(), needs_csum=True, csum_start=60, csum_offset=16), id="field outside"
        ),
        pytest.param(
            f.vnet(TCP4.data(), needs_csum=True, csum_start=65535, csum_offset=65535),
            id="both at their greatest",
        ),
        pytest.param(
            f.vnet(TCP4.data(), needs_csum=True, csum_start=14, csum_offset=10),
            id="into the IP header",
        ),
        pytest.param(
            f.vnet(TCP4.data(), needs_csum=True, csum_start=0, csum_offset=0),
            id="into the MAC address",
        ),
        pytest.param(f.vnet(TCP4.data(), needs_csum=True, csum_offset=6), id="udp's field in tcp"),
        pytest.param(f.vnet(TCP4.udp(), needs_csum=True, csum_offset=4), id="udp's length field"),
        pytest.param(lie(TCP4.data(BULK), gso_type=3), id="UFO"),
        pytest.param(lie(TCP4.data(BULK), gso_type=7), id="unknown GSO type"),
        pytest.param(lie(TCP4.data(BULK), gso_type=0x80), id="ECN without a type"),
        pytest.param(lie(TCP4.data(BULK), gso_size=0), id="segments of nothing"),
        pytest.param(lie(TCP4.data(BULK), gso_size=0xFFFF), id="GSO_BY_FRAGS"),
        pytest.param(lie(TCP4.data(BULK), flags=0), id="GSO without NEEDS_CSUM"),
        pytest.param(lie(TCP4.data(BULK), gso_type=4), id="TSO6 on IPv4"),
        pytest.param(lie(TCP6.data(BULK), gso_type=1), id="TSO4 on IPv6"),
        pytest.param(lie(TCP4.data(BULK), gso_type=5), id="USO on TCP"),
        pytest.param(lie(TCP4.udp(BULK), gso_type=1), id="TSO on UDP"),
        pytest.param(lie(TCP4.udp(BULK), gso_type=0x85), id="USO with ECN"),
        pytest.param(
            lie(TCP4.data(BULK), csum_start=L4_4 + 4, csum_offset=16), id="GSO, start elsewhere"
        ),
    ],
)
def test_lies_are_refused(frame, load) -> None:
    assert read(load(frame, vnet=True)) == DropReason.VNET_HEADER


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(f.vnet(TCP4.data()), id="plain"),
        pytest.param(f.vnet(TCP4.data(), needs_csum=True), id="partial"),
        pytest.param(f.vnet(TCP6.udp(), needs_csum=True), id="partial udp6"),
    ],
)
def test_emit_writes_what_was_read(frame, load) -> None:
    pkt = load(frame, vnet=True)
    assert read(pkt) == 0
    vnet.emit(pkt)
    assert bytes(pkt.mem[pkt.start - 10 : pkt.end]) == frame


@pytest.mark.parametrize(
    ("flow_frame", "fields", "l4", "headers"),
    [
        pytest.param(
            TCP4.data(BULK, options=bytes(12)),
            {"gso_type": 1, "gso_size": 1448},
            *(tcp, L4_4 + 32),
            id="tcp with options",
        ),
        pytest.param(
            TCP6.udp(BULK), {"gso_type": 5, "gso_size": 1200}, udp, L4_6 + 8, id="udp over v6"
        ),
    ],
)
def test_emit_recomputes_the_header_length(flow_frame, fields, l4, headers, load) -> None:
    """What the kernel reports is a hint: on forwarded GRO packets it may be a whole segment."""
    hint = f.vnet(flow_frame, needs_csum=True, hdr_len=1500, **fields)
    pkt = load(hint, vnet=True)
    assert read(pkt) == 0
    assert l4.parse(pkt) == 0
    vnet.emit(pkt)
    expected = f.vnet(flow_frame, needs_csum=True, hdr_len=headers, **fields)
    assert bytes(pkt.mem[pkt.start - 10 : pkt.end]) == expected


def test_emit_clears_what_a_plain_packet_does_not_need(load) -> None:
    pkt = load(f.vnet(TCP4.data(), data_valid=True, hdr_len=54), vnet=True)
    assert read(pkt) == 0
    vnet.emit(pkt)
    assert bytes(pkt.mem[pkt.start - 10 : pkt.start]) == f.PLAIN
