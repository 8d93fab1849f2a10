"""Incremental = full, for every field, family, protocol and kind of checksum."""

from __future__ import annotations

import ipaddress

from hypothesis import example, given
from hypothesis import strategies as st

from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.testing import frames as f
from tunlb.wire import checksum, ipv4, ipv6, vnet

words = st.integers(0, 0xFFFF)
halves = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**64 - 1]))
payloads = st.binary(max_size=40)
TUN = Netif(1, "tun0", 0, tun=True)


@given(st.binary(max_size=300), st.integers(0, 3))
def test_sum16_is_the_sum_of_words(data: bytes, shift: int) -> None:
    pkt = Packet()
    pkt.mem[100 + shift : 100 + shift + len(data)] = data
    assert checksum.sum16(pkt, 100 + shift, len(data)) == f.ones_sum(data)


@given(st.integers(0, 2**48 - 1))
def test_fold_is_modulo(total: int) -> None:
    folded = checksum.fold(total)
    assert folded % 0xFFFF == total % 0xFFFF
    assert 0 <= folded <= 0xFFFF


@given(halves, halves, st.sampled_from([4, 6]))
def test_sum_address(hi: int, lo: int, af: int) -> None:
    raw = (lo & 0xFFFFFFFF).to_bytes(4, "big") if af == 4 else (hi << 64 | lo).to_bytes(16, "big")
    assert checksum.sum_address(hi, lo, af) == f.ones_sum(raw)


@given(halves, halves, halves, halves, words, st.integers(0, 65535), st.sampled_from([4, 6]))
def test_pseudo_sum(sh: int, s: int, dh: int, d: int, proto: int, length: int, af: int) -> None:
    proto &= 0xFF
    pkt = Packet()
    pkt.af = af
    pkt.saddr_hi, pkt.saddr, pkt.daddr_hi, pkt.daddr = sh, s, dh, d
    size = 4 if af == 4 else 16
    mask = 2 ** (8 * size) - 1
    saddr, daddr = ((v & mask).to_bytes(size, "big") for v in (sh << 64 | s, dh << 64 | d))
    expected = f.ones_sum(f.pseudo_header(saddr, daddr, proto, length))
    assert checksum.pseudo_sum(pkt, proto, length) == expected


@given(st.lists(words, min_size=1, max_size=8), st.data())
def test_a_delta_moves_a_sum_from_the_old_words_to_the_new(old: list[int], data) -> None:
    new = data.draw(st.lists(words, min_size=len(old), max_size=len(old)))
    rest = data.draw(st.lists(words, min_size=1, max_size=4).filter(any))

    def summed(values: list[int]) -> int:
        return f.ones_sum(b"".join(value.to_bytes(2, "big") for value in values))

    change = checksum.delta(summed(old), summed(new))
    # 0 and 0xFFFF are the same number; which one stands depends on the way there
    assert checksum.fold(summed(old + rest) + change) % 0xFFFF == summed(new + rest) % 0xFFFF
    field = 0xFFFF - summed(old + rest)
    assert checksum.update(field, change) % 0xFFFF == (0xFFFF - summed(new + rest)) % 0xFFFF


addresses4 = st.integers(0x0A000000, 0x0AFFFFFF).map(lambda n: str(ipaddress.IPv4Address(n)))
addresses6 = st.integers(2**125, 2**126).map(lambda n: str(ipaddress.IPv6Address(n)))
tuples = st.one_of(
    st.tuples(addresses4, words, addresses4, words),
    st.tuples(addresses6, words, addresses6, words),
)


def packet(ends: tuple[str, int, str, int], proto: int, data: bytes, **fields) -> bytes:
    saddr, sport, daddr, dport = ends
    build = f.udp if proto == 17 else f.tcp
    return f.ip(saddr, daddr, build(sport, dport, data, **fields))


