"""A small, strict parser of frames, independent of :mod:`tunlb.wire`.

It finds every wrong checksum and length, full or partial, and says what is right.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from tunlb.testing import frames
from tunlb.testing.frames import flag_letters, ones_sum, pseudo_header
from tunlb.testing.sctp import SCTP, Sctp
from tunlb.testing.sctp import read as read_sctp

_ERRORS_V4 = (3, 4, 5, 11, 12)  # ICMP types that quote a packet; in ICMPv6 all below 128


@dataclass
class Vnet:
    """The virtio-net header; ``csum_start`` counts from the frame's first byte."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


@dataclass
class Ether:
    """``vlan`` holds the VIDs, outermost first; ``type`` is what follows the tags."""

    dst: str
    src: str
    type: int
    vlan: tuple[int, ...]


@dataclass
class Ip:
    """IPv4 or IPv6; ``ttl`` is the hop limit, ``tos`` the traffic class, ``proto`` the transport.

    ``total_len`` counts the header; ``options`` are IPv4 options or IPv6 extension headers as they
    stand. ``fragment`` is the offset in bytes.
    """

    version: int
    saddr: str
    daddr: str
    ttl: int
    proto: int
    tos: int
    total_len: int
    header_len: int
    options: bytes
    ident: int = 0
    df: bool = False
    mf: bool = False
    fragment: int = 0
    flow: int = 0


@dataclass
class Tcp:
    """``flags`` are letters in the order FSRPAUEC; ``mss`` is None without the option."""

    sport: int
    dport: int
    seq: int
    ack: int
    flags: str
    window: int
    checksum: int
    options: bytes
    mss: int | None = None


@dataclass
class Udp:
    sport: int
    dport: int
    length: int
    checksum: int


@dataclass
class Icmp:
    """``info`` is the second 32-bit word: identifier and sequence, an MTU, or ND flags.

    ``target`` and ``lladdr`` are those of neighbour discovery, else None.
    """

    type: int
    code: int
    info: int
    checksum: int
    target: str | None = None
    lladdr: str | None = None


@dataclass
class Arp:
    op: int
    sha: str
    spa: str
    tha: str
    tpa: str


Header = Vnet | Ether | Ip | Tcp | Udp | Sctp | Icmp | Arp


