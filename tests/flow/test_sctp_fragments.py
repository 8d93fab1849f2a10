"""Fragments of SCTP: they pass where no port changes, because the checksum covers those."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest

from tests.flow import kit, tunnels
from tests.flow.fragmenting import cut, framed, joined
from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Net,
    Rig,
    default_route,
    dest,
    dropped,
    neighbours,
    network,
    ports,
    service,
    states,
    text,
)
from tests.flow.test_nat64 import configured
from tunlb.testing.checkers import check, ether, icmp, ip, quoted, sctp
from tunlb.testing.flow import Memory, Sent
from tunlb.testing.frames import Transport, eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.sctp import COOKIE_ACK, COOKIE_ECHO, DATA, INIT_ACK, chunk, init
from tunlb.testing.sctp import sctp as build
from tunlb.testing.workers import Workers

CPORT, PORT = 40000, 80
PAD = struct.pack("!HH", 0x8001, 3004) + bytes(range(250)) * 12


def balanced(net: Net, mode: str, **keys: Any) -> str:
    """A dest that listens to the port that clients know."""
    if mode != "local":
        real = dest(net, "dr")
        return text(*network(net), service(net, "sctp", mode, **keys), real)
    lan, wan = ports(net)[1], ports(net)[0] | {"host": "tunlb-h0"}
    wan["host_addresses"] = [f"{net.client}/{net.length}"]
    lines = [wan, lan, default_route(net), *neighbours(net)]
    lines = [line for line in lines if line.get("addr") != net.client]
    return text(*lines, service(net, "sctp", mode, **keys), dest(net, "dr", daddr=net.client))


def upward(net: Net, transport: Transport, size: int = 1200, **fields: Any) -> list[bytes]:
    whole = packet(net.remote, net.vip, transport)
    return [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole, size, **fields)]


def downward(net: Net, transport: Transport, size: int = 1200, **fields: Any) -> list[bytes]:
    whole = packet(net.dest, net.remote, transport)
    return [framed(part, LAN_MAC, DEST_MAC) for part in cut(whole, size, **fields)]


def long_init(**fields: Any) -> Transport:
    return build(CPORT, PORT, init(params=PAD), **fields)


def at_dest(net: Net, sent: list[Sent], mode: str, vtag: int = 0) -> None:
    """Checks what the dest puts together: checksum, ports and chunks are the client's."""
    daddr = net.dest if mode == "nat" else net.vip
    for each in sent:
        assert each.port == ("tunlb-h0" if mode == "local" else "lan")
        check(each.frame, ip(saddr=net.remote, daddr=daddr, ttl=63))
    whole = joined([each.frame for each in sent])
    check(whole, sctp(sport=CPORT, dport=PORT, vtag=vtag))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_a_long_init(net: Net, mode: str, order: tuple[int, ...]) -> None:
    rig = Rig(balanced(net, mode))
    there = upward(net, long_init())
    assert len(there) == 3
    sent = rig.send("wan", [there[i] for i in order])
    at_dest(net, sent, mode)
    assert states(rig) == ["INIT1"]
    held = {"FRAGMENT_HELD": order.index(0)} if order[0] else {}
    assert rig.counters() == held | {
        "CONN_NEW": 1,
        "FRAGMENT_FIRST": 1,
        "FRAGMENT_LATER": 2,
        "IPVS_IN_PACKETS": 3,
        "IPVS_IN_BYTES": sum(len(frame) - 24 for frame in there),
    }


