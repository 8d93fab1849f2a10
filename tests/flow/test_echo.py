"""Pings as a service: spread over dests, answered as the VIP, errors about them translated."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.fragmenting import cut, framed
from tests.flow.kit import (
    DEST2_MAC,
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Line,
    Net,
    Rig,
    dropped,
    network,
    one,
    states,
    text,
)
from tests.flow.kit import balanced as balanced_tcp
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, ether, icmp, ip, payload, quoted
from tunlb.testing.flow import Memory
from tunlb.testing.frames import Transport, address_bytes, eth, ones_sum, pseudo_header, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.parser import Frame, Icmp
from tunlb.testing.workers import Workers

MODES = ("fnat", "nat", "dr")


def service(net: Net, mode: str = "fnat", **keys: Any) -> Line:
    line: Line = {
        "kind": "service",
        "name": "ping",
        "proto": "icmp",
        "vaddr": net.vip,
        "fwdmode": mode,
    }
    line |= {"scheduler": "rr"} | ({"laddrs": [net.laddr]} if mode == "fnat" else {})
    return line | keys


def balanced(net: Net, mode: str = "fnat", **keys: Any) -> str:
    dests: list[Line] = [
        {"kind": "dest", "service": "ping", "daddr": daddr} for daddr in (net.dest, net.dest2)
    ]
    return text(*network(net), service(net, mode, **keys), *dests)


def request(net: Net, number: int, sequence: int = 1, body: bytes = b"ping", **f: Any) -> Transport:
    return message(8 if net.af == 4 else 128, 0, number << 16 | sequence, body, **f)


def reply(net: Net, number: int, sequence: int = 1, body: bytes = b"ping", **f: Any) -> Transport:
    return message(0 if net.af == 4 else 129, 0, number << 16 | sequence, body, **f)


def up(rig: Rig, net: Net, body: Transport, **fields: Any) -> tuple[Verdict, Any]:
    raw = packet(net.remote, net.vip, body, **fields)
    return rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))


def down(rig: Rig, net: Net, body: Transport, laddr: str, daddr: str = "") -> tuple[Verdict, Any]:
    host = daddr or net.dest
    mac = DEST_MAC if host == net.dest else DEST2_MAC
    return rig.receive("lan", vnet(eth(LAN_MAC, mac, payload=packet(host, laddr, body))))


def ident(frame: Frame) -> int:
    found = frame.find(Icmp)
    assert isinstance(found, Icmp)
    return found.info >> 16


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [0, 1, 0x1234, 0xFFFF])
def test_there_and_back(net: Net, mode: str, number: int) -> None:
    rig = Rig(balanced(net, mode))
    sent = one(up(rig, net, request(net, number)))
    shown = net.laddr if mode == "fnat" else net.remote
    seen = check(
        sent.frame,
        ether(src=LAN_MAC, dst=DEST_MAC),
        ip(saddr=shown, daddr=net.vip if mode == "dr" else net.dest, ttl=63),
        icmp(type=8 if net.af == 4 else 128),
        payload(b"ping"),
    )
    assert (ident(seen) == number) == (mode != "fnat")
    assert states(rig) == ["ONEWAY"]
    if mode == "dr":
        return
    sent = one(down(rig, net, reply(net, ident(seen)), shown))
    check(
        sent.frame,
        ether(src=WAN_MAC, dst=ROUTER_MAC),
        ip(saddr=net.vip, daddr=net.remote, ttl=63),
        icmp(type=0 if net.af == 4 else 129, info=number << 16 | 1),
        payload(b"ping"),
    )
    assert states(rig) == ["NORMAL"]
    size = 32 if net.af == 4 else 52
    moved = {"IPVS_IN_PACKETS": 1, "IPVS_IN_BYTES": size}
    moved |= {"IPVS_OUT_PACKETS": 1, "IPVS_OUT_BYTES": size}
    assert rig.counters() == {"CONN_NEW": 1, **moved}


def test_a_ping_stays_with_its_dest_and_another_goes_elsewhere(net: Net) -> None:
    rig = Rig(balanced(net, "nat"))
    for number, daddr in ((1, net.dest), (2, net.dest2), (3, net.dest)):
        for sequence in range(3):
            sent = one(up(rig, net, request(net, number, sequence)))
            check(sent.frame, ip(daddr=daddr), icmp(info=number << 16 | sequence))
    assert rig.director.ipvs.conns.count == 3


def test_both_sides_ping_with_one_identifier(net: Net) -> None:
    """What the dest asks by itself is no answer to what it was asked."""
    rig = Rig(balanced(net, "nat"))
    one(up(rig, net, request(net, 9)))
    raw = packet(net.dest, net.remote, request(net, 9))
    sent = one(rig.receive("lan", vnet(eth(LAN_MAC, DEST_MAC, payload=raw))))
    check(sent.frame, ip(saddr=net.dest, daddr=net.remote))
    assert rig.counters()["FORWARDED"] == 1


def test_without_an_icmp_service_we_answer(net: Net) -> None:
    rig = Rig(balanced_tcp(net))
    verdict, sent = up(rig, net, request(net, 5))
    assert verdict == Verdict.ACCEPT
    check(sent[0].frame, ip(saddr=net.vip, daddr=net.remote), icmp(info=5 << 16 | 1))
    assert rig.counters() == {"ICMP_ECHO_REPLIES": 1}


def test_other_messages_are_ours(net: Net) -> None:
    """A service of pings takes echo, and nothing else."""
    rig = Rig(balanced(net))
    body = message(13 if net.af == 4 else 139, 0, 0, bytes(12))
    raw = packet(net.remote, net.vip, body)
    dropped(rig, "wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)), "ICMP_IGNORED")


def test_a_reply_opens_nothing(net: Net) -> None:
    rig = Rig(balanced(net))
    raw = packet(net.remote, net.vip, reply(net, 5))
    dropped(rig, "wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)), "ECHO_UNKNOWN")


def test_no_dest(net: Net) -> None:
    rig = Rig(text(*network(net), service(net)))
    verdict, sent = up(rig, net, request(net, 5))
    assert verdict == Verdict.DROP
    check(sent[0].frame, ip(saddr=net.vip), icmp(type=3 if net.af == 4 else 1))
    assert rig.counters() == {"drop.NO_DEST": 1, "ICMP_ERRORS_SENT": 1}


def quote_is_sealed(frame: Frame, net: Net, saddr: str, daddr: str) -> bool:
    """Is the checksum of the quoted ping right for what the quote says now?"""
    assert frame.quoted is not None
    inner = frame.quoted.data[20 if net.af == 4 else 40 :]
    if net.af == 6:
        pair = address_bytes(saddr), address_bytes(daddr)
        inner = pseudo_header(*pair, 58, len(inner)) + inner
    return ones_sum(inner) == 0xFFFF


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_errors_both_ways(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, mode))
    seen = check(one(up(rig, net, request(net, 700))).frame)
    shown = net.laddr if mode == "fnat" else net.remote
    number, code = (11, 0) if net.af == 4 else (3, 0)
    hop = "203.0.113.77" if net.af == 4 else "2001:db8:77::1"
    # About the request, by a router behind us: the client hears it from the VIP.
    raw = packet(hop, shown, message(number, code, 0, seen.data[24:]))
    sent = one(rig.receive("lan", vnet(eth(LAN_MAC, DEST_MAC, payload=raw))))
    heard = check(
        sent.frame,
        ip(saddr=net.vip, daddr=net.remote),
        quoted(ip(saddr=net.remote, daddr=net.vip), icmp(info=700 << 16 | 1)),
    )
    assert quote_is_sealed(heard, net, net.remote, net.vip)
    # About the reply, by a router before us: the dest hears it.
    back = check(one(down(rig, net, reply(net, ident(seen)), shown)).frame)
    raw = packet(hop, net.vip, message(number, code, 0, back.data[24:]))
    sent = one(rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw))))
    heard = check(
        sent.frame,
        ip(saddr=net.laddr if mode == "fnat" else hop, daddr=net.dest),
        quoted(ip(saddr=net.dest, daddr=shown), icmp(info=ident(seen) << 16 | 1)),
    )
    assert quote_is_sealed(heard, net, net.dest, shown)
    assert rig.counters()["ICMP_RELATED"] == 2


@pytest.mark.parametrize("mode", ["fnat", "nat"])
@pytest.mark.parametrize("size", [0, 1, 55, 56, 1400])
def test_checksums_of_all_sizes(net: Net, mode: str, size: int) -> None:
    rig = Rig(balanced(net, mode))
    body = bytes(range(256)) * 6
    seen = check(one(up(rig, net, request(net, 0xFFFE, 7, body[:size]))).frame)
    check(
        one(
            down(
                rig,
                net,
                reply(net, ident(seen), 7, body[:size]),
                net.laddr if mode == "fnat" else net.remote,
            )
        ).frame
    )


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_a_wrong_checksum_stays_wrong(net: Net, mode: str) -> None:
    rig = Rig(balanced(net, mode))
    with pytest.raises(AssertionError, match="checksum"):
        check(one(up(rig, net, request(net, 5, checksum=0x4711))).frame)


def test_time_is_over(net: Net) -> None:
    rig = Rig(balanced(net))
    one(up(rig, net, request(net, 5)))
    rig.advance(59_000, step=1000)
    assert states(rig) == ["ONEWAY"]
    rig.advance(2_000)
    assert states(rig) == []


def test_a_successor_goes_on(net: Net) -> None:
    memory = Memory()
    rig = Rig(balanced(net), memory=memory)
    seen = check(one(up(rig, net, request(net, 5))).frame)
    heir = Rig(balanced(net), memory=memory.copy(), now=rig.now)
    assert heir.director.adopt(heir.now) == (1, 0)
    back = one(down(heir, net, reply(net, ident(seen)), net.laddr))
    check(back.frame, ip(saddr=net.vip, daddr=net.remote), icmp(info=5 << 16 | 1))


def test_a_row_without_its_protocols_flag_is_not_adopted(net: Net) -> None:
    memory = Memory()
    rig = Rig(balanced(net), memory=memory)
    one(up(rig, net, request(net, 5)))
    (row,) = rig.director.ipvs.conns.rows()
    memoryview(memory.conns)[4096:].cast("H")[row * 64 + 38] &= 0xFFFF ^ 1024
    heir = Rig(balanced(net), memory=memory.copy(), now=rig.now)
    assert heir.director.adopt(heir.now) == (0, 1)


def test_a_removed_service_drains(net: Net) -> None:
    rig = Rig(balanced(net))
    seen = check(one(up(rig, net, request(net, 5))).frame)
    rig.reload(text(*network(net), service(net) | {"proto": "tcp", "vport": 80}))
    one(down(rig, net, reply(net, ident(seen)), net.laddr))
    check(one(up(rig, net, request(net, 5, 2))).frame, ip(daddr=net.dest))  # an old one goes on
    check(one(up(rig, net, request(net, 6))).frame, ip(saddr=net.vip))  # a new one is answered


def test_pings_of_several_workers_are_the_first_ones(net: Net) -> None:
    """Whichever reads them, in either direction; and it has every identifier for them."""
    workers = Workers(balanced(net), 3)
    shown = []
    for n in range(6):
        raw = packet(net.remote, net.vip, request(net, 100 + n))
        (sent,) = workers.receive(n % 3, "wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))
        seen = check(sent.frame, ip(saddr=net.laddr))
        shown.append(ident(seen))
        daddr, mac = ((net.dest, DEST_MAC), (net.dest2, DEST2_MAC))[n % 2]
        raw = packet(daddr, net.laddr, reply(net, shown[-1]))
        (back,) = workers.receive(1, "lan", vnet(eth(LAN_MAC, mac, payload=raw)))
        check(back.frame, ip(saddr=net.vip, daddr=net.remote), icmp(info=100 + n << 16 | 1))
    assert shown == [1025, 1025, 1026, 1026, 1027, 1027]  # towards each of two dests
    assert [rig.director.ipvs.conns.count for rig in workers.rigs] == [6, 0, 0]


def test_an_error_about_a_ping_that_another_worker_reads(net: Net) -> None:
    workers = Workers(balanced(net), 2)
    raw = packet(net.remote, net.vip, request(net, 700))
    (sent,) = workers.receive(1, "wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))
    number, code = (11, 0) if net.af == 4 else (3, 0)
    hop = "203.0.113.77" if net.af == 4 else "2001:db8:77::1"
    raw = packet(hop, net.laddr, message(number, code, 0, check(sent.frame).data[24:]))
    (told,) = workers.receive(1, "lan", vnet(eth(LAN_MAC, DEST_MAC, payload=raw)))
    check(told.frame, ip(saddr=net.vip, daddr=net.remote), quoted(icmp(info=700 << 16 | 1)))


def test_a_worker_that_is_killed(net: Net) -> None:
    """Its successor has the identifiers of its pings back: they are given to no other one."""
    workers = Workers(balanced(net, scheduler="fo"), 2)
    raw = packet(net.remote, net.vip, request(net, 1))
    (sent,) = workers.receive(0, "wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))
    assert ident(check(sent.frame)) == 1025
    workers.kill(0)
    raw = packet(net.remote, net.vip, request(net, 2))
    (sent,) = workers.receive(0, "wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))
    assert ident(check(sent.frame)) == 1026


def test_a_flood_of_pings_is_bounded(net: Net) -> None:
    """A row each, and the table gives up the oldest; who pings at last is answered."""
    rig = Rig(balanced(net, "nat"), conn_max=16)
    for number in range(100):
        one(up(rig, net, request(net, number)))
    assert rig.director.ipvs.conns.count <= 16
    assert rig.counters()["CONN_EVICTED"] >= 84
    one(down(rig, net, reply(net, 99), net.remote, net.dest2))


def test_a_flood_of_one_source_is_limited(net: Net) -> None:
    rig = Rig(balanced(net, conn_rate=5, conn_burst=5))
    verdicts = [up(rig, net, request(net, number))[0] for number in range(20)]
    assert verdicts == [Verdict.ACCEPT] * 5 + [Verdict.DROP] * 15
    assert rig.counters()["drop.CONN_RATE"] == 15


def test_a_ping_in_fragments(net: Net) -> None:
    """Only its first fragment would have the identifier."""
    rig = Rig(balanced(net, "nat"))
    parts = cut(packet(net.remote, net.vip, request(net, 5, body=bytes(3000))))
    for part in parts:
        dropped(rig, "wan", framed(part, WAN_MAC, ROUTER_MAC), "FRAGMENT")