class Frame:
    """A parsed frame: ``headers`` in order, the ``payload`` behind them, ``problems`` as sentences.

    ``quoted`` is the packet inside an ICMP error.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.headers: list[Header] = []
        self.payload = b""
        self.problems: list[str] = []
        self.quoted: Frame | None = None

    def find(self, kind: type[Header]) -> Header | None:
        return next((header for header in self.headers if type(header) is kind), None)

    def fault(self, text: str) -> None:
        self.problems.append(text)

    def __str__(self) -> str:
        lines = [f"  {header}" for header in self.headers]
        lines.append(f"  payload {len(self.payload)} bytes: {self.payload[:32]!r}")
        if self.quoted is not None:
            lines += ["  quotes:", *(f"  {line}" for line in str(self.quoted).splitlines())]
        return "\n".join(lines)


def parse(data: bytes, *, vnet: bool = True, tun: bool = False) -> Frame:
    """The frame with its problems; never raises for what the bytes are."""
    frame = Frame(data)
    offload = Vnet()
    if vnet:
        if len(data) < 10:
            frame.fault(f"{len(data)} bytes are no virtio-net header")
            return frame
        offload = Vnet(*struct.unpack("=BBHHHH", data[:10]))
        frame.headers.append(offload)
        data = data[10:]
    if tun:
        _ip(frame, data, 0, offload)
        return frame
    if len(data) < 14:
        frame.fault(f"{len(data)} bytes are no Ethernet frame")
        return frame
    end = frames.l3_offset(data)
    kind = int.from_bytes(data[end - 2 : end], "big")
    tags = tuple(int.from_bytes(data[i : i + 2], "big") & 0xFFF for i in range(14, end - 2, 4))
    frame.headers.append(Ether(_mac(data[:6]), _mac(data[6:12]), kind, tags))
    if kind == frames.ETH_P_ARP:
        _arp(frame, data[end:])
    elif kind in (frames.ETH_P_IP, frames.ETH_P_IPV6):
        version = data[end] >> 4 if len(data) > end else 0
        if version != (4 if kind == frames.ETH_P_IP else 6):
            frame.fault(f"type {kind:#06x} carries IP version {version}")
        _ip(frame, data, end, offload)
    else:
        frame.payload = data[end:]
    return frame


def _mac(data: bytes) -> str:
    return data.hex(":")


def _address(data: bytes) -> str:
    return str(ipaddress.ip_address(data))


def _arp(frame: Frame, data: bytes) -> None:
    if len(data) < 28 or data[:6] != bytes.fromhex("000108000604"):
        frame.fault("not ARP for IPv4 over Ethernet")
        return
    op = int.from_bytes(data[6:8], "big")
    frame.headers.append(
        Arp(op, _mac(data[8:14]), _address(data[14:18]), _mac(data[18:24]), _address(data[24:28]))
    )
    if any(data[28:]):
        frame.fault("the padding behind ARP is not zero")


def _ip(frame: Frame, data: bytes, l3: int, offload: Vnet) -> None:
    """The packet at ``l3`` of ``data``, the frame without its virtio-net header."""
    header = _ip_header(frame, data[l3:])
    if header is None:
        return
    frame.headers.append(header)
    if header.total_len > len(data) - l3:
        frame.fault(f"IP length {header.total_len}, but {len(data) - l3} bytes are there")
    end = l3 + header.total_len
    padding = data[end:]
    if padding and (len(data) > 60 or any(padding)):
        frame.fault(f"{len(padding)} bytes behind the IP packet")
    l4 = l3 + header.header_len
    body = data[l4:end]
    if header.fragment:
        frame.payload = body
        return
    size = 16 if header.version == 6 else 4
    at = l3 + (8 if header.version == 6 else 12)
    saddr, daddr = data[at : at + size], data[at + size : at + 2 * size]
    pseudo = ones_sum(pseudo_header(saddr, daddr, header.proto, len(body)))
    _transport(frame, header, body, pseudo, l4, offload)
    if offload.gso_type:
        _gso(frame, header, offload)


def _ip_header(frame: Frame, data: bytes) -> Ip | None:
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        return _ipv4_header(frame, data)
    if version == 6 and len(data) >= 40:
        return _ipv6_header(frame, data)
    frame.fault(f"{len(data)} bytes of version {version} are no IP header")
    return None


def _ipv4_header(frame: Frame, data: bytes) -> Ip | None:
    length = (data[0] & 15) * 4
    _, tos, total, ident, flags, ttl, proto, _ = struct.unpack("!BBHHHBBH", data[:12])
    if not 20 <= length <= min(len(data), total):
        frame.fault(f"IPv4 header length {length}, total length {total}, {len(data)} bytes there")
        return None
    if ones_sum(data[:length]) != 0xFFFF:
        frame.fault(f"wrong IPv4 header checksum {data[10:12].hex()}")
    return Ip(
        version=4,
        saddr=_address(data[12:16]),
        daddr=_address(data[16:20]),
        ttl=ttl,
        proto=proto,
        tos=tos,
        total_len=total,
        header_len=length,
        options=data[20:length],
        ident=ident,
        df=bool(flags & 0x4000),
        mf=bool(flags & 0x2000),
        fragment=(flags & 0x1FFF) * 8,
    )


def _ipv6_header(frame: Frame, data: bytes) -> Ip | None:
    word, length, proto, ttl = struct.unpack("!IHBB", data[:8])
    offset, fragment, more = 40, 0, False
    while proto in (0, 43, 44, 51, 60) and not fragment:
        if offset + 8 > len(data):
            frame.fault(f"the IPv6 extension header {proto} is cut off")
            return None
        if proto == 44:
            fragment = int.from_bytes(data[offset + 2 : offset + 4], "big")
            fragment, more = fragment & 0xFFF8, bool(fragment & 1)
        step = 8 if proto == 44 else (data[offset + 1] + (2 if proto == 51 else 1))
        step = step if proto == 44 else step * (4 if proto == 51 else 8)
        proto = data[offset]
        offset += step
    if offset > 40 + length:
        frame.fault(f"IPv6 extension headers of {offset - 40} bytes in a payload of {length}")
        return None
    return Ip(
        version=6,
        saddr=_address(data[8:24]),
        daddr=_address(data[24:40]),
        ttl=ttl,
        proto=proto,
        tos=word >> 20 & 0xFF,
        total_len=40 + length,
        header_len=offset,
        options=data[40:offset],
        mf=more,
        fragment=fragment,
        flow=word & 0xFFFFF,
    )


def _transport(frame: Frame, header: Ip, body: bytes, pseudo: int, l4: int, offload: Vnet) -> None:
    """Parse the header at ``l4`` of the frame; ``pseudo`` is the sum of its pseudo-header."""
    partial = bool(offload.flags & frames.NEEDS_CSUM)
    if partial and offload.csum_start != l4:
        frame.fault(f"csum_start {offload.csum_start}, but the transport header is at {l4}")
    icmp = frames.ICMPV6 if header.version == 6 else frames.ICMP
    kinds = {frames.TCP: (_tcp, 16), frames.UDP: (_udp, 6), icmp: (_icmp, 2)}
    if header.proto == SCTP and not header.mf:
        _sctp(frame, body, partial)
        return
    if header.proto not in kinds:
        frame.payload = body
        return
    read, at = kinds[header.proto]
    whole = not header.mf
    if not read(frame, body, whole) or not whole:
        return
    stored = int.from_bytes(body[at : at + 2], "big")
    if partial:
        if offload.csum_offset != at:
            frame.fault(f"csum_offset {offload.csum_offset}, but the field is at {at}")
        if stored % 0xFFFF != pseudo % 0xFFFF:
            frame.fault(f"partial checksum {stored:#06x}, the pseudo-header's sum is {pseudo:#06x}")
    elif header.proto == frames.UDP and stored == 0:
        if header.version == 6:
            frame.fault("UDP over IPv6 without a checksum")
    else:
        start = 0 if header.proto == frames.ICMP else pseudo
        total = start + ones_sum(body)
        if total % 0xFFFF:
            right = (total - stored) % 0xFFFF
            frame.fault(f"wrong checksum {stored:#06x}, right is {0xFFFF - right:#06x}")
    if header.proto == icmp:
        _icmp_body(frame, header)


def _tcp(frame: Frame, body: bytes, whole: bool) -> bool:
    length = (body[12] >> 4) * 4 if len(body) >= 20 else 0
    if not 20 <= length <= len(body):
        frame.fault(f"TCP header of {length} bytes in {len(body)}")
        return False
    sport, dport, seq, ack, _, flags, window, value, _ = struct.unpack("!HHIIBBHHH", body[:20])
    options = body[20:length]
    found = Tcp(sport, dport, seq, ack, flag_letters(flags), window, value, options)
    i = 0
    while i < len(options) and options[i] != 0:
        if options[i] == 1:
            i += 1
            continue
        size = options[i + 1] if i + 1 < len(options) else 0
        if size < 2 or i + size > len(options):
            frame.fault("malformed TCP options")
            break
        if options[i] == 2 and size == 4:
            found.mss = int.from_bytes(options[i + 2 : i + 4], "big")
        i += size
    frame.headers.append(found)
    frame.payload = body[length:]
    return True


def _udp(frame: Frame, body: bytes, whole: bool) -> bool:
    if len(body) < 8:
        frame.fault(f"UDP header in {len(body)} bytes")
        return False
    found = Udp(*struct.unpack("!HHHH", body[:8]))
    frame.headers.append(found)
    frame.payload = body[8:]
    if whole and found.length != len(body):
        frame.fault(f"UDP length {found.length}, but {len(body)} bytes are there")
    return True


def _sctp(frame: Frame, body: bytes, partial: bool) -> None:
    found, problems = read_sctp(body)
    if partial:
        frame.fault("a partial checksum on SCTP, which no port can finish")
    frame.problems += problems
    if found is not None:
        frame.headers.append(found)
        frame.payload = body[12:]


def _icmp(frame: Frame, body: bytes, whole: bool) -> bool:
    if len(body) < 8:
        frame.fault(f"ICMP header in {len(body)} bytes")
        return False
    kind, code, value, info = struct.unpack("!BBHI", body[:8])
    frame.headers.append(Icmp(kind, code, info, value))
    frame.payload = body[8:]
    return True


def _icmp_body(frame: Frame, header: Ip) -> None:
    found = frame.find(Icmp)
    assert isinstance(found, Icmp)
    if header.version == 6 and found.type in (135, 136):
        if len(frame.payload) < 16:
            frame.fault("neighbour discovery without a target")
            return
        found.target = _address(frame.payload[:16])
        option = frame.payload[16:24]
        if option[:2] in (b"\1\1", b"\2\1"):
            found.lladdr = _mac(option[2:])
        if header.ttl != 255:
            frame.fault(f"neighbour discovery with hop limit {header.ttl}")
    elif found.type < 128 if header.version == 6 else found.type in _ERRORS_V4:
        frame.quoted = _quote(frame, frame.payload)


def _quote(frame: Frame, data: bytes) -> Frame:
    """The packet that an ICMP error quotes: its header and what is left of the next one."""
    quoted = Frame(data)
    header = _ip_header(quoted, data)
    if header is not None:
        quoted.headers.append(header)
        body = data[header.header_len : header.total_len]
        if header.proto == frames.TCP and len(body) >= 8 and not header.fragment:
            padded = body.ljust(20, b"\0")
            sport, dport, seq, ack, _, flags, window, value, _ = struct.unpack(
                "!HHIIBBHHH", padded[:20]
            )
            quoted.headers.append(
                Tcp(sport, dport, seq, ack, flag_letters(flags), window, value, b"")
            )
        elif header.proto == frames.UDP and len(body) >= 8 and not header.fragment:
            quoted.headers.append(Udp(*struct.unpack("!HHHH", body[:8])))
        elif header.proto == SCTP and len(body) >= 8 and not header.fragment:
            sport, dport, vtag = struct.unpack("!HHI", body[:8])
            quoted.headers.append(Sctp(sport, dport, vtag, 0))
        elif header.proto in (frames.ICMP, frames.ICMPV6) and len(body) >= 8:
            kind, code, value, info = struct.unpack("!BBHI", body[:8])
            quoted.headers.append(Icmp(kind, code, info, value))
        quoted.payload = body[8:]
        if len(data) >= header.total_len and header.proto in (frames.TCP, frames.UDP, SCTP):
            # Nothing is cut off, so that the quoted checksum can be verified as well.
            whole = parse(data, vnet=False, tun=True)
            quoted.problems += [p for p in whole.problems if p not in quoted.problems]
    frame.problems += [f"quoted packet: {problem}" for problem in quoted.problems]
    return quoted


def _gso(frame: Frame, header: Ip, offload: Vnet) -> None:
    kind = offload.gso_type & 0x7F
    right = {
        (frames.TCP, 4): frames.GSO_TCPV4,
        (frames.TCP, 6): frames.GSO_TCPV6,
    }.get((header.proto, header.version), frames.GSO_UDP_L4 if header.proto == frames.UDP else 0)
    if kind != right:
        frame.fault(f"GSO type {kind} on protocol {header.proto} of IPv{header.version}")
    if offload.gso_size in (0, 0xFFFF):
        frame.fault(f"GSO segment size {offload.gso_size}")
    if not offload.flags & frames.NEEDS_CSUM:
        frame.fault("GSO without a partial checksum")
