"""Pass-through: what tunlb does not handle goes to the host beside the port (DPVS: KNI).

The frame is where the port read it, whole, because nothing before POST_ROUTING touches the L2
header. The host's TAP has the port's own MAC address, so it takes the frame as it came.
"""

from __future__ import annotations

import struct

import cython

from tunlb.counters import Counters, Event
from tunlb.hook import Verdict
from tunlb.netif import Netif
from tunlb.packet import VNET_LEN, Packet
from tunlb.wire.vnet import NEEDS_CSUM

if cython.compiled:
    from cython.cimports.tunlb.wire import vnet
else:
    from tunlb.wire import vnet

#: Of the first byte of a MAC address: flipped in the destination of a mirrored frame that tunlb
#: takes itself, so that the host shows it to tcpdump and does not answer it as well.
SHADOW = 0x04

_VNET = struct.Struct("=BBHHHH")  # flags, GSO type, length of headers, GSO size, checksum's place
_SHADOW = cython.declare(cython.int, SHADOW)
_VNET_LEN = cython.declare(cython.int, VNET_LEN)
_NEEDS_CSUM = cython.declare(cython.int, NEEDS_CSUM)
_ETH_P_8021Q = cython.declare(cython.int, 0x8100)
_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_HOST_IN = cython.declare(cython.int, Event.HOST_IN)


def pass_on(pkt: Packet, counters: Counters) -> cython.int:
    """ACCEPT: write the frame to the host of its ``iif``, which must have one."""
    vnet.trust(pkt)
    pkt.oif = pkt.iif.host
    counters.add(_HOST_IN, 1)
    return _ACCEPT


def shown(pkt: Packet, netif: Netif) -> bytes:
    """The frame, which came by ``netif``, for its host to show and not to answer, with its
    virtio-net header.

    One that another worker read came without its VLAN tag, which is put back (of the priority in it
    nobody knows any more).
    """
    start: cython.int = pkt.start
    header: bytes = bytes(pkt.mem[start - _VNET_LEN : start])
    to: bytes = bytes(pkt.mem[start : start + 6])
    if to == netif.mac_bytes or (to[:1] and to[0] & 1):
        to = bytes((netif.mac_bytes[0] ^ _SHADOW,)) + netif.mac_bytes[1:]
    tag: bytes = b""
    if pkt.iif.vid != 0:
        tag = struct.pack("!HH", _ETH_P_8021Q, pkt.iif.vid)
        flags, gso_type, length, size, begin, offset = _VNET.unpack(header)
        if flags & _NEEDS_CSUM:
            moved = length + len(tag), size, begin + len(tag), offset
            header = _VNET.pack(flags, gso_type, *moved)
    return (
        header
        + to
        + bytes(pkt.mem[start + 6 : start + 12])
        + tag
        + bytes(pkt.mem[start + 12 : pkt.end])
    )
