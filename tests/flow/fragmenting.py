"""IP packets cut into fragments, and put together again."""

from __future__ import annotations

from tunlb.testing.frames import checksum, eth, l3_offset, vnet


def cut(packet: bytes, size: int = 1440, ident: int = 0x1234) -> list[bytes]:
    """The fragments of an IP packet without extension headers, ``size`` bytes each."""
    return (_cut_v6 if packet[0] >> 4 == 6 else _cut_v4)(packet, size, ident)


def _cut_v4(packet: bytes, size: int, ident: int) -> list[bytes]:
    header, body = packet[:20], packet[20:]
    found = []
    for at in range(0, len(body), size):
        part = body[at : at + size]
        more = at + size < len(body)
        flags = (0x2000 if more else 0) | at // 8
        head = bytearray(header)
        head[2:4] = (20 + len(part)).to_bytes(2, "big")
        head[4:8] = ident.to_bytes(2, "big") + flags.to_bytes(2, "big")
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
        found.append(bytes(head) + part)
    return found


def _cut_v6(packet: bytes, size: int, ident: int) -> list[bytes]:
    header, body = packet[:40], packet[40:]
    found = []
    for at in range(0, len(body), size):
        part = body[at : at + size]
        more = at + size < len(body)
        head = bytearray(header)
        head[4:6] = (8 + len(part)).to_bytes(2, "big")
        head[6] = 44
        extension = bytes((header[6], 0)) + (at | more).to_bytes(2, "big")
        found.append(bytes(head) + extension + ident.to_bytes(4, "big") + part)
    return found


def joined(frames: list[bytes]) -> bytes:
    """The frame, virtio-net header first, that fragments like this were cut from."""
    packets = [frame[10 + l3_offset(frame[10:]) :] for frame in frames]
    l2 = frames[0][10 : 10 + l3_offset(frames[0][10:])]
    v6 = packets[0][0] >> 4 == 6
    parts = {}
    for packet in packets:
        if v6:
            assert packet[6] == 44
            at = int.from_bytes(packet[42:44], "big") & 0xFFF8
            parts[at] = packet[48 : 40 + int.from_bytes(packet[4:6], "big")]
        else:
            at = (int.from_bytes(packet[6:8], "big") & 0x1FFF) * 8
            parts[at] = packet[20 : int.from_bytes(packet[2:4], "big")]
    body = b"".join(parts[at] for at in sorted(parts))
    first = next(packet for packet in packets if _offset(packet) == 0)
    if v6:
        head = bytearray(first[:40])
        head[4:6] = len(body).to_bytes(2, "big")
        head[6] = first[40]
    else:
        head = bytearray(first[:20])
        head[2:4] = (20 + len(body)).to_bytes(2, "big")
        head[6:8] = b"\0\0"
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
    return vnet(l2 + bytes(head) + body)


def _offset(packet: bytes) -> int:
    if packet[0] >> 4 == 6:
        return int.from_bytes(packet[42:44], "big") & 0xFFF8
    return (int.from_bytes(packet[6:8], "big") & 0x1FFF) * 8


def framed(packet: bytes, dst: str, src: str) -> bytes:
    return vnet(eth(dst, src, payload=packet))
