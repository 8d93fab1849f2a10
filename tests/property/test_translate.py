"""Between the families: there and back is what it was, and checksums are kept, never made right."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.fragmenting import cut
from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.testing import frames as f
from tunlb.testing import parser
from tunlb.testing import sctp as s
from tunlb.wire import checksum, crc32c, ipv4, ipv6, sctp, tcp, translate, udp

TUN = Netif(0, "tun0", 0, tun=True)
CLIENT, VIP, LADDR, DEST = "2001:db8::7", "fd00::100", "10.1.0.200", "10.1.0.11"

ports = st.integers(0, 0xFFFF)
payloads = st.binary(max_size=80)


def number(address: str) -> tuple[int, int]:
    packed = f.address_bytes(address)
    whole = int.from_bytes(packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed)
    return whole >> 64, whole & 0xFFFFFFFFFFFFFFFF


def loaded(packet: bytes) -> Packet:
    pkt = Packet()
    pkt.load(bytes(10) + packet, TUN)
    assert (ipv6 if packet[0] >> 4 == 6 else ipv4).parse(pkt) == 0
    assert {6: tcp, 17: udp, 132: sctp}[pkt.proto].parse(pkt) == 0
    return pkt


def total(*addresses: str) -> int:
    return checksum.fold(sum(checksum.sum_address(*number(a), 6) for a in addresses))


def cross(pkt: Packet, source: str, target: str, sport: int, dport: int) -> None:
    """What NAT64 does with a packet, and what a conn has ready for it."""
    old = checksum.fold(
        checksum.sum_address(pkt.saddr_hi, pkt.saddr, 6)
        + checksum.sum_address(pkt.daddr_hi, pkt.daddr, 6)
    )
    addresses = checksum.delta(old, total(source, target))
    change = checksum.delta(checksum.fold(pkt.sport + pkt.dport), checksum.fold(sport + dport))
    assert translate.refused(pkt) == 0
    (pkt.saddr_hi, pkt.saddr), (pkt.daddr_hi, pkt.daddr) = number(source), number(target)
    translate.network(pkt, 1, False)
    if pkt.proto == 132:
        sctp.put_ports(pkt, pkt.l4, sport << 16 | dport, pkt.end - pkt.l4, pkt.end)
    else:
        translate.transport(pkt, sport << 16 | dport, addresses, change)


def bytes_of(pkt: Packet) -> bytes:
    return bytes(pkt.mem[pkt.l3 : pkt.end])


@st.composite
def transports(draw: st.DrawFn) -> tuple[f.Transport, int, int]:
    sport, dport, payload = draw(ports), draw(ports), draw(payloads)
    build = draw(st.sampled_from(("tcp", "udp", "sctp")))
    if build == "sctp":
        return s.sctp(sport, dport, s.chunk(s.DATA, payload), vtag=7), sport, dport
    return (f.tcp if build == "tcp" else f.udp)(sport, dport, payload), sport, dport


@given(transports(), ports, ports, st.integers(0, 255), st.integers(1, 255))
@settings(deadline=None)
def test_there_and_back(
    made: tuple[f.Transport, int, int], lport: int, dport: int, tos: int, ttl: int
) -> None:
    transport, sport, vport = made
    packet = f.ipv6(CLIENT, VIP, transport, tos=tos, ttl=ttl)
    pkt = loaded(packet)
    cross(pkt, LADDR, DEST, lport, dport)
    there = parser.parse(bytes_of(pkt), vnet=False, tun=True)
    assert there.problems == []
    pkt = loaded(bytes_of(pkt))
    cross(pkt, CLIENT, VIP, sport, vport)
    assert bytes_of(pkt) == packet


@given(payload=payloads, sport=ports, dport=ports, wrong=st.integers(1, 0xFFFE))
@settings(deadline=None)
def test_a_wrong_checksum_is_as_wrong_as_before(
    payload: bytes, sport: int, dport: int, wrong: int
) -> None:
    packet = bytearray(f.ipv6(CLIENT, VIP, f.tcp(1, 2, payload)))
    (right,) = struct.unpack_from("!H", packet, 56)
    struct.pack_into("!H", packet, 56, (right + wrong) % 0xFFFF)
    pkt = loaded(bytes(packet))
    cross(pkt, LADDR, DEST, sport, dport)
    body = bytes(pkt.mem[pkt.l4 : pkt.end])
    pseudo = f.pseudo_header(f.address_bytes(LADDR), f.address_bytes(DEST), 6, len(body))
    assert f.ones_sum(pseudo + body) % 0xFFFF == wrong % 0xFFFF


@given(data=payloads, sport=ports, dport=ports, lost=st.integers(0, 0xFFFFFFFF))
@settings(deadline=None)
def test_a_crc_is_as_wrong_as_before(data: bytes, sport: int, dport: int, lost: int) -> None:
    whole = bytearray(s.sctp(1, 2, s.chunk(s.DATA, data)).build(bytes(4), bytes(4)))
    (right,) = struct.unpack_from("<I", whole, 8)
    struct.pack_into("<I", whole, 8, right ^ lost)
    pkt = Packet()
    pkt.mem[0 : len(whole)] = whole
    sctp.put_ports(pkt, 0, sport << 16 | dport, len(whole), len(whole))
    changed = bytes(pkt.mem[: len(whole)])
    assert changed[:4] == struct.pack("!HH", sport, dport)
    (found,) = struct.unpack_from("<I", changed, 8)
    assert found ^ s.crc32c(changed[:8] + bytes(4) + changed[12:]) == lost


@given(data=st.binary(max_size=300))
@settings(deadline=None)
def test_crc32c_is_the_one_computed_bit_by_bit(data: bytes) -> None:
    pkt = Packet()
    pkt.mem[0 : len(data)] = data
    assert 0xFFFFFFFF ^ crc32c.add(0xFFFFFFFF, pkt, 0, len(data)) == s.crc32c(data)


@given(data=st.binary(min_size=1, max_size=6000), size=st.integers(1, 500), ident=ports)
@settings(deadline=None)
def test_fragments_over_ipv4_come_out_as_what_was_cut(data: bytes, size: int, ident: int) -> None:
    """However they were cut, what IPv6 puts together is the same, and no link refuses a piece."""
    whole = f.ipv4(LADDR, DEST, data, proto=253, df=False)  # one that nobody reads
    body: dict[tuple[int, bool], bytes] = {}
    for part in cut(whole, size * 8, ident):
        pkt = Packet()
        pkt.load(bytes(10) + part, TUN)
        assert ipv4.parse(pkt) == 0
        (pkt.saddr_hi, pkt.saddr), (pkt.daddr_hi, pkt.daddr) = number(VIP), number(CLIENT)
        translate.network(pkt, 0, True)
        for begin in range(translate.PIECE, pkt.end - pkt.l4, translate.PIECE):
            out = Packet()
            translate.piece(pkt, begin, out)
            body |= piece_of(bytes_of(out))
        if pkt.end - pkt.l4 > translate.PIECE:
            translate.shorten(pkt)
        body |= piece_of(bytes_of(pkt))
    together = b""
    for (at, _), part in sorted(body.items()):
        assert at == len(together)
        together += part
    assert together == data
    assert [more for _, more in sorted(body)] == [True] * (len(body) - 1) + [False]


def piece_of(packet: bytes) -> dict[tuple[int, bool], bytes]:
    found = parser.parse(packet, vnet=False, tun=True)
    assert found.problems == []
    header = found.find(parser.Ip)
    assert isinstance(header, parser.Ip)
    assert header.total_len <= 1280
    return {(header.fragment, header.mf): packet[48:]}