def rewrite(pkt: Packet, ends: tuple[str, int, str, int]) -> None:
    """Both addresses and ports replaced, checksums kept by the one discipline."""
    saddr, sport, daddr, dport = ends
    size = 4 if pkt.af == 4 else 16
    at = pkt.l3 + (12 if pkt.af == 4 else 8)
    old = f.ones_sum(bytes(pkt.mem[at : at + 2 * size]))
    raw = f.address_bytes(saddr) + f.address_bytes(daddr)
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    change = checksum.delta(f.ones_sum(bytes(pkt.mem[pkt.l4 : pkt.l4 + 4])), f.ones_sum(ports))
    moved = checksum.delta(old, f.ones_sum(raw))
    pkt.mem[at : at + 2 * size] = raw
    pkt.mem[pkt.l4 : pkt.l4 + 4] = ports
    if pkt.af == 4:
        pkt.put16(pkt.l3 + 10, checksum.update(pkt.be16(pkt.l3 + 10), moved))
    checksum.fix_l4(pkt, pkt.l4 + (6 if pkt.proto == 17 else 16), moved, change)


def read(frame: bytes) -> Packet:
    pkt = Packet()
    pkt.load(frame, TUN)
    assert vnet.parse(pkt) == 0
    assert (ipv4 if frame[10] >> 4 == 4 else ipv6).parse(pkt) == 0
    return pkt


@given(
    pair=st.one_of(
        *(
            st.tuples(st.tuples(a, words, a, words), st.tuples(a, words, a, words))
            for a in (addresses4, addresses6)
        )
    ),
    proto=st.sampled_from([6, 17]),
    data=payloads,
    partial=st.booleans(),
)
def test_a_rewrite_gives_the_packet_that_would_have_been_built(
    pair, proto: int, data: bytes, partial: bool
) -> None:
    before, after = pair
    frame = f.vnet(packet(before, proto, data), tun=True, needs_csum=partial)
    pkt = read(frame)
    assert pkt.partial() == partial
    rewrite(pkt, after)
    assert pkt.frame() == f.vnet(packet(after, proto, data), tun=True, needs_csum=partial)[10:]
    vnet.emit(pkt)
    rewrite(pkt, before)
    assert pkt.frame() == frame[10:]


@given(ends=tuples, after=tuples, proto=st.sampled_from([6, 17]), error=st.integers(1, 0xFFFE))
def test_a_wrong_checksum_is_never_repaired(ends, after, proto: int, error: int) -> None:
    if (":" in ends[0]) != (":" in after[0]):
        after = ends[2], after[1], ends[0], after[3]
    at = 6 if proto == 17 else 16
    right = packet(ends, proto, b"data")
    pkt = read(f.PLAIN + right)
    value = (pkt.be16(pkt.l4 + at) + error) % 0xFFFF
    if proto == 17 and value == 0:
        return  # that would say: no checksum
    pkt.put16(pkt.l4 + at, value)
    rewrite(pkt, after)
    wanted = read(f.PLAIN + packet(after, proto, b"data"))
    difference = (pkt.be16(pkt.l4 + at) - wanted.be16(wanted.l4 + at)) % 0xFFFF
    assert difference == error % 0xFFFF


@given(ident=words, ttl=st.integers(2, 255), tos=st.integers(0, 255), payload=payloads)
@example(ident=0x27AD, ttl=64, tos=0, payload=b"")  # the checksum goes from FEFF to a zero
def test_decrement_ttl_is_a_header_with_one_less(
    ident: int, ttl: int, tos: int, payload: bytes
) -> None:
    def header(ttl: int) -> bytes:
        return f.ipv4("10.0.0.1", "10.0.0.2", payload, ident=ident, ttl=ttl, tos=tos)

    pkt = read(f.PLAIN + header(ttl))
    ipv4.decrement_ttl(pkt)
    got, expected = pkt.frame(), header(ttl - 1)
    assert got[:10] + got[12:] == expected[:10] + expected[12:]
    assert f.ones_sum(got[:20]) == 0xFFFF


@given(payload=payloads)
def test_udp_without_a_checksum_stays_without(payload: bytes) -> None:
    ends = ("10.0.0.1", 1, "10.0.0.2", 2)
    pkt = read(f.PLAIN + packet(ends, 17, payload, checksum=0))
    rewrite(pkt, ("10.9.9.9", 7, "10.8.8.8", 9))
    assert pkt.be16(pkt.l4 + 6) == 0
