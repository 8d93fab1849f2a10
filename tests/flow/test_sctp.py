"""SCTP: associations through nat, fnat, dr and between the families, checksums, errors, states."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    WAN_MAC,
    Net,
    Rig,
    balanced,
    default_route,
    dropped,
    one,
    states,
    the_dest,
)
from tests.flow.test_nat64 import OTHER, configured
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, ether, icmp, ip, quoted, sctp
from tunlb.testing.flow import Memory
from tunlb.testing.frames import Transport, eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.parser import Frame
from tunlb.testing.sctp import (
    ABORT,
    COOKIE_ACK,
    COOKIE_ECHO,
    DATA,
    ERROR,
    HEARTBEAT,
    INIT_ACK,
    SACK,
    SHUTDOWN,
    SHUTDOWN_ACK,
    SHUTDOWN_COMPLETE,
    Sctp,
    chunk,
    init,
)
from tunlb.testing.sctp import sctp as build
from tunlb.testing.workers import Workers

MODES = ("nat", "fnat", "dr")
DATA_CHUNK = chunk(DATA, struct.pack("!IHHI", 1, 0, 0, 0) + b"payload!!", 3)


class Association:
    """One association through the director; ``inner`` is the dest's side of the network."""

    def __init__(self, rig: Rig, net: Net, mode: str = "fnat", inner: Net | None = None) -> None:
        self.rig, self.net, self.mode = rig, net, mode
        self.inner = inner or net
        self.cport = 40000
        self.dport = 80 if mode == "dr" else 8080
        self.lport = 0 if mode == "fnat" else self.cport
        self.laddr = self.inner.laddr if mode == "fnat" else net.remote
        self.packets = [0, 0]
        self.bytes = [0, 0]

    def up(self, *chunks: bytes, vtag: int = 0x5E, **fields: Any) -> Frame:
        body = packet(
            self.net.remote, self.net.vip, build(self.cport, 80, *chunks, vtag=vtag, **fields)
        )
        sent = one(self.rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))))
        self.packets[0] += 1
        self.bytes[0] += len(body)
        assert sent.port == "lan"
        seen = check(
            sent.frame,
            ether(src=LAN_MAC, dst=DEST_MAC),
            ip(
                version=self.inner.af,
                saddr=self.laddr,
                daddr=self.net.vip if self.mode == "dr" else self.inner.dest,
                ttl=63,
            ),
            sctp(dport=self.dport, vtag=vtag),
        )
        found = seen.find(Sctp)
        assert isinstance(found, Sctp)
        self.lport = self.lport or found.sport
        assert found.sport == self.lport
        assert seen.payload == b"".join(chunks)
        return seen

    def down(self, *chunks: bytes, vtag: int = 0xC1, **fields: Any) -> Frame:
        body = packet(
            self.inner.dest, self.laddr, build(self.dport, self.lport, *chunks, vtag=vtag, **fields)
        )
        sent = one(self.rig.receive("lan", vnet(eth(LAN_MAC, DEST_MAC, payload=body))))
        self.packets[1] += 1
        self.bytes[1] += len(body)
        assert sent.port == "wan"
        seen = check(
            sent.frame,
            ether(src=WAN_MAC, dst=ROUTER_MAC),
            ip(version=self.net.af, saddr=self.net.vip, daddr=self.net.remote, ttl=63),
            sctp(sport=80, dport=self.cport, vtag=vtag),
        )
        assert seen.payload == b"".join(chunks)
        return seen

    def establish(self) -> Association:
        self.up(init(), vtag=0)
        if self.mode != "dr":
            self.down(init(kind=INIT_ACK))
        self.up(chunk(COOKIE_ECHO, b"cookie"))
        if self.mode != "dr":
            self.down(chunk(COOKIE_ACK))
        assert states(self.rig) == ["ESTABLISHED"]
        return self

    def counted(self, **more: int) -> dict[str, int]:
        moved = {
            "CONN_NEW": 1,
            "IPVS_IN_PACKETS": self.packets[0],
            "IPVS_OUT_PACKETS": self.packets[1],
            "IPVS_IN_BYTES": self.bytes[0],
            "IPVS_OUT_BYTES": self.bytes[1],
            **{name.replace("drop_", "drop."): n for name, n in more.items()},
        }
        return {name: n for name, n in moved.items() if n}


