"""CRC-32C against the vectors of RFC 3720 appendix B.4."""

from __future__ import annotations

import pytest

from tunlb.packet import Packet
from tunlb.wire import crc32c

ALL = 0xFFFFFFFF

VECTORS = [
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (
        bytes.fromhex(
            "01c00000000000000000000000000000140000000000040000000014000000182800000000000000"
            "0200000000000000"
        ),
        0xD9963A56,
    ),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_vectors(data: bytes, expected: int) -> None:
    pkt = Packet()
    pkt.mem[200 : 200 + len(data)] = data
    assert ALL ^ crc32c.add(ALL, pkt, 200, len(data)) == expected


def test_in_pieces() -> None:
    pkt = Packet()
    pkt.mem[0:300] = bytes(range(256)) + bytes(44)
    whole = crc32c.add(ALL, pkt, 0, 300)
    assert crc32c.add(crc32c.add(ALL, pkt, 0, 7), pkt, 7, 293) == whole
    assert crc32c.add(whole, pkt, 300, 0) == whole


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 16, 255, 1500, 65535, 100_000])
def test_a_difference_some_bytes_later(length: int) -> None:
    """As many zero bytes do the same to it."""
    pkt = Packet()
    done = 0
    value = 0x12345678
    while done < length:
        step = min(length - done, 60_000)
        value = crc32c.add(value, pkt, 1000, step)
        done += step
    assert crc32c.shifted(0x12345678, length) == value
