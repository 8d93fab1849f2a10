"""Tunnels in flow rows: a network of both families, and what a dest makes of a wrapped frame."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Any

from tests.flow import kit
from tests.flow.kit import V4, V6, Line, Net
from tunlb.testing import frames
from tunlb.testing.checkers import Matcher, check
from tunlb.testing.flow import Sent
from tunlb.testing.frames import NEEDS_CSUM, ones_sum, pseudo_header
from tunlb.testing.parser import Frame

NETS = {4: V4, 6: V6}
IPPROTO_GRE = 47
GUE_PORT = 6080


def network(*, lan: dict[str, Any] | None = None) -> list[Line]:
    """Ports, default routes and neighbours of both families."""
    wan = [f"{net.wan}/{net.length}" for net in NETS.values()]
    inside = [f"{net.lan}/{net.length}" for net in NETS.values()]
    return [
        kit.port("wan", *wan),
        kit.port("lan", *inside, **lan or {}),
        *(kit.default_route(net) for net in NETS.values()),
        *(line for net in NETS.values() for line in kit.neighbours(net)),
    ]


def balanced(net: Net, outer: Net, proto: str = "tcp", **keys: Any) -> str:
    """One service of ``net``'s family, its dest of ``outer``'s; ``lan`` are keys of the port."""
    lan = keys.pop("lan", None)
    return kit.text(
        *network(lan=lan),
        kit.service(net, proto, "tunnel", **keys),
        kit.dest(outer, "dr"),
    )


@dataclass
class Outer:
    """An outer header, what it wraps, and how far it moved that."""

    version: int
    saddr: str
    daddr: str
    tos: int
    ttl: int
    ident: int
    df: bool
    flow: int
    proto: int
    sport: int
    dport: int
    checksum: int | None
    overhead: int
    inner: bytes


def finished(frame: bytes) -> bytes:
    """The frame behind its virtio-net header, its partial checksum finished as by a device."""
    flags, gso, _, _, start, offset = struct.unpack("=BBHHHH", frame[:10])
    assert gso == 0, "an offloaded frame in a tunnel"
    data = frame[10:]
    if not flags & NEEDS_CSUM:
        return data
    at = start + offset
    value = 0xFFFF - ones_sum(data[start:])
    return data[:at] + struct.pack("!H", value or 0xFFFF) + data[at + 2 :]


def unwrapped(frame: bytes, *, tun: bool = False) -> Outer:
    """What a dest finds in a frame that left; every outer checksum is verified."""
    data = finished(frame)[0 if tun else 14 :]
    version = data[0] >> 4
    size = 4 if version == 4 else 16
    at = 12 if version == 4 else 8
    saddr, daddr = data[at : at + size], data[at + size : at + 2 * size]
    l4 = 20 if version == 4 else 40
    ident, df, flow = 0, False, 0
    if version == 4:
        _, tos, total, ident, bits, ttl, proto, _ = struct.unpack("!BBHHHBBH", data[:12])
        assert data[0] == 0x45
        assert ones_sum(data[:20]) == 0xFFFF
        assert total == len(data)
        assert not bits & ~0x4000
        df = bool(bits)
    else:
        word, length, proto, ttl = struct.unpack("!IHBB", data[:8])
        assert length == len(data) - 40
        tos, flow = word >> 20 & 0xFF, word & 0xFFFFF
    sport = dport = 0
    value: int | None = None
    start = l4
    inner_version = {4: 4, 41: 6}.get(proto)
    if proto == IPPROTO_GRE:
        bits, kind = struct.unpack("!HH", data[l4 : l4 + 4])
        assert not bits & 0x7FFF
        start = l4 + (8 if bits else 4)
        inner_version = {0x0800: 4, 0x86DD: 6}[kind]
        if bits:
            value = int.from_bytes(data[l4 + 4 : l4 + 6], "big")
            assert data[l4 + 6 : l4 + 8] == b"\0\0"
            assert ones_sum(data[l4:]) == 0xFFFF
    elif proto == frames.UDP:
        sport, dport, length, value = struct.unpack("!HHHH", data[l4 : l4 + 8])
        assert length == len(data) - l4
        assert data[l4 + 8] == 0
        assert data[l4 + 10 : l4 + 12] == b"\0\0"
        inner_version = {4: 4, 41: 6}[data[l4 + 9]]
        start = l4 + 12
        if value:
            assert (ones_sum(pseudo_header(saddr, daddr, 17, length) + data[l4:])) == 0xFFFF
    inner = data[start:]
    assert inner[0] >> 4 == inner_version
    address = ipaddress.ip_address
    return Outer(
        version,
        str(address(saddr)),
        str(address(daddr)),
        tos,
        ttl,
        ident,
        df,
        flow,
        proto,
        sport,
        dport,
        value,
        start,
        inner,
    )


def inner(sent: Sent, *matchers: Matcher) -> Frame:
    """The inner packet of a frame that left, checked whole."""
    return check(unwrapped(sent.frame).inner, *matchers, vnet=False, tun=True)
