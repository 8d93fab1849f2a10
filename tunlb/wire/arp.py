"""ARP for IPv4 over Ethernet (RFC 826); a cold room: frames are built as bytes."""

from __future__ import annotations

from tunlb.netif import Netif
from tunlb.wire import ether

LENGTH = 28
REQUEST = 1
REPLY = 2
_PREFIX = bytes.fromhex("000108000604")


def build(
    netif: Netif, operation: int, sender: int, target_mac: bytes, target: int, to: bytes
) -> bytes:
    """An ARP frame from ``netif``, padded to 60 bytes; ``sender`` and ``target`` are 32-bit IPv4
    addresses.
    """
    body = (
        _PREFIX
        + operation.to_bytes(2, "big")
        + netif.mac_bytes
        + sender.to_bytes(4, "big")
        + target_mac
        + target.to_bytes(4, "big")
    )
    return (ether.header(netif, to, ether.ETH_P_ARP) + body).ljust(60, b"\0")


def is_ethernet_ipv4(body: bytes) -> bool:
    """Hardware Ethernet, protocol IPv4, lengths 6 and 4."""
    return len(body) >= LENGTH and body[:6] == _PREFIX
