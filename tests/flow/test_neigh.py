"""Neighbours of both families: who is answered, who is learnt from, what waits and how long."""

from __future__ import annotations

import ipaddress

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Conn,
    Net,
    Rig,
    balanced,
    default_route,
    dest,
    dropped,
    neigh,
    ports,
    service,
    text,
)
from tunlb.hook import Verdict
from tunlb.neigh import NEIGH_MAX, STATE_NAMES
from tunlb.testing import flow as testing
from tunlb.testing.checkers import arp, check, ether, icmp, ip
from tunlb.testing.flow import Sent
from tunlb.testing.frames import arp as arp_frame
from tunlb.testing.frames import eth, mac_bytes, nd_na, nd_ns, tcp, udp, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.parser import Arp, Icmp, parse
from tunlb.wiring import pair

OTHER_MAC = "02:00:00:00:00:66"
NONE = "00:00:00:00:00:00"
BROADCAST = "ff:ff:ff:ff:ff:ff"


def unresolved(net: Net, proto: str = "tcp") -> str:
    """The usual network, but the dest's MAC address is not known."""
    static = neigh("wan", net.router, ROUTER_MAC)
    lines = [*ports(net), default_route(net), static, service(net, proto), dest(net)]
    return text(*lines)


def state(rig: testing.Rig, address: str, port: str = "lan") -> str:
    entry = rig.director.neighs.lookup(rig.netif(port), *pair(ipaddress.ip_address(address)))
    return "gone" if entry is None else STATE_NAMES[entry.state]


def solicited_node(address: str) -> tuple[str, str]:
    """The group of an address, and its MAC address (RFC 4291 2.7.1, RFC 2464 7)."""
    tail = ipaddress.ip_address(address).packed[-3:]
    group = ipaddress.ip_address(b"\xff\x02" + bytes(9) + b"\1\xff" + tail)
    return str(group), (b"\x33\x33\xff" + tail).hex(":")


def question(net: Net, target: str, asker: str, mac: str) -> bytes:
    """Somebody on the wire asks for ``target``."""
    if net.af == 4:
        return vnet(arp_frame(1, mac, asker, tpa=target))
    group, group_mac = solicited_node(target)
    return vnet(eth(group_mac, mac, payload=packet(asker, group, nd_ns(target, mac), ttl=255)))


def answer(net: Net, address: str, mac: str, us: str, our_mac: str = LAN_MAC) -> bytes:
    """The owner of ``address`` answers us."""
    if net.af == 4:
        return vnet(arp_frame(2, mac, address, our_mac, us, dst=our_mac))
    return vnet(eth(our_mac, mac, payload=packet(address, us, nd_na(address, mac), ttl=255)))


def gratuitous(net: Net, address: str, mac: str) -> bytes:
    if net.af == 4:
        return vnet(arp_frame(1, mac, address, tpa=address))
    body = nd_na(address, mac, solicited=False)
    return vnet(eth("33:33:00:00:00:01", mac, payload=packet(address, "ff02::1", body, ttl=255)))


def is_question(net: Net, sent: Sent, target: str, us: str, our_mac: str, to: str = "") -> None:
    """We ask for ``target``: broadcast or its group, or unicast to ``to``."""
    if net.af == 4:
        headers = ether(dst=to or BROADCAST, src=our_mac)
        check(sent.frame, headers, arp(op=1, sha=our_mac, spa=us, tha=NONE, tpa=target))
        return
    group, group_mac = solicited_node(target)
    check(
        sent.frame,
        ether(dst=to or group_mac, src=our_mac),
        ip(saddr=us, daddr=target if to else group, ttl=255),
        icmp(type=135, code=0, target=target, lladdr=our_mac),
    )


def came(net: Net) -> str:
    return "ARP_IN" if net.af == 4 else "ND_IN"


# -- what is asked of us


@pytest.mark.parametrize("whose", ["wan", "vip"])
def test_our_address_is_answered(net: Net, whose: str) -> None:
    rig = Rig(balanced(net))
    address = getattr(net, whose)
    verdict, sent = rig.receive("wan", question(net, address, net.client, OTHER_MAC))
    assert (verdict, [s.port for s in sent]) == (Verdict.STOLEN, ["wan"])
    headers = ether(dst=OTHER_MAC, src=WAN_MAC)
    if net.af == 4:
        expected = arp(op=2, sha=WAN_MAC, spa=address, tha=OTHER_MAC, tpa=net.client)
        check(sent[0].frame, headers, expected)
        assert len(sent[0].frame) == 10 + 60
    else:
        check(
            sent[0].frame,
            headers,
            ip(saddr=address, daddr=net.client, ttl=255),
            icmp(type=136, target=address, lladdr=WAN_MAC, info=0x6000_0000),
        )
    assert rig.counters() == {came(net): 1, "NEIGH_REPLIES": 1}


