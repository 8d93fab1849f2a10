"""Rewrites: checksums are kept, never made right, and what one direction does the other undoes."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunlb.ipvs import conn as c
from tunlb.ipvs import rewrite
from tunlb.ipvs.conn import INBOUND, OUTBOUND, ConnTable, hash_secret
from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.testing import checkers as k
from tunlb.testing import frames as f
from tunlb.testing import parser
from tunlb.wire import ipv4, ipv6, tcp, udp, vnet

TUN = Netif(1, "tun0", 0, tun=True)
Endpoint = tuple[str, int]

ports = st.integers(0, 65535)
v4 = st.integers(0, 2**32 - 1).map(lambda n: str(ipaddress.IPv4Address(n)))
v6 = st.one_of(
    st.integers(0, 2**128 - 1), st.sampled_from((1, 2**128 - 1, 0xFD << 120 | 0xFFFF_0000_0000))
).map(lambda n: str(ipaddress.IPv6Address(n)))
payloads = st.binary(max_size=64)


@st.composite
def conns(draw: st.DrawFn) -> tuple[Endpoint, Endpoint, Endpoint, Endpoint]:
    """caddr, vaddr, laddr and daddr of one family, each with its port."""
    addresses = draw(st.sampled_from((v4, v6)))
    caddr, vaddr, laddr, daddr = ((draw(addresses), draw(ports)) for _ in range(4))
    return caddr, vaddr, laddr, daddr


def number(address: str) -> tuple[int, int]:
    value = int(ipaddress.ip_address(address))
    if ":" not in address:
        return 0, 0xFFFF_0000_0000 | value
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def make_conn(
    inbound: tuple[Endpoint, Endpoint], outbound: tuple[Endpoint, Endpoint], flags: int = 0
) -> ConnTable:
    """A table whose row 0 has these keys, (from, to), and its deltas."""
    table = ConnTable(16, hash_secret(b"rewrite"))
    row = table.alloc()
    assert row == 0
    q, d, h = table.mem.cast("Q"), table.mem.cast("I"), table.mem.cast("H")
    for direction, (src, dst) in enumerate((inbound, outbound)):
        for i, word in enumerate((*number(src[0]), *number(dst[0]))):
            q[direction * 4 + i] = word
        d[c.D_PORTS + direction] = src[1] << 16 | dst[1]
    h[c.H_FLAGS] = flags
    af = 6 if ":" in inbound[0][0] else 4
    rewrite.prepare(table, row, INBOUND, af)
    rewrite.prepare(table, row, OUTBOUND, af)
    return table


def load(frame: bytes) -> Packet:
    pkt = Packet()
    pkt.load(frame, TUN)
    v6 = pkt.mem[pkt.start] >> 4 == 6
    reason = vnet.parse(pkt) or (ipv6 if v6 else ipv4).parse(pkt)
    # Addresses that no wire may carry are fine here: the arithmetic does not know them.
    assert reason in (0, 14)
    assert (tcp if pkt.proto == f.TCP else udp).parse(pkt) == 0
    assert vnet.check(pkt) == 0
    return pkt


def emit(pkt: Packet) -> bytes:
    vnet.emit(pkt)
    return bytes(pkt.mem[pkt.start - 10 : pkt.end])


def build(src: Endpoint, dst: Endpoint, proto: str, data: bytes, **fields: Any) -> bytes:
    make = f.tcp if proto == "tcp" else f.udp
    return f.ip(src[0], dst[0], make(src[1], dst[1], data, **fields), ttl=64)


@given(
    ends=conns(),
    proto=st.sampled_from(("tcp", "udp")),
    data=payloads,
    partial=st.booleans(),
    direction=st.sampled_from((INBOUND, OUTBOUND)),
)
@settings(deadline=None)
def test_incremental_is_full(
    ends: tuple[Endpoint, ...], proto: str, data: bytes, partial: bool, direction: int
) -> None:
    caddr, vaddr, laddr, daddr = ends
    table = make_conn((caddr, vaddr), (daddr, laddr))
    src, dst = ((caddr, vaddr), (daddr, laddr))[direction]
    to_src, to_dst = ((laddr, daddr), (vaddr, caddr))[direction]
    pkt = load(f.vnet(build(src, dst, proto, data), needs_csum=partial, tun=True))
    rewrite.apply(pkt, table, 0, direction)
    l4 = k.tcp if proto == "tcp" else k.udp
    k.check(
        emit(pkt),
        k.ip(saddr=to_src[0], daddr=to_dst[0], ttl=64),
        l4(sport=to_src[1], dport=to_dst[1]),
        k.payload(data),
        tun=True,
    )
    assert (pkt.saddr_hi, pkt.saddr) == number(to_src[0])
    assert (pkt.daddr_hi, pkt.daddr) == number(to_dst[0])
    assert (pkt.sport, pkt.dport) == (to_src[1], to_dst[1])


@given(ends=conns(), proto=st.sampled_from(("tcp", "udp")), data=payloads, partial=st.booleans())
@settings(deadline=None)
def test_outbound_undoes_inbound(
    ends: tuple[Endpoint, ...], proto: str, data: bytes, partial: bool
) -> None:
    """A reply made from what the dest saw comes back as what the client expects."""
    caddr, vaddr, laddr, daddr = ends
    table = make_conn((caddr, vaddr), (daddr, laddr))
    pkt = load(f.vnet(build(caddr, vaddr, proto, data), needs_csum=partial, tun=True))
    rewrite.apply(pkt, table, 0, INBOUND)
    seen = parser.parse(emit(pkt), tun=True)
    ip, l4 = seen.find(parser.Ip), seen.find(parser.Tcp) or seen.find(parser.Udp)
    assert isinstance(ip, parser.Ip)
    assert isinstance(l4, parser.Tcp | parser.Udp)
    answer = build((ip.daddr, l4.dport), (ip.saddr, l4.sport), proto, data)
    reply = load(f.vnet(answer, needs_csum=partial, tun=True))
    rewrite.apply(reply, table, 0, OUTBOUND)
    frame = k.check(emit(reply), k.ip(saddr=vaddr[0], daddr=caddr[0]), tun=True)
    expected = f.vnet(build(vaddr, caddr, proto, data), needs_csum=partial, tun=True)
    if l4.checksum % 0xFFFF:  # 0 and 0xFFFF are one number; which of them stands there is free
        assert frame.payload == data
        assert _without_zero(emit(reply)) == _without_zero(expected)


def _without_zero(frame: bytes) -> bytes:
    """The frame with every 0xFFFF written as 0, for both are the number zero to a checksum."""
    return frame.replace(b"\xff\xff", b"\0\0")


@given(ends=conns(), data=payloads, wrong=st.integers(0, 65535), partial=st.booleans())
@settings(deadline=None)
def test_a_wrong_checksum_stays_wrong(
    ends: tuple[Endpoint, ...], data: bytes, wrong: int, partial: bool
) -> None:
    caddr, vaddr, laddr, daddr = ends
    table = make_conn((caddr, vaddr), (daddr, laddr))
    frame = f.vnet(
        build(caddr, vaddr, "tcp", data, checksum=wrong),
        needs_csum=partial,
        field_value=wrong if partial else None,
        tun=True,
    )
    before = parser.parse(frame, tun=True).problems
    pkt = load(frame)
    rewrite.apply(pkt, table, 0, INBOUND)
    after = parser.parse(emit(pkt), tun=True).problems
    assert [text.split()[0] for text in before] == [text.split()[0] for text in after]


@given(ends=conns(), data=payloads)
@settings(deadline=None)
def test_udp_without_a_checksum_stays_without(ends: tuple[Endpoint, ...], data: bytes) -> None:
    caddr, vaddr, laddr, daddr = ends
    table = make_conn((caddr, vaddr), (daddr, laddr))
    pkt = load(f.vnet(build(caddr, vaddr, "udp", data, checksum=0)))
    rewrite.apply(pkt, table, 0, INBOUND)
    found = parser.parse(emit(pkt), tun=True).find(parser.Udp)
    assert isinstance(found, parser.Udp)
    assert found.checksum == 0
