"""Ethernet II and one 802.1Q tag (IEEE 802.3, 802.1Q)."""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.libc.string import memcpy

from tunlb.counters import DropReason
from tunlb.netif import Netif
from tunlb.packet import (
    BROADCAST,
    ETHER_LEN,
    HOST,
    L3_OFFSET,
    MULTICAST,
    OTHERHOST,
    VLAN_LEN,
    Packet,
)

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_8021Q = 0x8100
ETH_P_8021AD = 0x88A8
ETH_P_IPV6 = 0x86DD
BROADCAST_MAC = 0xFFFFFFFFFFFF

_8021Q = cython.declare(cython.int, ETH_P_8021Q)
_8021AD = cython.declare(cython.int, ETH_P_8021AD)
_ETHER_LEN = cython.declare(cython.int, ETHER_LEN)
_VLAN_LEN = cython.declare(cython.int, VLAN_LEN)
_L3_OFFSET = cython.declare(cython.int, L3_OFFSET)
_BROADCAST_MAC = cython.declare(cython.ulonglong, BROADCAST_MAC)
_HOST = cython.declare(cython.int, HOST)
_BROADCAST = cython.declare(cython.int, BROADCAST)
_MULTICAST = cython.declare(cython.int, MULTICAST)
_OTHERHOST = cython.declare(cython.int, OTHERHOST)
_TRUNCATED = cython.declare(cython.int, DropReason.TRUNCATED)
_OWN_MAC = cython.declare(cython.int, DropReason.OWN_MAC)
_VLAN_UNKNOWN = cython.declare(cython.int, DropReason.VLAN_UNKNOWN)
_VLAN_STACK = cython.declare(cython.int, DropReason.VLAN_STACK)
_MARTIAN = cython.declare(cython.int, DropReason.MARTIAN)


def mac_at(pkt: Packet, offset: cython.Py_ssize_t) -> cython.ulonglong:
    """The MAC address at ``offset`` as an integer."""
    high: cython.ulonglong = pkt.be16(offset)
    return (high << 32) | pkt.be32(offset + 2)


def parse(pkt: Packet) -> cython.int:
    """Check the L2 header, strip a tag, classify the frame and set ``iif`` to the sub-port of its
    VLAN.

    0, or TRUNCATED, OWN_MAC, MARTIAN (group source address), VLAN_UNKNOWN or VLAN_STACK. A tagged
    frame leaves here with its packet moved to L3_OFFSET, as if it had come untagged on the
    sub-port.
    """
    start: cython.Py_ssize_t = pkt.start
    if pkt.end - start < _ETHER_LEN:
        return _TRUNCATED
    netif: Netif = pkt.iif
    dst: cython.ulonglong = mac_at(pkt, start)
    src: cython.ulonglong = mac_at(pkt, start + 6)
    if src == netif.mac:
        return _OWN_MAC
    if src >> 40 & 1:
        return _MARTIAN
    if dst == netif.mac:
        pkt.l2_type = _HOST
    elif dst >> 40 & 1:
        pkt.l2_type = _BROADCAST if dst == _BROADCAST_MAC else _MULTICAST
    else:
        pkt.l2_type = _OTHERHOST
    pkt.ether_type = pkt.be16(start + 12)
    if pkt.ether_type == _8021Q or pkt.ether_type == _8021AD:
        return _untag(pkt, netif)
    return 0


def _untag(pkt: Packet, netif: Netif) -> cython.int:
    if pkt.end - pkt.start < _ETHER_LEN + _VLAN_LEN:
        return _TRUNCATED
    if pkt.ether_type == _8021AD:
        return _VLAN_STACK
    vid: cython.int = pkt.be16(pkt.start + 14) & 0xFFF
    pkt.ether_type = pkt.be16(pkt.start + 16)
    if pkt.ether_type == _8021Q or pkt.ether_type == _8021AD:
        return _VLAN_STACK
    if vid != 0:  # VID 0 is a priority tag: the frame belongs to the port itself
        vlan: Netif | None = netif.vlans.get(vid)
        if vlan is None:
            return _VLAN_UNKNOWN
        pkt.iif = vlan
    # The packet must sit at L3_OFFSET. Tagged frames pay for this move; untagged ones never do.
    begin: cython.int = pkt.start + _ETHER_LEN + _VLAN_LEN
    shift: cython.int = begin - _L3_OFFSET
    length: cython.int = pkt.end - begin
    pkt.mem[_L3_OFFSET : _L3_OFFSET + length] = bytes(pkt.mem[begin : begin + length])
    pkt.start = _L3_OFFSET - _ETHER_LEN
    pkt.put16(_L3_OFFSET - 2, pkt.ether_type)  # a whole frame again: it may be handed over
    pkt.end -= shift
    if pkt.csum_start != 0:
        pkt.csum_start -= shift
        if pkt.csum_start < _L3_OFFSET:
            pkt.csum_start = 1  # inside the tag itself: wire.vnet.check refuses it
    return 0


def push(pkt: Packet, prefix: bytes) -> None:
    """Put an L2 header before the packet: ``prefix`` (see :func:`prefix_of`), then the packet's own
    type.
    """
    length: cython.int = len(prefix)
    base: cython.int = pkt.l3 - 2 - length
    if cython.compiled:
        memcpy(pkt.p + base, cython.cast(cython.p_char, prefix), length)
    else:
        pkt.mem[base : base + length] = prefix
    pkt.put16(pkt.l3 - 2, pkt.ether_type)
    pkt.start = base


def prefix_of(netif: Netif, mac: bytes) -> bytes:
    """Everything before the ether type in a frame from ``netif`` to ``mac``: addresses and VLAN
    tag.
    """
    tag = b"" if netif.vid == 0 else ETH_P_8021Q.to_bytes(2, "big") + netif.vid.to_bytes(2, "big")
    return mac + netif.mac_bytes + tag


def header(netif: Netif, mac: bytes, ether_type: int) -> bytes:
    """The L2 header of a frame that we build whole."""
    return prefix_of(netif, mac) + ether_type.to_bytes(2, "big")


def mac_text(mac: int) -> str:
    return mac.to_bytes(6, "big").hex(":")