@pytest.mark.parametrize("mode", MODES)
def test_an_association(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, "sctp", mode))
    conn = Association(rig, net, mode)
    conn.up(init(), vtag=0)
    assert states(rig) == ["INIT1"]
    if mode != "dr":
        conn.down(init(kind=INIT_ACK))
        assert states(rig) == ["COOKIE_SENT"]
    conn.up(chunk(COOKIE_ECHO, b"odd"), DATA_CHUNK)
    assert states(rig) == ["ESTABLISHED" if mode == "dr" else "COOKIE_REPLIED"]
    if mode != "dr":
        conn.down(chunk(COOKIE_ACK), chunk(SACK, bytes(12)))
    assert states(rig) == ["ESTABLISHED"]
    assert (the_dest(rig).actconns, the_dest(rig).inactconns) == (1, 0)
    conn.up(chunk(HEARTBEAT, bytes(40)))
    conn.up(chunk(SHUTDOWN, bytes(4)))
    assert states(rig) == ["SHUTDOWN_RECEIVED"]
    if mode != "dr":
        conn.down(chunk(SHUTDOWN_ACK))
        assert states(rig) == ["SHUTDOWN_ACK_SENT"]
    conn.up(chunk(SHUTDOWN_COMPLETE))
    assert states(rig) == ["CLOSED"]
    assert rig.counters() == conn.counted()


def test_between_the_families(net: Net) -> None:
    rig = Rig(configured(net, "sctp"))
    conn = Association(rig, net, inner=OTHER[net.af]).establish()
    conn.up(DATA_CHUNK, DATA_CHUNK)
    conn.down(DATA_CHUNK)
    assert rig.counters() == conn.counted(NAT64_PACKETS=6)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 100, 1399, 40_000])
@pytest.mark.parametrize("mode", ["nat", "fnat"])
def test_checksums_of_every_length(mode: str, size: int) -> None:
    text = balanced(V4, "sctp", mode).replace('"name": "lan"', '"name": "lan", "mtu": 65000')
    conn = Association(Rig(text), V4, mode).establish()
    conn.up(chunk(DATA, struct.pack("!IHHI", 1, 0, 0, 0) + bytes(size), 3))


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_checksum_stays_wrong(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, "sctp", mode))
    conn = Association(rig, net, mode).establish()
    with pytest.raises(AssertionError, match="wrong CRC-32C"):
        conn.up(DATA_CHUNK, checksum=0x12345678)


@pytest.mark.parametrize("mode", MODES)
def test_a_checksum_left_to_an_offload_is_made_at_once(net: Net, mode: str) -> None:
    """No device of ours could be told to finish it."""
    rig = Rig(balanced(net, "sctp", mode))
    body = packet(net.remote, net.vip, build(40000, 80, init(), checksum=0))
    frame = eth(WAN_MAC, ROUTER_MAC, payload=body)
    start = 14 + (20 if net.af == 4 else 40)
    raw = vnet(frame, needs_csum=True, csum_start=start, csum_offset=8)
    check(one(rig.receive("wan", raw)).frame)


def test_such_a_frame_that_another_worker_reads(net: Net) -> None:
    workers = Workers(balanced(net, "sctp"), 2)
    start = 14 + (20 if net.af == 4 else 40)
    for cport in range(40000, 40008):
        body = packet(net.remote, net.vip, build(cport, 80, init(), checksum=0))
        frame = eth(WAN_MAC, ROUTER_MAC, payload=body)
        raw = vnet(frame, needs_csum=True, csum_start=start, csum_offset=8)
        (sent,) = workers.receive(0, "wan", raw)
        check(sent.frame, sctp(dport=8080))
    assert all(rig.director.ipvs.conns.count for rig in workers.rigs)