def test_laddr_is_answered_where_it_lives(net: Net) -> None:
    rig = Rig(balanced(net))
    assert len(rig.receive("lan", question(net, net.laddr, net.dest, DEST_MAC))[1]) == 1
    assert rig.receive("wan", question(net, net.laddr, net.client, OTHER_MAC))[1] == []
    assert rig.counters() == {came(net): 2, "NEIGH_REPLIES": 1}


@pytest.mark.parametrize("whose", ["vip2", "router", "nowhere"])
def test_foreign_address_is_not_answered(net: Net, whose: str) -> None:
    rig = Rig(balanced(net))
    asked = question(net, getattr(net, whose), net.client, OTHER_MAC)
    assert rig.receive("wan", asked) == (Verdict.STOLEN, [])
    assert rig.counters() == {came(net): 1}


def test_a_question_teaches_nothing(net: Net) -> None:
    """Not even that the asker exists."""
    rig = Rig(unresolved(net))
    rig.receive("lan", question(net, net.laddr, net.dest, DEST_MAC))
    assert state(rig, net.dest) == "gone"


def test_address_probe_is_answered(net: Net) -> None:
    """Somebody is about to take our VIP for itself (RFC 5227 2.1.1, RFC 4862 5.4.3)."""
    rig = Rig(balanced(net))
    if net.af == 4:
        raw = vnet(arp_frame(1, OTHER_MAC, "0.0.0.0", tpa=net.vip))
        verdict, sent = rig.receive("wan", raw)
        check(
            sent[0].frame, ether(dst=OTHER_MAC), arp(op=2, sha=WAN_MAC, spa=net.vip, tpa="0.0.0.0")
        )
    else:
        group, mac = solicited_node(net.vip)
        raw = vnet(eth(mac, OTHER_MAC, payload=packet("::", group, nd_ns(net.vip), ttl=255)))
        verdict, sent = rig.receive("wan", raw)
        check(
            sent[0].frame,
            ether(dst="33:33:00:00:00:01", src=WAN_MAC),
            ip(saddr=net.vip, daddr="ff02::1", ttl=255),
            icmp(type=136, target=net.vip, lladdr=WAN_MAC, info=0x2000_0000),
        )
    assert verdict == Verdict.STOLEN
    assert rig.counters() == {came(net): 1, "NEIGH_REPLIES": 1}


@pytest.mark.parametrize("whose", ["wan", "vip"])
@pytest.mark.parametrize("how", ["question", "answer", "gratuitous"])
def test_nobody_else_may_claim_our_address(net: Net, how: str, whose: str) -> None:
    rig = Rig(balanced(net))
    address = getattr(net, whose)
    if how == "question":
        raw = question(net, net.router, address, OTHER_MAC)
    elif how == "answer":
        raw = answer(net, address, OTHER_MAC, net.vip if whose == "wan" else net.wan, WAN_MAC)
    else:
        raw = gratuitous(net, address, OTHER_MAC)
    dropped(rig, "wan", raw, "ARP_INVALID" if net.af == 4 else "ND_INVALID")


@pytest.mark.parametrize(
    "fields",
    [
        {"hardware": 6},
        {"protocol": 0x86DD},
        {"hlen": 8},
        {"plen": 16},
        {"op": 0, "dst": BROADCAST},
        {"op": 3, "dst": BROADCAST},
        {"sha": "03:00:00:00:00:01"},
        {"sha": BROADCAST},
        {"sha": NONE},
    ],
    ids=str,
)
def test_malformed_arp(fields) -> None:
    fields = {"op": 1, "sha": OTHER_MAC, **fields}
    raw = arp_frame(
        fields.pop("op"), fields.pop("sha"), V4.client, tpa=V4.vip, src=OTHER_MAC, **fields
    )
    dropped(Rig(balanced(V4)), "wan", vnet(raw), "ARP_INVALID")