def test_a_handshake_of_which_each_packet_is_too_long(net: Net) -> None:
    """INIT ACK and COOKIE ECHO carry a cookie of any size, which no end may cut."""
    rig = Rig(balanced(net, "nat"))
    rig.send("wan", upward(net, long_init(), ident=1))
    reply = build(PORT, CPORT, init(kind=INIT_ACK, params=PAD), vtag=0x1234)
    sent = rig.send("lan", reversed(downward(net, reply, ident=2)))
    assert {each.port for each in sent} == {"wan"}
    for each in sent:
        check(each.frame, ether(src=WAN_MAC, dst=ROUTER_MAC), ip(saddr=net.vip, daddr=net.remote))
    check(joined([each.frame for each in sent]), sctp(sport=PORT, dport=CPORT, vtag=0x1234))
    assert states(rig) == ["COOKIE_SENT"]
    echo = build(CPORT, PORT, chunk(COOKIE_ECHO, PAD), vtag=0x5E)
    at_dest(net, rig.send("wan", upward(net, echo, ident=3)), "nat", vtag=0x5E)
    assert states(rig) == ["COOKIE_REPLIED"]
    rig.send("lan", downward(net, build(PORT, CPORT, chunk(COOKIE_ACK), vtag=0x1234)))
    assert states(rig) == ["ESTABLISHED"]
    assert not [name for name in rig.counters() if name.startswith("drop")]


def test_a_wrong_checksum_stays_wrong(net: Net) -> None:
    rig = Rig(balanced(net, "nat"))
    sent = rig.send("wan", upward(net, long_init(checksum=0x12345678)))
    with pytest.raises(AssertionError, match="wrong CRC-32C"):
        check(joined([each.frame for each in sent]))


@pytest.mark.parametrize(
    ("net", "outer"), [(V4, V4), (V6, V6), (V4, V6), (V6, V4)], ids=["4in4", "6in6", "4in6", "6in4"]
)
@pytest.mark.parametrize("backwards", [False, True])
def test_through_a_tunnel(net: Net, outer: Net, backwards: bool) -> None:
    rig = Rig(tunnels.balanced(net, outer, "sctp"))
    there = upward(net, long_init())
    sent = rig.send("wan", reversed(there) if backwards else there)
    inner = [tunnels.unwrapped(each.frame).inner for each in sent]
    frames = [vnet(eth(LAN_MAC, DEST_MAC, payload=each)) for each in inner]
    check(joined(frames), ip(saddr=net.remote, daddr=net.vip), sctp(sport=CPORT, dport=PORT))
    assert not [name for name in rig.counters() if name.startswith("drop")]


@pytest.mark.parametrize("mtu", [1280, 1400])
def test_a_tunnel_cuts_them_again(mtu: int) -> None:
    """Fragments that do not fit any more with the outer header."""
    rig = Rig(tunnels.balanced(V4, V4, "sctp", lan={"mtu": mtu}))
    there = upward(V4, long_init(), 1480)
    sent = rig.send("wan", there)
    assert len(sent) > len(there)
    inner = [tunnels.unwrapped(each.frame).inner for each in sent]
    assert max(len(each) for each in inner) <= mtu - 20
    check(joined([vnet(eth(LAN_MAC, DEST_MAC, payload=each)) for each in inner]), sctp(dport=PORT))


def test_to_the_host_itself(net: Net) -> None:
    rig = Rig(balanced(net, "local"))
    sent = rig.send("wan", upward(net, long_init()))
    assert len(sent) == 3
    at_dest(net, sent, "local")


# -- where ports change


def changing(net: Net, how: str) -> str:
    if how == "nat64":
        return configured(net, "sctp")
    return kit.balanced(net, "sctp", how)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("how", ["nat", "fnat", "nat64"])
def test_where_a_port_changes_they_are_dropped(net: Net, how: str, backwards: bool) -> None:
    """By how much the checksum moves depends on the length of the whole, which no part tells."""
    rig = Rig(changing(net, how))
    there = upward(net, long_init())
    assert rig.send("wan", reversed(there) if backwards else there) == []
    counted = {"CONN_NEW": 1, "FRAGMENT_FIRST": 1, "drop.FRAGMENT": 3}
    assert rig.counters() == counted | ({"FRAGMENT_HELD": 2} if backwards else {})


