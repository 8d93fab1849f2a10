"""The checksum discipline, row by row; tests/property has the rest."""

from __future__ import annotations

import pytest

from tunlb.packet import Packet
from tunlb.testing import frames as f
from tunlb.wire import checksum, ipv4, vnet


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"\x12", 0x1200, id="one byte"),
        pytest.param(b"\xff\xff", 0xFFFF, id="all ones"),
        pytest.param(b"\xff\xff\x00\x01", 1, id="end-around carry"),
        pytest.param(bytes.fromhex("0001f203f4f5f6f7"), 0xDDF2, id="RFC 1071 section 3"),
        pytest.param(b"\xff" * 65534, 0xFFFF, id="the longest"),
    ],
)
def test_sum16(data, expected) -> None:
    pkt = Packet()
    pkt.mem[200 : 200 + len(data)] = data
    # what follows must not count
    pkt.mem[200 + len(data)] = 0x99
    assert checksum.sum16(pkt, 200, len(data)) == expected
    assert f.ones_sum(data) == expected


def test_rfc_1624_example() -> None:
    """Section 4: the header's checksum DD2F when a word changes from 5555 to 3285."""
    assert checksum.update(0xDD2F, checksum.delta(0x5555, 0x3285)) == 0x0000


@pytest.mark.parametrize("value", [0, 1, 0xFFFF, 0x10000, 0xFFFF_FFFF, 2**48 - 1])
def test_fold(value) -> None:
    assert checksum.fold(value) % 0xFFFF == value % 0xFFFF
    assert (checksum.fold(value) == 0) == (value == 0)


def words(datagram: bytes) -> int:
    return int.from_bytes(datagram[26:28], "big")


def rewritten(load, frame: bytes, saddr: str, sport: int):
    """The packet with another source, rewritten the incremental way; bare IPv4, UDP."""
    pkt = load(frame, tun=True, vnet=True)
    assert vnet.parse(pkt) == 0
    assert ipv4.parse(pkt) == 0
    old = checksum.sum_address(pkt.saddr_hi, pkt.saddr, 4)
    pkt.saddr = ipv4.MAPPED | int.from_bytes(f.address_bytes(saddr), "big")
    new = checksum.sum_address(pkt.saddr_hi, pkt.saddr, 4)
    ports = checksum.delta(pkt.be16(pkt.l4), sport)
    pkt.put32(pkt.l3 + 12, pkt.saddr & 0xFFFFFFFF)
    pkt.put16(pkt.l4, sport)
    checksum.fix_l4(pkt, pkt.l4 + 6, checksum.delta(old, new), ports)
    return pkt.frame()


def test_udp_without_a_checksum_stays_without(load) -> None:
    packet = f.ipv4("10.0.0.1", "10.0.0.2", f.udp(1, 2, b"x", checksum=0))
    assert words(rewritten(load, f.PLAIN + packet, "10.0.0.9", 7)) == 0


def test_a_udp_sum_of_zero_is_written_as_ones(load) -> None:
    """The source port is chosen so that the new checksum computes to zero."""
    bare = f.ipv4("10.0.0.9", "10.0.0.2", f.udp(0, 2, b"x"))
    port = words(bare)
    right = f.ipv4("10.0.0.9", "10.0.0.2", f.udp(port, 2, b"x"))
    assert words(right) == 0xFFFF
    packet = f.ipv4("10.0.0.1", "10.0.0.2", f.udp(1, 2, b"x"))
    assert words(rewritten(load, f.PLAIN + packet, "10.0.0.9", port)) == 0xFFFF
    # and away from there again
    assert words(rewritten(load, f.PLAIN + right, "10.0.0.1", 1)) == words(packet)


def test_a_partial_udp_field_may_be_anything(load) -> None:
    """Zero in a partial field is a sum like any other: neither "none" nor to be written as ones."""
    packet = f.ipv4("10.0.0.1", "10.0.0.2", f.udp(1, 2, b"x"))
    frame = f.vnet(packet, tun=True, needs_csum=True, field_value=0)
    change = f.ones_sum(bytes.fromhex("ffff0a000009")) - f.ones_sum(bytes.fromhex("ffff0a000001"))
    assert words(rewritten(load, frame, "10.0.0.9", 7)) == change


@pytest.mark.parametrize("wrong", [1, 0x7FFF, 0xFFFE])
def test_a_wrong_checksum_stays_as_wrong(wrong, load) -> None:
    before = f.ipv4("10.0.0.1", "10.0.0.2", f.udp(1, 2, b"x"))
    after = f.ipv4("10.0.0.9", "10.0.0.2", f.udp(7, 2, b"x"))
    value = (words(before) + wrong) % 0xFFFF
    packet = f.ipv4("10.0.0.1", "10.0.0.2", f.udp(1, 2, b"x", checksum=value))
    got = words(rewritten(load, f.PLAIN + packet, "10.0.0.9", 7))
    assert (got - words(after)) % 0xFFFF == wrong % 0xFFFF
