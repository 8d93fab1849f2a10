"""SCTP packets for tests: built, and read strictly (RFC 9260 section 3).

The checksum is computed bit by bit, independently of :mod:`tunlb.wire.crc32c`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tunlb.testing.frames import Transport

SCTP = 132

DATA, INIT, INIT_ACK, SACK, HEARTBEAT, HEARTBEAT_ACK, ABORT = range(7)
SHUTDOWN, SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK = range(7, 12)
SHUTDOWN_COMPLETE = 14


@dataclass
class Sctp:
    """The common header; ``chunks`` are (type, flags, body without padding)."""

    sport: int
    dport: int
    vtag: int
    checksum: int
    chunks: tuple[tuple[int, int, bytes], ...] = ()


def crc32c(data: bytes) -> int:
    """The checksum as a number whose least significant byte is the first on the wire."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def chunk(kind: int, body: bytes = b"", flags: int = 0, *, length: int | None = None) -> bytes:
    """A chunk, padded to 4 bytes."""
    size = 4 + len(body) if length is None else length
    return struct.pack("!BBH", kind, flags, size) + body + bytes(-len(body) % 4)


def init(vtag: int = 0x1234, *, kind: int = INIT, params: bytes = b"") -> bytes:
    """An INIT or INIT ACK chunk."""
    return chunk(kind, struct.pack("!IIHHI", vtag, 65536, 1, 1, 1) + params)


def sctp(
    sport: int, dport: int, *chunks: bytes, vtag: int = 0, checksum: int | None = None
) -> Transport:
    """An SCTP packet; ``checksum`` None is the right one."""
    head, body = struct.pack("!HHI", sport, dport, vtag), b"".join(chunks)
    value = crc32c(head + bytes(4) + body) if checksum is None else checksum
    whole = head + struct.pack("<I", value) + body
    return Transport({4: SCTP, 16: SCTP}, lambda saddr, daddr: whole)


def read(body: bytes) -> tuple[Sctp | None, list[str]]:
    """The packet and what is wrong with it."""
    if len(body) < 16:
        return None, [f"SCTP in {len(body)} bytes"]
    sport, dport, vtag = struct.unpack("!HHI", body[:8])
    (value,) = struct.unpack("<I", body[8:12])
    problems = []
    right = crc32c(body[:8] + bytes(4) + body[12:])
    if value != right:
        problems.append(f"wrong CRC-32C {value:#010x}, right is {right:#010x}")
    chunks = []
    at = 12
    while at < len(body):
        kind, flags, length = struct.unpack("!BBH", body[at : at + 4].ljust(4, b"\0"))
        if length < 4 or at + length > len(body):
            problems.append(f"an SCTP chunk of {length} bytes where {len(body) - at} are left")
            break
        chunks.append((kind, flags, body[at + 4 : at + length]))
        at += length + -length % 4
    return Sctp(sport, dport, vtag, value, tuple(chunks)), problems