@pytest.mark.parametrize("how", ["nat", "fnat"])
def test_answers_whose_port_would_change(net: Net, how: str) -> None:
    """Those of a conn that a whole packet opened; it goes on."""
    rig = Rig(changing(net, how))
    small = packet(net.remote, net.vip, build(CPORT, PORT, init()))
    seen = check(rig.send("wan", [framed(small, WAN_MAC, ROUTER_MAC)])[0].frame)
    network_header, transport = seen.headers[-2:]
    reply = build(8080, transport.sport, init(kind=INIT_ACK, params=PAD), vtag=0x1234)  # type: ignore[union-attr]
    whole = packet(net.dest, network_header.saddr, reply)  # type: ignore[union-attr]
    parts = [framed(part, LAN_MAC, DEST_MAC) for part in cut(whole)]
    assert rig.send("lan", parts) == []
    assert rig.counters()["drop.FRAGMENT"] == len(parts)
    assert rig.counters().get("IPVS_OUT_PACKETS", 0) == 0
    assert len(rig.send("wan", [framed(small, WAN_MAC, ROUTER_MAC)])) == 1


def test_each_dest_has_its_own_port(net: Net) -> None:
    """One with the service's takes them, one with another does not."""
    other = dest(net, "nat", daddr=net.dest2)
    rig = Rig(text(*network(net), service(net, "sctp", "nat"), dest(net, "dr"), other))
    arrived = []
    for cport in (CPORT, CPORT + 1):
        long = build(cport, PORT, init(params=PAD))
        arrived.append(len(rig.send("wan", upward(net, long, ident=cport))))
    assert sorted(arrived) == [0, 3]
    assert rig.counters()["drop.FRAGMENT"] == 3


# -- who may open an association


def test_what_is_no_init(net: Net) -> None:
    rig = Rig(balanced(net, "dr"))
    data = chunk(DATA, struct.pack("!IHHI", 1, 0, 0, 0) + bytes(3000), 3)
    first, *later = upward(net, build(CPORT, PORT, data, vtag=9))
    assert rig.send("wan", [first, *later]) == []
    assert rig.counters() == {
        "FRAGMENT_FIRST": 1,
        "drop.SCTP_NOT_INIT": 1,
        "drop.FRAGMENT_ORPHAN": len(later),
    }


@pytest.mark.parametrize("more", [False, True])
def test_an_init_that_ends_where_the_first_fragment_does(net: Net, more: bool) -> None:
    """What comes behind it is another chunk, and an INIT is alone (RFC 9260 section 6.10)."""
    alone = init(params=struct.pack("!HH", 0x8001, 1160) + bytes(1156 + 8 * (not more)))
    if not more:
        alone = chunk(1, alone[4:])
    behind = [chunk(DATA, bytes(2000))] if more else []
    rig = Rig(balanced(net, "dr"))
    sent = rig.send("wan", upward(net, build(CPORT, PORT, alone, *behind), 1192))
    if more:
        assert sent == []
        assert rig.counters()["drop.SCTP_NOT_INIT"] == 1
        assert "CONN_NEW" not in rig.counters()
    else:
        at_dest(net, sent, "dr")


def first_bytes(net: Net, body: bytes) -> bytes:
    """A first fragment with these bytes of SCTP."""
    if net.af == 4:
        whole = packet(net.remote, net.vip, body, proto=132, df=False, mf=True, ident=7)
    else:
        head = (44, b"\0\0\1" + (7).to_bytes(4, "big"))
        whole = packet(net.remote, net.vip, body, proto=132, extensions=(head,))
    return framed(whole, WAN_MAC, ROUTER_MAC)


HEADER = struct.pack("!HHII", CPORT, PORT, 0, 0)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(HEADER[:8], id="half a header"),
        pytest.param(HEADER + b"\x01\x00\x00\x03" + bytes(8), id="a chunk of 3"),
        pytest.param(HEADER + bytes(12), id="a chunk of nothing"),
        pytest.param(HEADER + b"\x01\x00\x0b\xb8\x00", id="no multiple of 8"),
    ],
)
@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_malformed(net: Net, mode: str, body: bytes) -> None:
    dropped(Rig(balanced(net, mode)), "wan", first_bytes(net, body), "FRAGMENT_INVALID")


