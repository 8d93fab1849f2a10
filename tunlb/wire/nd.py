"""Neighbour discovery messages (RFC 4861); a cold room: frames are built as bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tunlb.netif import Key, Netif
from tunlb.packet import Packet
from tunlb.wire import ether
from tunlb.wire.icmp import V6_NA, V6_NS

ALL_NODES: Key = (0xFF02 << 48, 1)
ALL_NODES_MAC = bytes.fromhex("333300000001")
OPTION_SOURCE = 1
OPTION_TARGET = 2
SOLICITED = 0x40
OVERRIDE = 0x20


@dataclass(frozen=True)
class Message:
    """A checked NS or NA; ``mac`` is b"" without a link-layer option, ``claim`` the address that it
    belongs to.
    """

    solicitation: bool
    target: Key
    claim: Key
    mac: bytes
    solicited: bool


def _bytes(key: Key) -> bytes:
    return key[0].to_bytes(8, "big") + key[1].to_bytes(8, "big")


def _sum(data: bytes) -> int:
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _frame(netif: Netif, to: bytes, source: Key, target: Key, message: bytes) -> bytes:
    pseudo = _bytes(source) + _bytes(target) + len(message).to_bytes(4, "big") + b"\0\0\0\x3a"
    checksum = 0xFFFF - _sum(pseudo + message)
    message = message[:2] + checksum.to_bytes(2, "big") + message[4:]
    header = (
        b"\x60\0\0\0"
        + len(message).to_bytes(2, "big")
        + b"\x3a\xff"
        + _bytes(source)
        + _bytes(target)
    )
    return ether.header(netif, to, ether.ETH_P_IPV6) + header + message


def solicited_node(target: Key) -> Key:
    return 0xFF02 << 48, 0x1_FF00_0000 | (target[1] & 0xFF_FFFF)


def solicit(netif: Netif, source: Key, target: Key, to: bytes) -> bytes:
    """A neighbour solicitation for ``target``: to its group, or to the MAC address ``to`` when that
    is not empty.
    """
    group = solicited_node(target)
    message = (
        bytes((V6_NS, 0, 0, 0, 0, 0, 0, 0))
        + _bytes(target)
        + bytes((OPTION_SOURCE, 1))
        + netif.mac_bytes
    )
    if to:
        return _frame(netif, to, source, target, message)
    return _frame(netif, b"\x33\x33" + _bytes(group)[12:], source, group, message)


def advertise(netif: Netif, target: Key, asker: Key | None, to: bytes) -> bytes:
    """A neighbour advertisement of ``target``, an address of ours: to ``asker``, or unsolicited to
    all nodes.
    """
    flags = OVERRIDE if asker is None else OVERRIDE | SOLICITED
    message = (
        bytes((V6_NA, 0, 0, 0, flags, 0, 0, 0))
        + _bytes(target)
        + bytes((OPTION_TARGET, 1))
        + netif.mac_bytes
    )
    if asker is None:
        return _frame(netif, ALL_NODES_MAC, target, ALL_NODES, message)
    return _frame(netif, to, target, asker, message)


def parse(pkt: Packet) -> Message | None:
    """The NS or NA in ``pkt`` after the checks of RFC 4861 section 7.1, or None (the checksum is
    the caller's).
    """
    body = bytes(pkt.mem[pkt.l4 : pkt.end])
    if pkt.ttl != 255 or len(body) < 24 or body[1] != 0:
        return None
    solicitation = body[0] == V6_NS
    target = (int.from_bytes(body[8:16], "big"), int.from_bytes(body[16:24], "big"))
    if target[0] >> 56 == 0xFF:
        return None
    wanted = OPTION_SOURCE if solicitation else OPTION_TARGET
    mac = b""
    at = 24
    while at + 8 <= len(body):
        length = body[at + 1] * 8
        if length == 0 or at + length > len(body):
            return None
        if body[at] == wanted and length == 8:
            mac = body[at + 2 : at + 8]
        at += length
    if at != len(body):
        return None
    source = (pkt.saddr_hi, pkt.saddr)
    unspecified = source == (0, 0)
    solicited = bool(body[4] & SOLICITED)
    if solicitation and unspecified and (mac or pkt.daddr_hi != 0xFF02 << 48):
        return None
    if not solicitation and solicited and pkt.daddr_hi >> 56 == 0xFF:
        return None
    return Message(
        solicitation,
        target,
        source if solicitation else target,
        mac,
        solicited and not solicitation,
    )
