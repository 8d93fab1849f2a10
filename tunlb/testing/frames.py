"""Builds frames as bytes: right by default, and every field can be made to lie.

Builders nest as headers do::

    eth(MAC_A, MAC_B, payload=ipv4("10.0.0.1", "10.0.0.100", tcp(40000, 80, flags="S")))

A transport builder returns a :class:`Transport`, which the IP builder around it turns into bytes,
because its checksum covers the addresses. ``None`` for a length or checksum means the right one.
:class:`Flow` makes the frames of one TCP or UDP flow, and :func:`vnet` puts the virtio-net header
of a port before a frame.

The sums here are computed independently of :mod:`tunlb.wire`, so that tests hold one against the
other.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Mac = str | bytes

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_8021Q = 0x8100
ETH_P_IPV6 = 0x86DD
TCP = 6
UDP = 17
ICMP = 1
ICMPV6 = 58

PLAIN = bytes(10)  #: a virtio-net header without any offload
NEEDS_CSUM = 1
DATA_VALID = 2
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5

CLIENT_MAC = "02:00:00:00:00:01"
SERVER_MAC = "02:00:00:00:00:02"

_FLAGS = "FSRPAUEC"  # bit 0 first


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words; an odd last byte is padded with zero (RFC 1071).

    The sum of base-65536 digits is the number modulo 65535.
    """
    number = int.from_bytes(data + bytes(len(data) % 2), "big")
    return number % 0xFFFF or (0xFFFF if number else 0)


def checksum(data: bytes) -> int:
    return 0xFFFF - ones_sum(data)


def pseudo_header(saddr: bytes, daddr: bytes, proto: int, length: int) -> bytes:
    """RFC 9293 section 3.1 for 4-byte addresses, RFC 8200 section 8.1 for 16-byte ones."""
    if len(saddr) == 4:
        return saddr + daddr + struct.pack("!BBH", 0, proto, length & 0xFFFF)
    return saddr + daddr + struct.pack("!IHBB", length, 0, 0, proto)


def mac_bytes(mac: Mac) -> bytes:
    return mac if isinstance(mac, bytes) else bytes.fromhex(mac.replace(":", ""))


