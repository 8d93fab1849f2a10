"""What a dest behind a tunnel runs: takes packets out of IPIP, GRE and GUE, for a kernel without
such devices.

    decap.py DEVICE TUN GUE_PORT

Reads DEVICE by a packet socket, takes the outer header off and writes the inner packet to TUN,
whose kernel holds the VIP, has the server, and verifies every checksum: a partial one, which a
device of hardware would have finished, is finished here. Prints "ready", and at its end (end of
standard input) what it saw, as JSON: packets by outer header, and how many checksums were wrong.

Started by its path in an isolated interpreter: the standard library only.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING = 263, 15, 4
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
IPIP, UDP, IPV6, GRE = 4, 17, 41, 47
BURST = 256

seen: collections.Counter[str] = collections.Counter()


def ones_sum(data: bytes) -> int:
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return number % 0xFFFF or (0xFFFF if number else 0)


def open_tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def silence(port: int) -> list[socket.socket]:
    """Sockets that take the outer packets as well, so that the kernel does not refuse them."""
    held = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for proto in (IPIP, IPV6, GRE):
            held.append(socket.socket(family, socket.SOCK_RAW, proto))
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
        held.append(sock)
    # A classic BPF program that keeps nothing: a socket whose buffer is full counts as none.
    nothing = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(nothing))
    for sock in held:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    return held


def finish(frame: bytes) -> bytes:
    """The frame behind its virtio-net header, its partial checksum finished."""
    flags, _, _, _, start, offset = struct.unpack_from("=BBHHHH", frame)
    data = frame[10:]
    if not flags & 1:
        return data
    seen["partial"] += 1
    at = start + offset
    value = (0xFFFF - ones_sum(data[start:])) or 0xFFFF
    return data[:at] + struct.pack("!H", value) + data[at + 2 :]


def unwrap(packet: bytes, port: int) -> bytes:
    """The inner packet, or nothing."""
    version = packet[0] >> 4
    at, proto = (20, packet[9]) if version == 4 else (40, packet[6])
    addresses = packet[12:20] if version == 4 else packet[8:40]
    if proto in (IPIP, IPV6):
        seen[f"ipip{version}"] += 1
        return packet[at:]
    if proto == GRE:
        seen[f"gre{version}"] += 1
        if packet[at] & 0x80:
            seen["gre-csum"] += 1
            seen["wrong"] += ones_sum(packet[at:]) != 0xFFFF
            return packet[at + 8 :]
        return packet[at + 4 :]
    if proto == UDP and int.from_bytes(packet[at + 2 : at + 4], "big") == port:
        seen[f"gue{version}"] += 1
        length = int.from_bytes(packet[at + 4 : at + 6], "big")
        if packet[at + 6 : at + 8] != b"\0\0":
            seen["gue-csum"] += 1
            whole = addresses + struct.pack("!HH", UDP, length) + packet[at:]
            seen["wrong"] += ones_sum(whole) != 0xFFFF
        return packet[at + 12 :]
    return b""


def main() -> None:
    device, name, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tun = open_tun(name)
    held = silence(port)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    sock.bind((device, ETH_P_ALL))
    sock.setblocking(False)
    print("ready", flush=True)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                print(json.dumps(seen), flush=True)
                del held
                return
            with contextlib.suppress(BlockingIOError):
                for _ in range(BURST):
                    frame, (_, kind, where, *_) = sock.recvfrom(70000)
                    if where == PACKET_OUTGOING or kind not in (0x0800, 0x86DD):
                        continue
                    inner = unwrap(finish(frame)[14:], port)
                    if inner:
                        os.write(tun, inner)


if __name__ == "__main__":
    main()