V6_LIES = {
    "hop-limit-254": lambda v: packet(v.client, v.vip, nd_ns(v.vip, OTHER_MAC), ttl=254),
    "checksum": lambda v: packet(v.client, v.vip, nd_ns(v.vip, OTHER_MAC, checksum=1), ttl=255),
    "multicast-target": lambda v: packet(v.client, v.vip, nd_ns("ff02::1", OTHER_MAC), ttl=255),
    "probe-with-option": lambda v: packet(
        "::", solicited_node(v.vip)[0], nd_ns(v.vip, OTHER_MAC), ttl=255
    ),
    "probe-to-unicast": lambda v: packet("::", v.vip, nd_ns(v.vip), ttl=255),
    "solicited-answer-to-a-group": lambda v: packet(
        v.client, "ff02::1", nd_na(v.client, OTHER_MAC), ttl=255
    ),
    "option-of-length-0": lambda v: packet(
        v.client,
        v.vip,
        b"\x87\0\0\0" + bytes(4) + ipaddress.ip_address(v.vip).packed + bytes(8),
        proto=58,
        ttl=255,
    ),
}


@pytest.mark.parametrize("build", V6_LIES.values(), ids=V6_LIES)
def test_malformed_nd(build) -> None:
    raw = vnet(eth(WAN_MAC, OTHER_MAC, payload=build(V6)))
    dropped(Rig(balanced(V6)), "wan", raw, "ND_INVALID")


def test_solicitation_without_an_option_is_answered_to_its_frame() -> None:
    rig = Rig(balanced(V6))
    raw = vnet(eth(WAN_MAC, OTHER_MAC, payload=packet(V6.client, V6.vip, nd_ns(V6.vip), ttl=255)))
    _, sent = rig.receive("wan", raw)
    check(sent[0].frame, ether(dst=OTHER_MAC), ip(daddr=V6.client), icmp(type=136))


# -- what waits


def syns(conn: Conn, n: int, first: int = 40000) -> list[bytes]:
    """SYNs of n conns, in order."""
    net = conn.net
    bodies = (packet(net.remote, net.vip, tcp(first + i, 80, flags="S")) for i in range(n))
    return [vnet(eth(WAN_MAC, ROUTER_MAC, payload=body)) for body in bodies]