def address_bytes(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def flag_bits(flags: str) -> int:
    """``"SA"`` as the TCP flags byte; letters are F S R P A U E C."""
    return sum(1 << _FLAGS.index(letter) for letter in set(flags))


def flag_letters(bits: int) -> str:
    """The letters of a TCP flags byte, lowest bit first: ``"SA"``, ``"FA"``, ``"PA"``."""
    return "".join(letter for bit, letter in enumerate(_FLAGS) if bits >> bit & 1)


@dataclass(frozen=True)
class Transport:
    """A transport header and its payload that wait for their addresses.

    ``build`` gets (saddr, daddr) packed and returns the bytes; ``proto`` is by address length, 4 or
    16.
    """

    proto: Mapping[int, int]
    build: Callable[[bytes, bytes], bytes]


Payload = bytes | Transport


def _body(payload: Payload, proto: int | None, saddr: bytes, daddr: bytes) -> tuple[int, bytes]:
    if isinstance(payload, bytes):
        return (59 if proto is None else proto), payload
    return payload.proto[len(saddr)] if proto is None else proto, payload.build(saddr, daddr)


def eth(
    dst: Mac = SERVER_MAC,
    src: Mac = CLIENT_MAC,
    type: int | None = None,
    payload: bytes = b"",
    vlan: int | tuple[int, ...] | None = None,
) -> bytes:
    """An Ethernet frame, not padded; ``vlan`` is one 802.1Q TCI or several, outermost first.

    ``type`` None follows the payload's IP version.
    """
    if type is None:
        type = ETH_P_IPV6 if payload[:1] >= b"\x60" else ETH_P_IP
    tags = () if vlan is None else (vlan,) if isinstance(vlan, int) else vlan
    tagged = b"".join(struct.pack("!HH", ETH_P_8021Q, tci) for tci in tags)
    return mac_bytes(dst) + mac_bytes(src) + tagged + struct.pack("!H", type) + payload


def ipv4(
    saddr: str,
    daddr: str,
    payload: Payload = b"",
    *,
    proto: int | None = None,
    ttl: int = 64,
    tos: int = 0,
    ident: int = 0,
    df: bool = True,
    mf: bool = False,
    fragment: int = 0,
    options: bytes = b"",
    version: int = 4,
    ihl: int | None = None,
    total_len: int | None = None,
    checksum: int | None = None,
) -> bytes:
    """An IPv4 packet; ``fragment`` is an offset in bytes, ``ihl`` in 32-bit words."""
    src, dst = address_bytes(saddr), address_bytes(daddr)
    proto, body = _body(payload, proto, src, dst)
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4 if ihl is None else ihl
    length = 20 + len(options) + len(body) if total_len is None else total_len
    flags = df << 14 | mf << 13 | fragment // 8
    head = struct.pack("!BBHHHBB", version << 4 | words, tos, length, ident, flags, ttl, proto)
    value = 0xFFFF - ones_sum(head + src + dst + options) if checksum is None else checksum
    return head + struct.pack("!H", value) + src + dst + options + body


def ipv6(
    saddr: str,
    daddr: str,
    payload: Payload = b"",
    *,
    proto: int | None = None,
    ttl: int = 64,
    tos: int = 0,
    flow: int = 0,
    extensions: tuple[tuple[int, bytes], ...] = (),
    version: int = 6,
    payload_len: int | None = None,
) -> bytes:
    """An IPv6 packet; as in v4, ``ttl`` is the hop limit and ``tos`` the traffic class.

    ``extensions`` are (header number, bytes behind its next-header byte), in order, used as they
    are.
    """
    src, dst = address_bytes(saddr), address_bytes(daddr)
    proto, body = _body(payload, proto, src, dst)
    for number, rest in reversed(extensions):
        body = bytes([proto]) + rest + body
        proto = number
    length = len(body) if payload_len is None else payload_len
    return (
        struct.pack("!IHBB", version << 28 | tos << 20 | flow, length, proto, ttl)
        + src
        + dst
        + body
    )


def ip(saddr: str, daddr: str, payload: Payload = b"", **fields: Any) -> bytes:
    """:func:`ipv4` or :func:`ipv6`, by the addresses."""
    return (ipv6 if ":" in saddr else ipv4)(saddr, daddr, payload, **fields)


def tcp(
    sport: int,
    dport: int,
    payload: bytes = b"",
    *,
    flags: str = "A",
    seq: int = 0,
    ack: int = 0,
    window: int = 65535,
    urgent: int = 0,
    mss: int | None = None,
    options: bytes = b"",
    doff: int | None = None,
    checksum: int | None = None,
) -> Transport:
    """A TCP segment; ``doff`` is the header length in 32-bit words."""
    if mss is not None:
        options = struct.pack("!BBH", 2, 4, mss) + options
    options += bytes(-len(options) % 4)
    words = 5 + len(options) // 4 if doff is None else doff
    head = struct.pack(
        "!HHIIBBH",
        *(sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, flag_bits(flags), window),
    )
    tail = struct.pack("!H", urgent) + options + payload
    return Transport({4: TCP, 16: TCP}, _sealed(TCP, head, tail, checksum))


def udp(
    sport: int,
    dport: int,
    payload: bytes = b"",
    *,
    length: int | None = None,
    checksum: int | None = None,
) -> Transport:
    """A UDP datagram; ``checksum=0`` sends none."""
    head = struct.pack("!HHH", sport, dport, 8 + len(payload) if length is None else length)
    return Transport({4: UDP, 16: UDP}, _sealed(UDP, head, payload, checksum))


def _sealed(
    proto: int, head: bytes, tail: bytes, checksum: int | None
) -> Callable[[bytes, bytes], bytes]:
    def build(saddr: bytes, daddr: bytes) -> bytes:
        value = checksum
        if value is None:
            length = len(head) + 2 + len(tail)
            pseudo = pseudo_header(saddr, daddr, proto, length)
            value = 0xFFFF - ones_sum(pseudo + head + b"\0\0" + tail)
            if value == 0 and proto == UDP:
                value = 0xFFFF
        return head + struct.pack("!H", value) + tail

    return build


def icmp(
    type: int,
    code: int = 0,
    info: int = 0,
    payload: bytes = b"",
    *,
    checksum: int | None = None,
) -> Transport:
    """ICMP, or ICMPv6 when IPv6 carries it; ``info`` is the message's second 32-bit word."""

    def build(saddr: bytes, daddr: bytes) -> bytes:
        tail = struct.pack("!I", info) + payload
        value = checksum
        if value is None:
            data = struct.pack("!BBH", type, code, 0) + tail
            if len(saddr) == 16:
                data = pseudo_header(saddr, daddr, ICMPV6, len(data)) + data
            value = 0xFFFF - ones_sum(data)
        return struct.pack("!BBH", type, code, value) + tail

    return Transport({4: ICMP, 16: ICMPV6}, build)


def echo(ident: int, sequence: int, payload: bytes = b"ping", *, v6: bool = False) -> Transport:
    """An echo request."""
    return icmp(128 if v6 else 8, 0, ident << 16 | sequence, payload)


def nd_ns(target: str, source_mac: Mac | None = None, **fields: Any) -> Transport:
    """A neighbour solicitation (RFC 4861 section 4.3); send it with hop limit 255."""
    option = b"" if source_mac is None else b"\1\1" + mac_bytes(source_mac)
    return icmp(135, 0, 0, address_bytes(target) + option, **fields)


def nd_na(
    target: str,
    target_mac: Mac | None = None,
    *,
    router: bool = False,
    solicited: bool = True,
    override: bool = True,
    **fields: Any,
) -> Transport:
    """A neighbour advertisement (RFC 4861 section 4.4); send it with hop limit 255."""
    option = b"" if target_mac is None else b"\2\1" + mac_bytes(target_mac)
    info = router << 31 | solicited << 30 | override << 29
    return icmp(136, 0, info, address_bytes(target) + option, **fields)


def arp(
    op: int,
    sha: Mac,
    spa: str,
    tha: Mac = bytes(6),
    tpa: str = "0.0.0.0",
    *,
    dst: Mac | None = None,
    src: Mac | None = None,
    vlan: int | None = None,
    hardware: int = 1,
    protocol: int = ETH_P_IP,
    hlen: int = 6,
    plen: int = 4,
) -> bytes:
    """A whole, padded ARP frame (RFC 826); ``op`` 1 asks (broadcast unless ``dst``), 2 answers."""
    body = (
        struct.pack("!HHBBH", hardware, protocol, hlen, plen, op)
        + (mac_bytes(sha) + address_bytes(spa))
        + (mac_bytes(tha) + address_bytes(tpa))
    )
    if dst is None:
        dst = b"\xff" * 6 if op == 1 else tha
    return eth(dst, sha if src is None else src, ETH_P_ARP, body, vlan).ljust(60, b"\0")


def l3_offset(frame: bytes) -> int:
    """Where the payload of an Ethernet frame begins, behind its tags."""
    offset = 12
    while frame[offset : offset + 2] in (b"\x81\x00", b"\x88\xa8"):
        offset += 4
    return offset + 2


def vnet(
    frame: bytes,
    *,
    needs_csum: bool = False,
    gso_type: int = 0,
    gso_size: int = 0,
    data_valid: bool = False,
    tun: bool = False,
    flags: int | None = None,
    hdr_len: int | None = None,
    csum_start: int | None = None,
    csum_offset: int | None = None,
    field_value: int | None = None,
) -> bytes:
    """The frame as a port reads it: behind a virtio-net header of 10 bytes.

    ``needs_csum`` makes the TCP or UDP checksum partial: the field becomes the plain sum of the
    pseudo-header (or ``field_value``), and ``csum_start`` and ``csum_offset`` point to it. IPv6
    extension headers are not walked.
    """
    if not needs_csum and csum_start is None and csum_offset is None:
        start = offset = 0
    else:
        l3 = 0 if tun else l3_offset(frame)
        v6 = frame[l3] >> 4 == 6
        proto = frame[l3 + (6 if v6 else 9)]
        l4 = l3 + (40 if v6 else (frame[l3] & 15) * 4)
        start = l4 if csum_start is None else csum_start
        offset = (6 if proto == UDP else 16) if csum_offset is None else csum_offset
        if needs_csum and csum_start is None and csum_offset is None:
            src, dst = (8, 24) if v6 else (12, 16)
            size = dst - src
            saddr, daddr = frame[l3 + src : l3 + dst], frame[l3 + dst : l3 + dst + size]
            length = int.from_bytes(frame[l3 + 4 : l3 + 6], "big")
            if not v6:
                length = int.from_bytes(frame[l3 + 2 : l3 + 4], "big") - (l4 - l3)
            value = ones_sum(pseudo_header(saddr, daddr, proto, length))
            if field_value is not None:
                value = field_value
            at = start + offset
            frame = frame[:at] + struct.pack("!H", value) + frame[at + 2 :]
    if flags is None:
        flags = needs_csum * NEEDS_CSUM | data_valid * DATA_VALID
    length = start + offset + 2 & 0xFFFF if needs_csum else 0
    head = struct.pack(
        "=BBHHHH", flags, gso_type, length if hdr_len is None else hdr_len, gso_size, start, offset
    )
    return head + frame


def endpoint(text: str) -> tuple[str, int]:
    """``"10.0.0.1:80"`` or ``"[fd00::1]:80"`` as (address, port)."""
    address, _, port = text.rpartition(":")
    return str(ipaddress.ip_address(address.strip("[]"))), int(port)


@dataclass
class Flow:
    """One TCP or UDP flow between two endpoints, seen on one wire; keeps the sequence numbers.

    Methods return Ethernet frames (bare packets when ``tun``) from the client, or from the server
    with ``reply=True``. ``ip`` and keywords override fields of the IP and transport builders in one
    frame.
    """

    client: str
    server: str
    client_mac: Mac = CLIENT_MAC
    server_mac: Mac = SERVER_MAC
    vlan: int | None = None
    tun: bool = False
    ttl: int = 64
    client_seq: int = 1000
    server_seq: int = 5000
    _ends: tuple[tuple[str, int], tuple[str, int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._ends = (endpoint(self.client), endpoint(self.server))

    def syn(self, **fields: Any) -> bytes:
        return self.segment("S", **{"mss": 1460, **fields})

    def synack(self, **fields: Any) -> bytes:
        return self.segment("SA", reply=True, **{"mss": 1460, **fields})

    def ack(self, **fields: Any) -> bytes:
        return self.segment("A", **fields)

    def data(self, payload: bytes = b"data", **fields: Any) -> bytes:
        return self.segment("PA", payload, **fields)

    def fin(self, **fields: Any) -> bytes:
        return self.segment("FA", **fields)

    def rst(self, **fields: Any) -> bytes:
        return self.segment("R", **fields)

    def segment(
        self,
        flags: str,
        payload: bytes = b"",
        *,
        reply: bool = False,
        ip: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> bytes:
        """A TCP segment; the sender's sequence number moves on by what the segment takes."""
        seq, ack = self.client_seq, self.server_seq
        if reply:
            seq, ack = ack, seq
        fields = {"seq": seq, "ack": ack if "A" in flags else 0, **fields}
        taken = len(payload) + ("S" in flags) + ("F" in flags)
        if reply:
            self.server_seq += taken
        else:
            self.client_seq += taken
        return self._frame(tcp, payload, reply, ip, {"flags": flags, **fields})

    def udp(
        self,
        payload: bytes = b"data",
        *,
        reply: bool = False,
        ip: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> bytes:
        """A UDP datagram."""
        return self._frame(udp, payload, reply, ip, fields)

    def _frame(
        self,
        build: Callable[..., Transport],
        payload: bytes,
        reply: bool,
        ip_fields: Mapping[str, Any] | None,
        fields: Mapping[str, Any],
    ) -> bytes:
        (saddr, sport), (daddr, dport) = reversed(self._ends) if reply else self._ends
        transport = build(sport, dport, payload, **fields)
        packet = ip(saddr, daddr, transport, **{"ttl": self.ttl, **(ip_fields or {})})
        if self.tun:
            return packet
        src, dst = self.client_mac, self.server_mac
        if reply:
            src, dst = dst, src
        return eth(dst, src, payload=packet, vlan=self.vlan)