def test_a_checksum_that_is_left_to_an_offload(net: Net) -> None:
    """Nobody could finish it: no fragment has all that it covers."""
    whole = cut(packet(net.remote, net.vip, long_init()))[0]
    start = 14 + (20 if net.af == 4 else 48)
    raw = vnet(
        eth(WAN_MAC, ROUTER_MAC, payload=whole),
        needs_csum=True,
        csum_start=start,
        csum_offset=8,
    )
    dropped(Rig(balanced(net, "dr")), "wan", raw, "VNET_HEADER")


# -- beside the service


def test_a_router_passes_them_on(net: Net) -> None:
    """Not ours, where conns between others' addresses exist."""
    rig = Rig(balanced(net, "nat"))
    whole = packet(net.remote, net.dest2, build(1, 2, chunk(DATA, bytes(3000)), vtag=9))
    parts = [framed(part, WAN_MAC, ROUTER_MAC) for part in cut(whole)]
    sent = rig.send("wan", reversed(parts))
    assert {each.port for each in sent} == {"lan"}
    check(joined([each.frame for each in sent]), ip(daddr=net.dest2, ttl=63), sctp(dport=2, vtag=9))


def test_an_error_about_the_first_one(net: Net) -> None:
    """A router on the way to the dest: its client hears of it."""
    rig = Rig(balanced(net, "nat"))
    sent = rig.send("wan", upward(net, long_init()))
    quote = sent[0].frame[24:][:600]
    source = "192.0.2.77" if net.af == 4 else "2001:db8:77::1"
    said = (3, 4, 1300) if net.af == 4 else (2, 0, 1300)
    body = packet(source, net.remote, message(*said, quote))
    [error] = rig.send("lan", [framed(body, LAN_MAC, DEST_MAC)])
    check(error.frame, icmp(type=said[0], code=said[1]), quoted(ip(daddr=net.vip)))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_whoever_reads_them(net: Net, mode: str, backwards: bool) -> None:
    """One worker reads all fragments; each conn is where its ports lead."""
    workers = Workers(balanced(net, mode), 3)
    for rig in workers.rigs:
        rig.advance(3000)
    for cport in range(40000, 40012):
        parts = upward(net, build(cport, PORT, init(params=PAD)), ident=cport)
        sent = []
        for part in reversed(parts) if backwards else parts:
            sent += workers.receive(0, "wan", part)
        check(joined([each.frame for each in sent]), sctp(sport=cport, dport=PORT))
        if mode == "nat":
            reply = build(PORT, cport, init(kind=INIT_ACK, params=PAD), vtag=0x1234)
            sent = []
            for part in downward(net, reply, ident=cport):
                sent += workers.receive(0, "lan", part)
            check(joined([each.frame for each in sent]), sctp(sport=PORT, dport=cport))
    assert all(rig.director.ipvs.conns.count for rig in workers.rigs)
    assert not [name for name in workers.counters() if name.startswith("drop")]


@pytest.mark.parametrize("mode", ["nat", "dr"])
def test_a_successor_goes_on(net: Net, mode: str) -> None:
    memory = Memory()
    rig = Rig(balanced(net, mode), memory=memory)
    rig.send("wan", upward(net, long_init(), ident=1))
    heir = Rig(balanced(net, mode), memory=memory.copy(), now=rig.now + 1000)
    assert heir.director.adopt(heir.now).kept == 1
    at_dest(net, heir.send("wan", upward(net, long_init(), ident=2)), mode)
    assert "CONN_NEW" not in heir.counters()


def test_a_reload_takes_the_port_away(net: Net) -> None:
    """The conn keeps its dest, whose port is of the old line, until that is drained."""
    rig = Rig(balanced(net, "nat", drain_s=1))
    first, second, third = upward(net, long_init())
    sent = rig.send("wan", [first, second])
    rig.reload(kit.balanced(net, "sctp", "nat", drain_s=1))
    at_dest(net, sent + rig.send("wan", [third]), "nat")
    rig.advance(1500)
    for ident in (2, 3):
        assert rig.send("wan", upward(net, long_init(), ident=ident)) == []
    dropped = {name: n for name, n in rig.counters().items() if name.startswith("drop.")}
    assert dropped == {"drop.DEST_GONE": 1, "drop.FRAGMENT_ORPHAN": 2, "drop.FRAGMENT": 3}
