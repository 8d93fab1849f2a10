"""The virtio-net header before every frame of a TAP or TUN (linux/virtio_net.h, legacy 10-byte
form).

Fields are native-endian (we never set TUNSETVNETBE). ``csum_start`` counts from the frame's first
byte; in the Packet it is kept as an index into the buffer, so that a change of the L2 header does
not touch it.
"""

from __future__ import annotations

import sys

import cython

from tunlb.counters import DropReason
from tunlb.packet import IPPROTO_TCP, IPPROTO_UDP, VNET_LEN, Packet

NEEDS_CSUM = 1
DATA_VALID = 2
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80

_NEEDS_CSUM = cython.declare(cython.int, NEEDS_CSUM)
_DATA_VALID = cython.declare(cython.int, DATA_VALID)
_GSO_TCPV4 = cython.declare(cython.int, GSO_TCPV4)
_GSO_TCPV6 = cython.declare(cython.int, GSO_TCPV6)
_GSO_UDP_L4 = cython.declare(cython.int, GSO_UDP_L4)
_GSO_ECN = cython.declare(cython.int, GSO_ECN)
_VNET_LEN = cython.declare(cython.int, VNET_LEN)
_TCP = cython.declare(cython.int, IPPROTO_TCP)
_UDP = cython.declare(cython.int, IPPROTO_UDP)
_BAD = cython.declare(cython.int, DropReason.VNET_HEADER)
_LOW = cython.declare(cython.int, 0 if sys.byteorder == "little" else 1)
_HIGH = cython.declare(cython.int, 1 - (0 if sys.byteorder == "little" else 1))


def _get16(pkt: Packet, offset: cython.Py_ssize_t) -> cython.int:
    p = pkt.p
    return p[offset + _LOW] | (p[offset + _HIGH] << 8)


def _set16(pkt: Packet, offset: cython.Py_ssize_t, value: cython.int) -> None:
    p = pkt.p
    p[offset + _LOW] = value & 0xFF
    p[offset + _HIGH] = (value >> 8) & 0xFF


def parse(pkt: Packet) -> cython.int:
    """Read the header that precedes the frame; 0 or VNET_HEADER."""
    p = pkt.p
    base: cython.int = pkt.start - _VNET_LEN
    flags: cython.int = p[base]
    gso_type: cython.int = p[base + 1]
    if flags & _NEEDS_CSUM:
        pkt.csum_start = pkt.start + _get16(pkt, base + 6)
        pkt.csum_offset = _get16(pkt, base + 8)
        if pkt.csum_start + pkt.csum_offset + 2 > pkt.end:
            return _BAD
    elif flags & _DATA_VALID:
        pkt.data_valid = True
    if gso_type != 0:
        kind: cython.int = gso_type & ~_GSO_ECN
        if kind != _GSO_TCPV4 and kind != _GSO_TCPV6 and kind != _GSO_UDP_L4:
            return _BAD
        pkt.gso_type = gso_type
        pkt.gso_size = _get16(pkt, base + 4)
        if pkt.gso_size == 0 or pkt.gso_size == 0xFFFF or pkt.csum_start == 0:
            return _BAD
    return 0


def check(pkt: Packet) -> cython.int:
    """Hold the offload fields against the parsed packet; 0 or VNET_HEADER.

    A checksum that starts before the transport header would make the kernel write into the IP
    header, so it is refused, and so is a GSO type that is not the packet's own protocol.
    """
    if pkt.csum_start == 0:
        return 0
    if pkt.csum_start < pkt.l4 or pkt.csum_start + pkt.csum_offset + 2 > pkt.end:
        return _BAD  # the second: in the padding that the IP length cut off
    expected: cython.int = 16 if pkt.proto == _TCP else 6
    if pkt.csum_start == pkt.l4 and (pkt.proto == _TCP or pkt.proto == _UDP):
        if pkt.csum_offset != expected:
            return _BAD
    elif pkt.gso_type != 0:
        return _BAD
    if pkt.gso_type == 0:
        return 0
    kind: cython.int = pkt.gso_type & ~_GSO_ECN
    if kind == _GSO_UDP_L4:
        if pkt.proto != _UDP or pkt.gso_type & _GSO_ECN:
            return _BAD
    elif pkt.proto != _TCP or (kind == _GSO_TCPV4) != (pkt.af == 4):
        return _BAD
    return 0


def trust(pkt: Packet) -> None:
    """Make a frame that nobody parsed ready for :func:`emit`: of a GSO frame it needs to know where
    the transport header is, which is where its checksum starts.
    """
    if pkt.gso_type != 0 and pkt.l4 == 0:
        pkt.l4 = pkt.csum_start
        pkt.proto = _UDP if pkt.gso_type & ~_GSO_ECN == _GSO_UDP_L4 else _TCP


def emit(pkt: Packet) -> None:
    """Write the header before the frame, from the Packet's fields.

    ``hdr_len`` is set to the real length of all headers: what the kernel reports on read is only a
    hint.
    """
    p = pkt.p
    base: cython.int = pkt.start - _VNET_LEN
    i: cython.int
    if pkt.csum_start == 0:
        for i in range(_VNET_LEN):
            p[base + i] = 0
        return
    p[base] = _NEEDS_CSUM
    p[base + 1] = pkt.gso_type
    headers: cython.int = pkt.csum_start + pkt.csum_offset + 2 - pkt.start
    if pkt.gso_type != 0:
        headers = pkt.l4 - pkt.start + (8 if pkt.proto == _UDP else (p[pkt.l4 + 12] >> 4) * 4)
    _set16(pkt, base + 2, headers)
    _set16(pkt, base + 4, pkt.gso_size)
    _set16(pkt, base + 6, pkt.csum_start - pkt.start)
    _set16(pkt, base + 8, pkt.csum_offset)
