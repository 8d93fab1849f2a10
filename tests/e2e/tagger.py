"""A VLAN interface in user space: `python tagger.py TAP WIRE VID`, until it is killed.

The kernel under test may lack 802.1Q. Frames of the TAP get a tag and leave by WIRE, and tagged
ones that WIRE takes in lose it; offloads pass, because both sides speak virtio-net headers.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys

from tunlb.tap import open_device

SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15
PACKET_OUTGOING = 4
ETH_P_ALL = 3
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
VLAN_VALID = 1 << 4
VNET = struct.Struct("=BBHHHH")
MAX_FRAME = 1 << 17


def tagged(data: bytes, vid: int) -> bytes:
    """`data` begins with a virtio-net header, whose offsets count from the frame's begin."""
    flags, kind, header, segment, start, offset = VNET.unpack_from(data)
    frame = data[VNET.size :]
    vnet = VNET.pack(
        flags, kind, header + 4 if header else 0, segment, start + 4 if flags & 1 else 0, offset
    )
    return vnet + frame[:12] + struct.pack("!HH", 0x8100, vid) + frame[12:]


def vid_of(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The VLAN that the kernel took from the frame."""
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, *_, tci, _ = AUXDATA.unpack(data)
            return tci & 0xFFF if status & VLAN_VALID else None
    return None


def main() -> None:
    name, interface, number = sys.argv[1:]
    vid = int(number)
    tap = open_device(name).fd
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        wire.bind((interface, ETH_P_ALL))
        watched: list[int | socket.socket] = [tap, wire]
        while True:
            ready, _, _ = select.select(watched, [], [])
            # A link that is down, or a full queue: frames are lost, as on any wire.
            with contextlib.suppress(OSError):
                if tap in ready:
                    wire.send(tagged(os.read(tap, MAX_FRAME), vid))
                if wire in ready:
                    data, ancillary, _, source = wire.recvmsg(MAX_FRAME, 256)
                    if source[2] != PACKET_OUTGOING and vid_of(ancillary) == vid:
                        os.write(tap, data)


if __name__ == "__main__":
    main()