@pytest.mark.parametrize("gso_type", [1, 4, 5])
def test_segmentation_of_another_protocol(net: Net, gso_type: int) -> None:
    body = packet(net.remote, net.vip, build(40000, 80, init()))
    frame = eth(WAN_MAC, ROUTER_MAC, payload=body)
    start = 14 + (20 if net.af == 4 else 40)
    raw = vnet(
        frame,
        needs_csum=True,
        csum_start=start,
        csum_offset=8,
        gso_type=gso_type,
        gso_size=100,
    )
    dropped(Rig(balanced(net, "sctp")), "wan", raw, "VNET_HEADER")


@pytest.mark.parametrize(("start", "offset"), [(0, 6), (0, 4), (12, 8)])
def test_another_checksum_asked_of_the_kernel(net: Net, start: int, offset: int) -> None:
    """It would write into what CRC-32C covers: that is no frame of a host."""
    body = packet(net.remote, net.vip, build(40000, 80, init()))
    frame = eth(WAN_MAC, ROUTER_MAC, payload=body)
    at = 14 + (20 if net.af == 4 else 40) + start
    raw = vnet(frame, needs_csum=True, csum_start=at, csum_offset=offset)
    dropped(Rig(balanced(net, "sctp")), "wan", raw, "VNET_HEADER")


def test_an_init_again_with_another_tag_goes_where_the_first_went(net: Net) -> None:
    """RFC 9260 section 5.2.1: who answers decides which of the two counts."""
    conn = Association(rig := Rig(balanced(net, "sctp")), net)
    conn.up(init(vtag=1), vtag=0)
    conn.up(init(vtag=2), vtag=0)
    conn.down(init(kind=INIT_ACK))
    conn.up(init(vtag=3), vtag=0)
    assert states(rig) == ["COOKIE_SENT"]
    assert rig.counters() == conn.counted()


def test_addresses_that_an_init_names_stay(net: Net) -> None:
    """IPVS does not look at them either, see docs/protocols.md."""
    v4 = struct.pack("!HH4s", 5, 8, bytes((192, 0, 2, 9)))
    v6 = struct.pack("!HH16s", 6, 20, bytes(16))
    conn = Association(Rig(balanced(net, "sctp")), net)
    conn.up(init(params=v4 + v6), vtag=0)
    conn.down(init(kind=INIT_ACK, params=v4 + struct.pack("!HH4s", 7, 8, b"tick")))


# -- who may open an association


NOT_AN_INIT = {
    "data": (DATA_CHUNK,),
    "cookie": (chunk(COOKIE_ECHO, b"x"),),
    "init ack": (init(kind=INIT_ACK),),
    "abort": (chunk(ABORT),),
    "init with more behind": (init(), DATA_CHUNK),
    "short init": (chunk(1, bytes(12)),),
}


@pytest.mark.parametrize("chunks", NOT_AN_INIT.values(), ids=NOT_AN_INIT)
def test_only_an_init_opens(net: Net, chunks: tuple[bytes, ...]) -> None:
    rig = Rig(balanced(net, "sctp"))
    dropped(rig, "wan", framed(net, build(40000, 80, *chunks)), "SCTP_NOT_INIT")
    assert states(rig) == []


def test_an_init_with_a_verification_tag(net: Net) -> None:
    raw = framed(net, build(40000, 80, init(), vtag=1))
    dropped(Rig(balanced(net, "sctp")), "wan", raw, "SCTP_NOT_INIT")


def framed(net: Net, body: Transport | bytes, **fields: Any) -> bytes:
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=packet(net.remote, net.vip, body, **fields)))


