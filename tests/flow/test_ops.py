"""One-packet scheduling: a datagram, a dest, and nothing kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.flow import tunnels
from tests.flow.fragmenting import cut
from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Conn,
    Line,
    Net,
    Rig,
    dest,
    dropped,
    network,
    one,
    port,
    service,
    text,
    the_dest,
)
from tests.flow.test_related import KINDS, error
from tests.property.test_adopt import survive
from tunlb.hook import Verdict
from tunlb.ipvs.dest import CONNS, IN_BYTES, IN_PACKETS, OUT_PACKETS
from tunlb.testing import frames
from tunlb.testing.audit import audit
from tunlb.testing.checkers import check, ether, icmp, ip, quoted, udp
from tunlb.testing.flow import Memory, Sent
from tunlb.testing.frames import vnet
from tunlb.testing.workers import Workers

MACS = {"dest": "02:00:00:00:00:11", "dest2": "02:00:00:00:00:12"}


def config(net: Net, *dests: Line, **keys: Any) -> str:
    both = dests or (dest(net, "dr"), dest(net, "dr", daddr=net.dest2))
    return text(*network(net), service(net, "udp", "dr", ops=True, **keys), *both)


def ask(rig: Rig, net: Net, payload: bytes = b"who?", cport: int = 5353) -> tuple[Verdict, Any]:
    probe = Conn(rig, net, "udp", "dr", cport=cport)
    return rig.receive("wan", vnet(probe.frame(probe.outside, "", payload, False)))


def test_datagrams_of_one_socket_spread(net: Net) -> None:
    rig = Rig(config(net))
    for i in range(6):
        verdict, (sent,) = ask(rig, net)
        assert (verdict, sent.port) == (Verdict.ACCEPT, "lan")
        frame = check(
            sent.frame,
            ether(dst=MACS["dest2" if i % 2 else "dest"]),
            ip(saddr=net.remote, daddr=net.vip, ttl=63, version=net.af),
            udp(sport=5353, dport=80),
        )
        assert frame.payload == b"who?"
    size = (20 if net.af == 4 else 40) + 8 + 4
    assert rig.counters() == {
        "OPS_PACKETS": 6,
        "IPVS_IN_PACKETS": 6,
        "IPVS_IN_BYTES": 6 * size,
    }
    for address in (net.dest, net.dest2):
        found = the_dest(rig, address)
        assert [found.stats[word] for word in (CONNS, IN_PACKETS, IN_BYTES)] == [3, 3, 3 * size]
        assert found.load() == 0
    assert rig.director.ipvs.conns.count == 0
    audit(rig.director)


def test_no_row_is_lost(net: Net) -> None:
    rig = Rig(config(net), conn_max=16)
    for i in range(1000):
        assert ask(rig, net, cport=1 + i)[0] == Verdict.ACCEPT
    assert rig.director.ipvs.conns.fresh == 1
    audit(rig.director)


def test_what_cannot_be_sent_is_refused(net: Net) -> None:
    rig = Rig(config(net, dest(net, "dr", weight=0)))
    assert ask(rig, net)[0] == Verdict.DROP
    assert rig.counters() == {"drop.NO_DEST": 1, "ICMP_ERRORS_SENT": 1}
    lines = network(net)
    lines[1] = port("lan", f"{net.lan}/{net.length}", mtu=1280)
    both = service(net, "udp", "dr", ops=True), dest(net, "dr")
    rig = Rig(text(*lines, *both), conn_max=16)
    for _ in range(40):
        assert ask(rig, net, bytes(1400))[0] == Verdict.DROP
    assert rig.counters()["drop.MTU_EXCEEDED"] == 40
    assert rig.director.ipvs.conns.count == 0
    audit(rig.director)


def test_a_reload_from_conns_and_back(net: Net) -> None:
    """A flow that has a conn keeps it."""
    both = dest(net, "dr"), dest(net, "dr", daddr=net.dest2)
    plain = text(*network(net), service(net, "udp", "dr"), *both)
    rig = Rig(plain)
    conn = Conn(rig, net, "udp", "dr", cport=1)
    conn.up("", b"x")
    rig.reload(config(net))
    for _ in range(3):
        conn.up("", b"the same dest")
        ask(rig, net)
    assert rig.counters()["OPS_PACKETS"] == 3
    rig.reload(plain)
    ask(rig, net)
    assert rig.director.ipvs.conns.count == 2


def through_nat(net: Net, *dests: Line, **keys: Any) -> str:
    both = dests or (dest(net, "nat"), dest(net, "nat", daddr=net.dest2))
    return text(*network(net), service(net, "udp", "nat", ops=True, **keys), *both)


def answer(rig: Rig, net: Net, source: str, sport: int, cport: int) -> tuple[Verdict, list[Sent]]:
    """What a dest sends to a client."""
    packet = frames.ip(source, net.remote, frames.udp(sport, cport, b"it is"))
    return rig.receive("lan", vnet(frames.eth(LAN_MAC, DEST_MAC, payload=packet)))


@pytest.mark.parametrize(("vport", "dport"), [(80, 8080), (80, 80), ("53-90", None), (0, None)])
def test_answers_through_nat_come_from_the_vip(
    net: Net, vport: str | int, dport: int | None
) -> None:
    """Each of another dest, to one client socket, and nothing kept."""
    mode, keys = ("dr", {}) if dport is None else ("nat", {"dport": dport})  # dr: without dport
    both = dest(net, mode, **keys), dest(net, mode, daddr=net.dest2, **keys)
    rig = Rig(through_nat(net, *both, vport=vport))
    for address in (net.dest, net.dest2) * 2:
        verdict, (sent,) = ask(rig, net)
        assert (verdict, sent.port) == (Verdict.ACCEPT, "lan")
        asked = check(
            sent.frame,
            ip(saddr=net.remote, daddr=address, ttl=63, version=net.af),
            udp(sport=5353, dport=dport or 80),
        )
        assert asked.payload == b"who?"
        verdict, (sent,) = answer(rig, net, address, dport or 80, 5353)
        assert (verdict, sent.port) == (Verdict.ACCEPT, "wan")
        told = check(
            sent.frame,
            ip(saddr=net.vip, daddr=net.remote, ttl=63, version=net.af),
            udp(sport=80, dport=5353),
        )
        assert told.payload == b"it is"
    found = rig.counters()
    assert (found["OPS_PACKETS"], found["OPS_ANSWERS"]) == (4, 4)
    known = the_dest(rig, net.dest)
    assert [known.stats[word] for word in (CONNS, IN_PACKETS, OUT_PACKETS)] == [2, 2, 2]
    assert rig.director.ipvs.conns.count == 0
    audit(rig.director)


def test_only_a_dests_own_port_answers(net: Net) -> None:
    """What it sends from another one is routed as it is; so is what a stranger sends."""
    rig = Rig(through_nat(net))
    for source, sport in ((net.dest, 8081), (net.laddr2, 8080)):
        verdict, (sent,) = answer(rig, net, source, sport, 5353)
        assert verdict == Verdict.ACCEPT
        check(sent.frame, ip(saddr=source, version=net.af), udp(sport=sport))
    assert "OPS_ANSWERS" not in rig.counters()


def test_a_removed_dest_answers_no_more(net: Net) -> None:
    rig = Rig(through_nat(net))
    rig.reload(through_nat(net, dest(net, "nat", daddr=net.dest2)))
    answer(rig, net, net.dest, 8080, 5353)
    assert "OPS_ANSWERS" not in rig.counters()
    answer(rig, net, net.dest2, 8080, 5353)
    assert rig.counters()["OPS_ANSWERS"] == 1


@pytest.mark.parametrize("fwdmode", ["dr", "nat"])
def test_fragments_follow_their_first_one(net: Net, fwdmode: str) -> None:
    """Later ones have no ports: a datagram in pieces opens a conn that leads them."""
    rig = Rig(config(net) if fwdmode == "dr" else through_nat(net))
    packet = frames.ip(net.remote, net.vip, frames.udp(5353, 80, bytes(2000)))
    for piece in cut(packet):
        verdict, (sent,) = rig.receive("wan", vnet(frames.eth(WAN_MAC, ROUTER_MAC, payload=piece)))
        assert (verdict, sent.port) == (Verdict.ACCEPT, "lan")
        assert sent.frame[10:16] == bytes.fromhex(MACS["dest"].replace(":", ""))
    found = rig.counters()
    assert (found["CONN_NEW"], found["FRAGMENT_LATER"]) == (1, 1)
    assert "OPS_PACKETS" not in found
    audit(rig.director)


def test_fragments_of_an_answer_come_from_the_vip(net: Net) -> None:
    rig = Rig(through_nat(net))
    ask(rig, net)
    packet = frames.ip(net.dest, net.remote, frames.udp(8080, 5353, bytes(2000)))
    for piece in cut(packet):
        verdict, (sent,) = rig.receive("lan", vnet(frames.eth(LAN_MAC, DEST_MAC, payload=piece)))
        assert (verdict, sent.port) == (Verdict.ACCEPT, "wan")
        source = frames.address_bytes(net.vip)
        at = 10 + 14 + (12 if net.af == 4 else 8)
        assert sent.frame[at : at + len(source)] == source
    audit(rig.director)


@pytest.mark.parametrize("size", [16])
def test_a_full_table_makes_room(net: Net, size: int) -> None:
    """One row is enough for all datagrams."""
    other = [service(net, "udp", name="other", vport=81), dest(net, service="other")]
    rig = Rig(config(net, dest(net, "dr"), *other), conn_max=size)
    for i in range(size):
        Conn(rig, net, "udp", vport=81, cport=1 + i).up("", b"x")
    for i in range(5):
        assert ask(rig, net, cport=100 + i)[0] == Verdict.ACCEPT
    assert rig.counters()["CONN_EVICTED"] == 1
    audit(rig.director)


# -- ICMP errors


def router(net: Net) -> str:
    return "192.0.2.77" if net.af == 4 else "2001:db8:77::1"


def quote(written: Sent, net: Net, whole: bool = True) -> bytes:
    """What left, as a router on its way quotes it."""
    data = written.frame[24:]
    return data if whole else data[: (20 if net.af == 4 else 40) + 8]


def said(net: Net, kind: str) -> Any:
    number, code, info = KINDS[kind][net.af]
    return icmp(type=number, code=code, info=info)


@pytest.mark.parametrize("whole", [False, True], ids=["8-bytes", "whole"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vport", "dport"), [(80, 8080), ("53-90", None)])
def test_errors_about_questions_come_from_the_vip(
    net: Net, kind: str, whole: bool, vport: str | int, dport: int | None
) -> None:
    mode, keys = ("dr", {}) if dport is None else ("nat", {"dport": dport})  # dr: without dport
    both = dest(net, mode, **keys), dest(net, mode, daddr=net.dest2, **keys)
    rig = Rig(through_nat(net, *both, vport=vport))
    for _ in both:
        _, (written,) = ask(rig, net)
        raw = error(net, kind, router(net), net.remote, quote(written, net, whole), "lan")
        before = rig.counters()
        sent = one(rig.receive("lan", raw))
        assert sent.port == "wan"
        check(
            sent.frame,
            ether(dst=ROUTER_MAC, src=WAN_MAC),
            ip(saddr=net.vip, daddr=net.remote, ttl=63),
            said(net, kind),
            quoted(ip(saddr=net.remote, daddr=net.vip), udp(sport=5353, dport=80)),
        )
        assert rig.counters() == before | {"ICMP_RELATED": before.get("ICMP_RELATED", 0) + 1}
    assert (rig.director.ipvs.conns.count, rig.director.ipvs.conns.fresh) == (0, 1)
    audit(rig.director)


@pytest.mark.parametrize("whole", [False, True], ids=["8-bytes", "whole"])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_about_answers_go_to_the_one_dest(net: Net, kind: str, whole: bool) -> None:
    rig = Rig(through_nat(net, dest(net, "nat")))
    ask(rig, net)
    _, (written,) = answer(rig, net, net.dest, 8080, 5353)
    raw = error(net, kind, router(net), net.vip, quote(written, net, whole), "wan")
    before = rig.counters()
    sent = one(rig.receive("wan", raw))
    assert sent.port == "lan"
    check(
        sent.frame,
        ether(dst=DEST_MAC, src=LAN_MAC),
        ip(saddr=router(net), daddr=net.dest, ttl=63),
        said(net, kind),
        quoted(ip(saddr=net.dest, daddr=net.remote), udp(sport=8080, dport=5353)),
    )
    assert rig.counters() == before | {"ICMP_RELATED": 1}
    assert rig.director.ipvs.conns.count == 0


@pytest.mark.parametrize("mode", ["dr", "nat"])
def test_errors_about_answers_of_one_of_several(net: Net, mode: str) -> None:
    """Nobody knows which of them answered."""
    rig = Rig(through_nat(net) if mode == "nat" else config(net))
    packet = frames.ip(net.vip, net.remote, frames.udp(80, 5353, b"it is"))
    raw = error(net, "port-unreachable", net.remote, net.vip, packet, "wan")
    dropped(rig, "wan", raw, "ICMP_UNRELATED")


def test_errors_about_answers_past_us_go_to_the_one_dest(net: Net) -> None:
    """With direct routing it hears them as they are."""
    rig = Rig(config(net, dest(net, "dr")))
    packet = frames.ip(net.vip, net.remote, frames.udp(80, 5353, b"it is"))
    raw = error(net, "too-big", router(net), net.vip, packet, "wan")
    sent = one(rig.receive("wan", raw))
    assert sent.port == "lan"
    seen = check(sent.frame, ether(dst=DEST_MAC), ip(saddr=router(net), daddr=net.vip, ttl=63))
    assert seen.quoted is not None
    assert seen.quoted.data == packet
    assert rig.director.ipvs.conns.count == 0


def test_errors_about_answers_past_us_go_through_the_tunnel(net: Net) -> None:
    rig = Rig(tunnels.balanced(net, net, "udp", ops=True))
    packet = frames.ip(net.vip, net.remote, frames.udp(80, 5353, b"it is"))
    raw = error(net, "too-big", router(net), net.vip, packet, "wan")
    sent = one(rig.receive("wan", raw))
    assert tunnels.unwrapped(sent.frame).daddr == net.dest
    tunnels.inner(sent, ip(saddr=router(net), daddr=net.vip, ttl=63), said(net, "too-big"))


@pytest.mark.parametrize(("source", "sport"), [("dest", 8081), ("laddr2", 8080)])
def test_errors_about_what_is_not_ours(net: Net, source: str, sport: int) -> None:
    """About what was sent to another port of a dest, or to a stranger, they are routed as before;
    so are those about another protocol.
    """
    rig = Rig(through_nat(net))
    target = getattr(net, source)
    for body in (frames.udp(5353, sport, b"who?"), frames.tcp(5353, 8080, b"who?")):
        packet = frames.ip(net.remote, target, body)
        raw = error(net, "port-unreachable", target, net.remote, packet, "lan")
        sent = one(rig.receive("lan", raw))
        seen = check(sent.frame, ip(saddr=target, daddr=net.remote))
        assert seen.quoted is not None
        assert seen.quoted.data == packet
    assert rig.counters() == {"FORWARDED": 2}


def test_an_error_ends_no_conn_of_a_full_table(net: Net) -> None:
    other = [service(net, "udp", name="other", vport=81), dest(net, service="other")]
    rig = Rig(through_nat(net, dest(net, "nat"), *other), conn_max=16)
    _, (written,) = ask(rig, net)
    for i in range(16):
        Conn(rig, net, "udp", vport=81, cport=1 + i).up("", b"x")
    raw = error(net, "too-big", router(net), net.remote, quote(written, net), "lan")
    dropped(rig, "lan", raw, "CONN_TABLE_FULL")
    assert rig.director.ipvs.conns.count == 16
    audit(rig.director)


def test_an_error_that_is_forged_or_has_no_hops_left(net: Net) -> None:
    rig = Rig(through_nat(net))
    _, (written,) = ask(rig, net)
    raw = error(net, "too-big", net.vip, net.remote, quote(written, net), "lan")
    dropped(rig, "lan", raw, "MARTIAN")
    number, code, info = KINDS["too-big"][net.af]
    body = frames.icmp(number, code, info, quote(written, net))
    packet = frames.ip(router(net), net.remote, body, ttl=1)
    dropped(rig, "lan", vnet(frames.eth(LAN_MAC, DEST_MAC, payload=packet)), "TTL_EXCEEDED")
    assert rig.director.ipvs.conns.count == 0


def test_errors_with_several_workers(net: Net) -> None:
    """Whichever reads them."""
    workers = Workers(through_nat(net, dest(net, "nat")), 3)
    workers.advance(3000)
    packet = frames.ip(net.remote, net.dest, frames.udp(5353, 8080, b"who?"))
    told = frames.ip(net.vip, net.remote, frames.udp(80, 5353, b"it is"))
    for number in range(3):
        raw = error(net, "port-unreachable", net.dest, net.remote, packet, "lan")
        (sent,) = workers.receive(number, "lan", raw)
        check(sent.frame, ip(saddr=net.vip, daddr=net.remote), quoted(ip(daddr=net.vip)))
        raw = error(net, "port-unreachable", net.remote, net.vip, told, "wan")
        (sent,) = workers.receive(number, "wan", raw)
        check(sent.frame, ip(saddr=net.remote, daddr=net.dest), quoted(ip(saddr=net.dest)))


def test_a_worker_killed_meanwhile_leaves_no_row(net: Net) -> None:
    lines, memory = through_nat(net, dest(net, "nat")), Memory(16)
    rig = Rig(lines, memory=memory)
    question = frames.ip(net.remote, net.dest, frames.udp(5353, 8080, b"who?"))
    told = frames.ip(net.vip, net.remote, frames.udp(80, 5353, b"it is"))
    raws = {
        "lan": error(net, "too-big", net.dest, net.remote, question, "lan"),
        "wan": error(net, "too-big", net.remote, net.vip, told, "wan"),
    }
    ask(rig, net)
    for side, raw in raws.items():
        survive(lines, memory, rig, partial(rig.receive, side, raw))
    assert rig.counters()["ICMP_RELATED"] == 2


def test_an_error_about_a_flow_that_has_a_conn(net: Net) -> None:
    """It is found first: the conn of a datagram in fragments, with another dest than the one that
    there is now.
    """
    rig = Rig(through_nat(net))
    packet = frames.ip(net.remote, net.vip, frames.udp(5353, 80, bytes(2000)))
    for piece in cut(packet):
        rig.receive("wan", vnet(frames.eth(WAN_MAC, ROUTER_MAC, payload=piece)))
    rig.reload(through_nat(net, dest(net, "nat", daddr=net.dest2)))
    told = frames.ip(net.vip, net.remote, frames.udp(80, 5353, b"it is"))
    raw = error(net, "port-unreachable", net.remote, net.vip, told, "wan")
    check(one(rig.receive("wan", raw)).frame, ip(daddr=net.dest), quoted(ip(saddr=net.dest)))