def test_packets_wait_and_leave_in_order(net: Net) -> None:
    rig = Rig(unresolved(net))
    conn = Conn(rig, net)
    frames = syns(conn, 3)
    verdict, sent = rig.receive("wan", frames[0])
    assert (verdict, [s.port for s in sent]) == (Verdict.STOLEN, ["lan"])
    is_question(net, sent[0], net.dest, net.lan, LAN_MAC)
    assert rig.send("wan", frames[1:]) == []
    verdict, sent = rig.receive("lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert verdict == Verdict.STOLEN
    assert [s.port for s in sent] == ["lan"] * 3
    for i, released in enumerate(sent):
        seen = check(released.frame, ether(dst=DEST_MAC, src=LAN_MAC), ip(daddr=net.dest, ttl=63))
        assert seen.headers[-1].sport == 1025 + i  # type: ignore[union-attr]
    size = len(frames[0]) - 24
    assert rig.counters() == {
        came(net): 1,
        "NEIGH_REQUESTS": 1,
        "NEIGH_QUEUED": 3,
        "CONN_NEW": 3,
        "IPVS_IN_PACKETS": 3,
        "IPVS_IN_BYTES": 3 * size,
    }
    assert state(rig, net.dest) == "REACHABLE"


def test_a_gso_frame_waits_with_its_header(net: Net) -> None:
    rig = Rig(unresolved(net))
    frame = eth(WAN_MAC, ROUTER_MAC, payload=packet(net.remote, net.vip, tcp(40000, 80, flags="S")))
    rig.receive("wan", vnet(frame, needs_csum=True))
    _, sent = rig.receive("lan", answer(net, net.dest, DEST_MAC, net.lan))
    seen = check(sent[0].frame, ether(dst=DEST_MAC))
    assert seen.headers[0].flags == 1  # type: ignore[union-attr]


def test_queue_is_bounded(net: Net) -> None:
    rig = Rig(unresolved(net))
    rig.send("wan", syns(Conn(rig, net), 130))
    moved = rig.counters()
    assert (moved["NEIGH_QUEUED"], moved["drop.NEIGH_QUEUE_FULL"]) == (128, 2)
    _, sent = rig.receive("lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert len(sent) == 128


def test_nobody_answers(net: Net) -> None:
    """After 3 s each waiting packet is a counted drop, and the entry is soon forgotten."""
    rig = Rig(unresolved(net))
    rig.send("wan", syns(Conn(rig, net), 5))
    rig.advance(2500)
    assert "drop.NEIGH_UNREACHABLE" not in rig.counters()
    assert state(rig, net.dest) == "SEND"
    rig.advance(1000)
    assert rig.counters()["drop.NEIGH_UNREACHABLE"] == 5
    assert state(rig, net.dest) == "NONE"
    rig.advance(2500)
    assert state(rig, net.dest) == "gone"
    _, sent = rig.receive("wan", syns(Conn(rig, net), 1)[0])
    is_question(net, sent[0], net.dest, net.lan, LAN_MAC)


def test_one_question_a_second(net: Net) -> None:
    rig = Rig(unresolved(net))
    asked = []
    for frame in syns(Conn(rig, net), 25):
        asked.append(len(rig.receive("wan", frame)[1]))
        rig.now += 100
    assert asked == ([1] + [0] * 9) * 2 + [1] + [0] * 4


# -- who teaches


def learnt(rig: testing.Rig, address: str) -> bytes:
    entry = rig.director.neighs.lookup(rig.netif("lan"), *pair(ipaddress.ip_address(address)))
    assert entry is not None
    mac: bytes = entry.mac
    return mac


def reachable(net: Net, proto: str = "tcp") -> tuple[Rig, Conn]:
    rig = Rig(unresolved(net, proto))
    conn = Conn(rig, net, proto)
    raw = conn.frame(conn.outside, "S", b"", False)
    rig.receive("wan", vnet(raw))
    rig.receive("lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert state(rig, net.dest) == "REACHABLE"
    return rig, conn


def test_unasked_answer_is_not_learnt(net: Net) -> None:
    rig = Rig(unresolved(net))
    assert rig.receive("lan", answer(net, net.dest, OTHER_MAC, net.lan)) == (Verdict.STOLEN, [])
    assert state(rig, net.dest) == "gone"
    assert rig.counters() == {came(net): 1}


def test_late_unasked_answer_does_not_redirect(net: Net) -> None:
    """10 s after our question nothing that looks like an answer is one; we ask the claimant."""
    rig, _ = reachable(net)
    rig.advance(10_000)
    rig.receive("lan", answer(net, net.dest, OTHER_MAC, net.lan))
    assert learnt(rig, net.dest) == mac_bytes(DEST_MAC)


def test_second_answer_to_one_question_does_not_redirect(net: Net) -> None:
    """One question, one answer: whoever comes later has to be asked itself."""
    rig, _ = reachable(net)
    rig.now += 100
    rig.receive("lan", answer(net, net.dest, OTHER_MAC, net.lan))
    assert learnt(rig, net.dest) == mac_bytes(DEST_MAC)


def test_gratuitous_is_verified_by_unicast(net: Net) -> None:
    """A dest moved to another machine: we ask the new one, and its answer counts."""
    rig, conn = reachable(net)
    rig.advance(5000)
    _, sent = rig.receive("lan", gratuitous(net, net.dest, OTHER_MAC))
    is_question(net, sent[0], net.dest, net.lan, LAN_MAC, to=OTHER_MAC)
    assert learnt(rig, net.dest) == mac_bytes(DEST_MAC)
    rig.now += 10
    rig.receive("lan", answer(net, net.dest, OTHER_MAC, net.lan))
    assert learnt(rig, net.dest) == mac_bytes(OTHER_MAC)
    _, sent = rig.receive("wan", vnet(conn.outside.ack()))
    check(sent[0].frame, ether(dst=OTHER_MAC))


def test_gratuitous_about_a_stranger_is_ignored(net: Net) -> None:
    rig = Rig(unresolved(net))
    assert rig.receive("lan", gratuitous(net, net.dest2, OTHER_MAC)) == (Verdict.STOLEN, [])
    assert state(rig, net.dest2) == "gone"


def test_static_neighbour_listens_to_nobody(net: Net) -> None:
    rig = Rig(balanced(net))
    rig.receive("lan", gratuitous(net, net.dest, OTHER_MAC))
    rig.receive("lan", answer(net, net.dest, OTHER_MAC, net.lan))
    rig.advance(200_000, step=1000)
    assert (state(rig, net.dest), learnt(rig, net.dest)) == ("NOARP", mac_bytes(DEST_MAC))


# -- the states


def test_states_without_confirmation(net: Net) -> None:
    """REACHABLE 60 s; PROBE, usable, verified by the next packet; DELAY 3 s; then unknown."""
    rig, conn = reachable(net, "udp")
    rig.advance(60_500, step=500)
    assert state(rig, net.dest) == "PROBE"
    _, sent = rig.receive("wan", vnet(conn.outside.udp()))
    assert [s.port for s in sent] == ["lan", "lan"]
    check(sent[0].frame, ether(dst=DEST_MAC), ip(daddr=net.dest))
    is_question(net, sent[1], net.dest, net.lan, LAN_MAC, to=DEST_MAC)
    assert state(rig, net.dest) == "DELAY"
    rig.advance(3500)
    assert state(rig, net.dest) == "NONE"
    verdict, sent = rig.receive("wan", vnet(conn.outside.udp()))
    assert verdict == Verdict.STOLEN
    is_question(net, sent[0], net.dest, net.lan, LAN_MAC)


def test_verified_again(net: Net) -> None:
    rig, conn = reachable(net, "udp")
    rig.advance(60_500, step=500)
    rig.receive("wan", vnet(conn.outside.udp()))
    rig.receive("lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert state(rig, net.dest) == "REACHABLE"
    rig.advance(59_000, step=500)
    assert state(rig, net.dest) == "REACHABLE"


def test_idle_entry_is_forgotten(net: Net) -> None:
    rig, _ = reachable(net, "udp")
    rig.advance(60_000 + 30_000 + 2_000 + 3_000, step=500)
    assert state(rig, net.dest) == "gone"


def test_acks_confirm(net: Net) -> None:
    """A dest that acknowledges is there: no question is sent for as long as traffic flows."""
    rig, conn = reachable(net)
    conn.lport = 1025
    conn.down("SA")
    for _ in range(20):
        rig.advance(10_000, step=500)
        conn.down("A")
        assert state(rig, net.dest) == "REACHABLE"
    assert rig.counters()["NEIGH_REQUESTS"] == 1


def test_udp_confirms_nothing(net: Net) -> None:
    rig, conn = reachable(net, "udp")
    conn.lport = 1025
    for _ in range(7):
        rig.advance(10_000, step=500)
        conn.down()
    assert state(rig, net.dest) == "PROBE"


def test_table_is_bounded(net: Net) -> None:
    """1024 neighbours, whoever asks us to find more; those that answered are not pushed out."""
    rig = Rig(balanced(net).replace("10.0.0.254/24", "10.0.0.254/16"))
    known = len(rig.director.neighs)
    base = int(ipaddress.ip_address("10.0.16.0" if net.af == 4 else net.wan))
    seen = []
    for i in range(NEIGH_MAX):
        target = str(ipaddress.ip_address(base + 256 + i))
        raw = vnet(eth(WAN_MAC, ROUTER_MAC, payload=packet(net.remote, target, udp(1, 2))))
        seen.append(rig.receive("wan", raw)[0])
    assert seen == [Verdict.STOLEN] * NEIGH_MAX
    assert len(rig.director.neighs) == NEIGH_MAX
    # The first ones made room for the last ones, and so did the packets that waited for them.
    assert rig.counters()["drop.NEIGH_UNREACHABLE"] == known
    assert "drop.NEIGH_TABLE_FULL" not in rig.counters()


# -- what we say unasked


def test_announcements_at_the_start(net: Net) -> None:
    """Three bursts, a second apart, of every address on its own port."""
    rig = testing.Rig(balanced(net), quiet=False)
    bursts = []
    for _ in range(16):
        rig.director.tick(rig.now)
        if sent := rig.outbox():
            bursts.append((rig.now, sent))
        rig.now += 250
    assert [now for now, _ in bursts] == [1_000_000, 1_001_000, 1_002_000]
    for _, sent in bursts:
        said = set()
        for announced in sent:
            frame = check(
                announced.frame, ether(src=WAN_MAC if announced.port == "wan" else LAN_MAC)
            )
            header = frame.headers[-1]
            if isinstance(header, Arp):
                assert (header.spa, header.op) == (header.tpa, 1)
                check(announced.frame, ether(dst=BROADCAST))
                said.add((announced.port, header.spa))
            else:
                assert isinstance(header, Icmp)
                address = str(header.target)
                check(
                    announced.frame,
                    ether(dst="33:33:00:00:00:01"),
                    ip(saddr=address, daddr="ff02::1"),
                    icmp(type=136, info=0x2000_0000),
                )
                said.add((announced.port, address))
        assert said == {("wan", net.wan), ("wan", net.vip), ("lan", net.lan), ("lan", net.laddr)}
    assert rig.counters() == {"NEIGH_ANNOUNCEMENTS": 12}


def test_our_own_announcement_coming_back(net: Net) -> None:
    """A bridge that floods it to us: own MAC, layer (a) of the loop protection."""
    rig = Rig(balanced(net))
    rig.director.announce(rig.now)
    sent = [s for s in rig.advance(250) if s.port == "wan"]
    before = rig.counters()
    assert all(parse(s.frame).problems == [] for s in sent)
    for said in sent:
        assert rig.receive("wan", said.frame) == (Verdict.DROP, [])
    assert rig.counters() == before | {"drop.OWN_MAC": 2}