HEADER = struct.pack("!HHII", 40000, 80, 0, 0)
MALFORMED = {
    "nothing": b"",
    "no chunk": HEADER,
    "half a chunk header": HEADER + b"\x01\x00",
    "chunk of 3": HEADER + b"\x01\x00\x00\x03",
    "chunk too long": HEADER + b"\x01\x00\x00\x08",
    "chunk of 65535": HEADER + b"\x01\x00\xff\xff" + bytes(100),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed(net: Net, body: bytes) -> None:
    dropped(Rig(balanced(net, "sctp")), "wan", framed(net, body, proto=132), "L4_HEADER")


def test_a_vip_of_another_protocol(net: Net) -> None:
    rig = Rig(balanced(net, "tcp"))
    verdict, sent = rig.receive("wan", framed(net, build(40000, 80, init())))
    assert (verdict, len(sent)) == (Verdict.DROP, 1)
    assert rig.counters() == {"drop.PORT_UNREACHABLE": 1, "ICMP_ERRORS_SENT": 1}


# -- states


def test_an_abort_ends_it_and_an_init_begins_another(net: Net) -> None:
    rig = Rig(balanced(net, "sctp"))
    conn = Association(rig, net).establish()
    conn.down(chunk(ABORT))
    assert states(rig) == ["CLOSED"]
    conn.lport = 0
    conn.up(init(), vtag=0)
    assert states(rig) == ["INIT1"]
    assert rig.counters() == conn.counted(CONN_REUSED=1) | {"CONN_NEW": 2}


@pytest.mark.parametrize("first", [COOKIE_ECHO, COOKIE_ACK])
def test_an_abort_behind_a_cookie(net: Net, first: int) -> None:
    conn = Association(rig := Rig(balanced(net, "sctp")), net).establish()
    conn.up(chunk(first, b"x"), chunk(ABORT))
    assert states(rig) == ["CLOSED"]


def test_an_abort_elsewhere_is_not_looked_for(net: Net) -> None:
    conn = Association(rig := Rig(balanced(net, "sctp")), net).establish()
    conn.up(DATA_CHUNK, chunk(ABORT))
    assert states(rig) == ["ESTABLISHED"]


def test_a_restart_stays_where_it_is(net: Net) -> None:
    """RFC 9260 section 5.2.2: the dest answers an INIT of a peer that lost its memory."""
    conn = Association(rig := Rig(balanced(net, "sctp")), net).establish()
    conn.up(init(), vtag=0)
    conn.down(init(kind=INIT_ACK))
    assert states(rig) == ["ESTABLISHED"]
    assert rig.counters() == conn.counted()


def test_timeouts(net: Net) -> None:
    rig = Rig(balanced(net, "sctp", timeouts={"sctp_established_s": 20}))
    Association(rig, net).establish()
    rig.advance(19_000)
    assert states(rig) == ["ESTABLISHED"]
    rig.advance(2_000)
    assert states(rig) == []


def test_an_error_chunk_in_the_handshake(net: Net) -> None:
    conn = Association(rig := Rig(balanced(net, "sctp")), net)
    conn.up(init(), vtag=0)
    conn.down(chunk(ERROR, bytes(8)))
    assert states(rig) == ["CLOSED"]


# -- errors about its packets


@pytest.mark.parametrize("cut", [8, 12, 10_000])
@pytest.mark.parametrize("side", ["lan", "wan"])
@pytest.mark.parametrize("mode", ["nat", "fnat"])
def test_icmp_errors(net: Net, mode: str, side: str, cut: int) -> None:
    rig = Rig(balanced(net, "sctp", mode))
    conn = Association(rig, net, mode).establish()
    seen = conn.up(DATA_CHUNK) if side == "lan" else conn.down(DATA_CHUNK)
    quote = seen.data[24:][: (20 if net.af == 4 else 40) + cut]
    source = "192.0.2.77" if net.af == 4 else "2001:db8:77::1"
    said = (3, 1, 0) if net.af == 4 else (1, 3, 0)
    target = conn.laddr if side == "lan" else net.vip
    macs = (LAN_MAC, DEST_MAC) if side == "lan" else (WAN_MAC, ROUTER_MAC)
    raw = vnet(eth(*macs, payload=packet(source, target, message(*said, quote))))
    sent = one(rig.receive(side, raw))
    if side == "lan":
        inner = (ip(saddr=net.remote, daddr=net.vip), sctp(sport=40000, dport=80))
    else:
        inner = (ip(saddr=net.dest, daddr=conn.laddr), sctp(sport=8080, dport=conn.lport))
    check(sent.frame, icmp(type=said[0], code=said[1]), quoted(*inner))
    assert rig.counters() == conn.counted(ICMP_RELATED=1)


@pytest.mark.parametrize("cut", [8, 12, 10_000])
@pytest.mark.parametrize("side", ["lan", "wan"])
def test_icmp_errors_between_the_families(net: Net, side: str, cut: int) -> None:
    rig = Rig(configured(net, "sctp"))
    conn = Association(rig, net, inner=OTHER[net.af]).establish()
    seen = conn.up(DATA_CHUNK) if side == "lan" else conn.down(DATA_CHUNK)
    af = conn.inner.af if side == "lan" else net.af
    quote = seen.data[24:][: (20 if af == 4 else 40) + cut]
    source = "192.0.2.77" if af == 4 else "2001:db8:77::1"
    said = (3, 1, 0) if af == 4 else (1, 3, 0)
    target = conn.laddr if side == "lan" else net.vip
    macs = (LAN_MAC, DEST_MAC) if side == "lan" else (WAN_MAC, ROUTER_MAC)
    raw = vnet(eth(*macs, payload=packet(source, target, message(*said, quote))))
    sent = one(rig.receive(side, raw))
    if side == "lan":
        inner = (ip(saddr=net.remote, daddr=net.vip), sctp(sport=40000, dport=80))
    else:
        inner = (ip(saddr=conn.inner.dest, daddr=conn.laddr), sctp(sport=8080, dport=conn.lport))
    check(sent.frame, icmp(), quoted(*inner))


# -- beside the packets


@pytest.mark.parametrize("mode", MODES)
def test_a_successor_goes_on(net: Net, mode: str) -> None:
    memory = Memory()
    text = balanced(net, "sctp", mode)
    conn = Association(rig := Rig(text, memory=memory), net, mode).establish()
    conn.rig = Rig(text, memory=memory.copy(), now=rig.now + 1000)
    assert conn.rig.director.adopt(conn.rig.now).kept == 1
    conn.up(DATA_CHUNK)
    if mode != "dr":
        conn.down(DATA_CHUNK)


@pytest.mark.parametrize(("proto", "flags"), [(132, 0), (6, 2048)])
def test_a_row_whose_flag_and_protocol_differ_is_not_adopted(proto: int, flags: int) -> None:
    memory = Memory()
    text = balanced(V4, "sctp") + "\n"
    rig = Rig(text, memory=memory)
    Association(rig, V4).establish()
    left = memory.copy()
    row = 4096 + 0 * 128
    left.conns[row + 72] = proto
    word = int.from_bytes(left.conns[row + 76 : row + 78], "little") & ~2048 | flags
    left.conns[row + 76 : row + 78] = word.to_bytes(2, "little")
    successor = Rig(text, memory=left, now=rig.now)
    assert successor.director.adopt(rig.now) == (0, 1)


def test_routed_without_a_service(net: Net) -> None:
    rig = Rig(balanced(net, "tcp"))
    assert default_route(net)
    body = packet(net.remote, net.dest, build(1, 2, DATA_CHUNK, vtag=9))
    sent = one(rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))))
    check(sent.frame, sctp(sport=1, dport=2, vtag=9))
