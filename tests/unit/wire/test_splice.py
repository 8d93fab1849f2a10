"""Bytes put into packets: the result is the packet that would have been built with them."""

from __future__ import annotations

from typing import Any

import pytest

from tunlb.netif import Netif
from tunlb.packet import BUFFER_LEN, Packet
from tunlb.testing import frames
from tunlb.testing.checkers import check
from tunlb.testing.frames import GSO_UDP_L4, Transport, vnet
from tunlb.wire import ipv4, ipv6, splice, tcp, udp
from tunlb.wire import vnet as offloads

TUN = Netif(0, "tun0", 0, tun=True)
ENDS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
FAMILIES = pytest.mark.parametrize("af", [4, 6])


def load(af: int, transport: Transport, **offload: Any) -> Packet:
    pkt = Packet()
    pkt.load(vnet(frames.ip(*ENDS[af], transport), tun=True, **offload), TUN)
    assert offloads.parse(pkt) == 0
    assert (ipv4 if af == 4 else ipv6).parse(pkt) == 0
    assert (tcp if pkt.proto == 6 else udp).parse(pkt) == 0
    return pkt


def emitted(pkt: Packet) -> bytes:
    offloads.emit(pkt)
    return bytes(pkt.mem[pkt.start - 10 : pkt.end])


@FAMILIES
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize(("at", "gone"), [(0, 0), (0, 1), (0, 4), (0, 9), (2, 3), (4, 5), (8, 1)])
@pytest.mark.parametrize("data", [b"", b"x", b"four", b"seven!!"])
def test_as_if_built_so(
    af: int, partial: bool, proto: str, at: int, gone: int, data: bytes
) -> None:
    build = frames.tcp if proto == "tcp" else frames.udp
    payload = b"123456789"
    pkt = load(af, build(1, 2, payload), needs_csum=partial)
    splice.replace(pkt, pkt.l4 + (20 if proto == "tcp" else 8) + at, gone, data)
    expected = payload[:at] + data + payload[at + gone :]
    built = vnet(frames.ip(*ENDS[af], build(1, 2, expected)), tun=True, needs_csum=partial)
    assert emitted(pkt)[10:] == built[10:]


@FAMILIES
def test_a_wrong_checksum_is_as_wrong_as_before(af: int) -> None:
    packets = [load(af, frames.tcp(1, 2, b"123", checksum=value)) for value in (None, 0x1234)]
    before = [pkt.be16(pkt.l4 + 16) for pkt in packets]
    for pkt in packets:
        splice.replace(pkt, pkt.l4 + 20, 0, b"odd")
    after = [pkt.be16(pkt.l4 + 16) for pkt in packets]
    assert (after[1] - after[0]) % 0xFFFF == (before[1] - before[0]) % 0xFFFF


@FAMILIES
def test_udp_without_a_checksum_stays_without(af: int) -> None:
    pkt = load(af, frames.udp(1, 2, b"123", checksum=0))
    splice.replace(pkt, pkt.l4 + 8, 0, b"odd")
    assert pkt.be16(pkt.l4 + 6) == 0


@FAMILIES
def test_how_far_a_packet_grows(af: int) -> None:
    pkt = load(af, frames.tcp(1, 2, b"123"))
    room = 65535 - (pkt.end - pkt.l3) + (40 if af == 6 else 0)
    assert splice.grows(pkt, room)
    assert not splice.grows(pkt, room + 1)
    # What may be said always fits into the buffer.
    assert pkt.end + room <= BUFFER_LEN


@FAMILIES
def test_a_piece_of_an_offloaded_frame(af: int) -> None:
    whole = load(
        af, frames.udp(1, 2, bytes(3000)), needs_csum=True, gso_type=GSO_UDP_L4, gso_size=1000
    )
    out = Packet()
    out.af = af
    splice.piece(out, bytes(whole.mem[whole.l3 : whole.l4 + 8]), b"piece")
    out.start = out.l3
    found = check(emitted(out), tun=True)
    assert found.payload == b"piece"
