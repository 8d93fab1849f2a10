"""The network header of the other family: its fields, where it lies, what is refused."""

from __future__ import annotations

import pytest

from tunlb.counters import DropReason
from tunlb.netif import Netif
from tunlb.packet import L3_OFFSET, Packet
from tunlb.testing.frames import ip, tcp, udp
from tunlb.testing.parser import Ip, parse
from tunlb.wire import ipv4, ipv6, translate

TUN = Netif(0, "tun0", 0, tun=True)
V4, V6 = ("192.0.2.7", "10.0.0.100"), ("2001:db8::7", "fd00::64")
MAPPED = 0xFFFF_0000_0000


def loaded(packet: bytes) -> Packet:
    pkt = Packet()
    pkt.load(bytes(10) + packet, TUN)
    assert (ipv6 if packet[0] >> 4 == 6 else ipv4).parse(pkt) == 0
    return pkt


def to_v4(pkt: Packet, ident: int = 7) -> Ip:
    pkt.saddr_hi = pkt.daddr_hi = 0
    pkt.saddr, pkt.daddr = MAPPED | 0x0A000001, MAPPED | 0x0A000002
    translate.network(pkt, ident, False)
    return header(pkt)


def to_v6(pkt: Packet) -> Ip:
    pkt.saddr_hi, pkt.saddr, pkt.daddr_hi, pkt.daddr = 0xFD << 56, 1, 0xFD << 56, 2
    translate.network(pkt, 0, False)
    return header(pkt)


def header(pkt: Packet) -> Ip:
    found = parse(bytes(pkt.mem[pkt.l3 : pkt.end]), vnet=False, tun=True).find(Ip)
    assert isinstance(found, Ip)
    return found


def test_to_ipv4() -> None:
    pkt = loaded(ip(*V6, tcp(1, 2, b"payload"), ttl=9, tos=0x2E, flow=0x12345))
    l4, end = pkt.l4, pkt.end
    found = to_v4(pkt)
    assert (found.version, found.saddr, found.daddr) == (4, "10.0.0.1", "10.0.0.2")
    assert (found.ttl, found.tos, found.proto, found.total_len) == (9, 0x2E, 6, 47)
    assert (found.df, found.ident) == (False, 7)
    assert (pkt.l3, pkt.l4, pkt.end, pkt.af) == (L3_OFFSET + 20, l4, end, 4)


def test_to_ipv6() -> None:
    pkt = loaded(ip(*V4, tcp(1, 2, b"payload"), ttl=9, tos=0x2E, options=b"\1\1\1\0"))
    l4, end = pkt.l4, pkt.end
    found = to_v6(pkt)
    assert (found.version, found.saddr, found.daddr) == (6, "fd00::1", "fd00::2")
    assert (found.ttl, found.tos, found.proto, found.total_len) == (9, 0x2E, 6, 67)
    assert (found.flow, found.options) == (0, b"")
    assert (pkt.l3, pkt.l4, pkt.end, pkt.af) == (L3_OFFSET - 16, l4, end, 6)


@pytest.mark.parametrize(("size", "df"), [(1240, False), (1241, True)])
def test_df_by_what_arrives(size: int, df: bool) -> None:
    found = to_v4(loaded(ip(*V6, bytes(size), proto=132)))
    assert (found.df, found.ident) == (df, 0 if df else 7)


@pytest.mark.parametrize(("size", "df"), [(1220, False), (1221, True)])
def test_df_by_the_segments_of_a_larger_frame(size: int, df: bool) -> None:
    pkt = loaded(ip(*V6, tcp(1, 2, bytes(20_000))))
    pkt.gso_type, pkt.gso_size, pkt.csum_start = 4, size, pkt.l4
    assert to_v4(pkt).df == df
    assert pkt.gso_type == 1


HOP, OPTIONS, ROUTING = (0, bytes(7)), (60, b"\1" + bytes(14)), (43, b"\0\4\0" + bytes(4))
FRAGMENT, AUTH = (44, bytes(7)), (51, b"\4" + bytes(22))
NAT64_HEADER = DropReason.NAT64_HEADER


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (ip(*V6, tcp(1, 2)), 0),
        (ip(*V6, tcp(1, 2), extensions=(HOP, OPTIONS, ROUTING)), 0),
        (ip(*V6, tcp(1, 2), extensions=(AUTH,)), NAT64_HEADER),
        (ip(*V6, tcp(1, 2), extensions=(HOP, AUTH, OPTIONS)), NAT64_HEADER),
        (ip(*V6, tcp(1, 2), extensions=(FRAGMENT,)), 0),
        (ip(*V6, tcp(1, 2), extensions=((44, b"\0\0\1" + bytes(4)),)), 0),
        (ip(*V4, tcp(1, 2), mf=True, df=False), 0),
        (ip(*V4, tcp(1, 2), options=b"\1\1\1\0"), 0),
        (ip(*V6, bytes(65515), proto=6), 0),
        (ip(*V6, bytes(65516), proto=6), NAT64_HEADER),
        (ip(*V6, udp(1, 2, checksum=0)), DropReason.NAT64_NO_CHECKSUM),
        (ip(*V6, udp(1, 2)), 0),
        (ip(*V4, udp(1, 2, checksum=0)), 0),
    ],
)
def test_refused(packet: bytes, reason: int) -> None:
    assert translate.refused(loaded(packet)) == reason
