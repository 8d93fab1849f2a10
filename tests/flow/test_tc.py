"""Egress traffic control: rates, queues, priorities."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.fragmenting import cut
from tests.flow.kit import (
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Conn,
    Line,
    Net,
    Rig,
    balanced,
    dest,
    service,
    text,
)
from tunlb.hook import Verdict
from tunlb.ipvs.tc import BATCH
from tunlb.testing.checkers import check, ether, ip, udp
from tunlb.testing.checkers import vnet as offloads
from tunlb.testing.flow import Sent
from tunlb.testing.frames import eth, vnet
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.frames import udp as datagram

SIZE = 1250  # bytes of a frame: 10,000 bits


def tc(**keys: Any) -> Line:
    return {"kind": "tc", "port": "lan", **keys}


def frame(net: Net, vport: int = 80, cport: int = 40000, fill: int = 0) -> bytes:
    """A datagram to the VIP that makes a frame of SIZE bytes."""
    room = SIZE - 14 - (48 if net.af == 6 else 28)
    body = packet(net.remote, net.vip, datagram(cport, vport, bytes([fill]) * room))
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))


def two(net: Net) -> list[Line]:
    """A second service, on port 81."""
    return [
        service(net, "udp", name="other", vport=81),
        dest(net, service="other", dport=8081),
    ]


def rig_with(net: Net, *lines: Line) -> Rig:
    return Rig(balanced(net, "udp") + "\n" + text(*lines))


def fills(sent: list[Sent]) -> list[int]:
    return [one.frame[-1] for one in sent]


def waiting(rig: Rig) -> int:
    """How many frames wait."""
    tc = rig.director.protection.tc
    assert tc is not None
    return tc.waiting


def drained(rig: Rig) -> list[tuple[int, Sent]]:
    """Lets time pass until nothing waits: (when, what) left."""
    left = []
    while waiting(rig):
        left += [(rig.now, one) for one in rig.wake()]
    return left


# A rate of 1 Mbit/s: one frame of SIZE every 10 ms.


def test_shaped(net: Net) -> None:
    rig = rig_with(net, tc(rate="1mbit", burst=SIZE))
    sent = rig.send("wan", [frame(net, fill=n) for n in range(20)])
    assert fills(sent) == [0]
    start = rig.now
    left = drained(rig)
    assert fills([one for _, one in left]) == list(range(1, 20)), "in order"
    for n, (when, one) in enumerate(left, start=1):
        assert one.port == "lan"
        check(one.frame, ether(src=LAN_MAC), ip(daddr=net.dest, ttl=63), udp(dport=8080))
        assert abs(when - start - (n - 1) * 10) <= 1, "the first, once there is a token"
    found = rig.counters()
    assert found == {
        "CONN_NEW": 1,
        "IPVS_IN_PACKETS": 20,
        "IPVS_IN_BYTES": 20 * (SIZE - 14),
        "TC_QUEUED": 19,
    }


def test_the_rate_in_the_long_run(net: Net) -> None:
    """Whatever the sizes are."""
    rig = rig_with(net, tc(rate="8mbit", burst=3000, limit=10_000_000))
    bits = 0
    start = rig.now
    first = 0
    for n in range(400):
        room = 100 + n * 37 % 1300
        body = packet(net.remote, net.vip, datagram(40000, 80, bytes(room)))
        whole = vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))
        bits += (len(whole) - 10) * 8
        first += len(rig.send("wan", [whole]))
    drained(rig)
    seconds = (rig.now - start) / 1000
    assert abs(bits / seconds - 8e6) < 8e6 * 0.03


def test_a_burst_passes(net: Net) -> None:
    rig = rig_with(net, tc(rate="1mbit", burst=10 * SIZE))
    assert len(rig.send("wan", [frame(net) for _ in range(20)])) == 10
    drained(rig)
    rig.advance(1000)
    assert len(rig.send("wan", [frame(net) for _ in range(20)])) == 10


def test_a_queue_is_bounded(net: Net) -> None:
    rig = rig_with(net, tc(rate="1mbit", burst=SIZE, limit=5 * SIZE))
    rig.send("wan", [frame(net) for _ in range(6)])
    dropped_before = rig.counters()
    assert rig.receive("wan", frame(net)) == (Verdict.DROP, [])
    assert rig.counters()["drop.TC_QUEUE_FULL"] == 1
    assert "drop.TC_QUEUE_FULL" not in dropped_before
    assert len(drained(rig)) == 5


def test_policed(net: Net) -> None:
    rig = rig_with(net, tc(rate="1mbit", burst=SIZE, limit=0))
    assert len(rig.send("wan", [frame(net) for _ in range(20)])) == 1
    assert rig.counters()["drop.TC_POLICED"] == 19
    for _ in range(10):
        rig.advance(10, 10)
        assert len(rig.send("wan", [frame(net), frame(net)])) == 1
    assert waiting(rig) == 0


def test_another_port_is_another_matter(net: Net) -> None:
    rig = Rig(balanced(net) + "\n" + text(tc(rate=1000, burst=1, limit=0, port="wan")))
    conn = Conn(rig, net)
    conn.up("S")
    conn.down("SA")
    assert rig.receive("lan", vnet(conn.inside.segment("A", b"x", reply=True)))[0] == Verdict.DROP
    conn.up("A", b"data")
    assert rig.counters() == conn.counted(
        drop_TC_POLICED=1, IPVS_OUT_PACKETS=1, IPVS_OUT_BYTES=61 if net.af == 6 else 41
    )


def test_a_service_has_a_class(net: Net) -> None:
    """What is of no class is as fast as the port."""
    rig = rig_with(net, *two(net), tc(service="other", rate="1mbit", burst=SIZE, limit=0))
    assert len(rig.send("wan", [frame(net) for _ in range(10)])) == 10
    assert len(rig.send("wan", [frame(net, 81) for _ in range(10)])) == 1


def test_answers_are_of_the_service_as_well(net: Net) -> None:
    line = tc(service="web", rate="1mbit", burst=1, limit=0, port="wan")
    rig = Rig(balanced(net) + "\n" + text(line))
    conn = Conn(rig, net)
    conn.up("S")
    conn.down("SA")
    assert rig.receive("lan", vnet(conn.inside.segment("A", b"x", reply=True)))[0] == Verdict.DROP
    assert rig.counters()["drop.TC_POLICED"] == 1


def test_lower_priorities_go_first(net: Net) -> None:
    rig = rig_with(
        net,
        *two(net),
        tc(rate="1mbit", burst=SIZE, priority=5),
        tc(service="other", priority=2),
    )
    rig.send("wan", [frame(net, fill=n) for n in range(5)])
    rig.send("wan", [frame(net, 81, fill=100 + n) for n in range(5)])
    left = drained(rig)
    assert fills([one for _, one in left]) == [100, 101, 102, 103, 104, 1, 2, 3, 4]
    assert left[-1][0] - left[0][0] == pytest.approx(80, abs=2), "one rate for both"


def test_equals_take_turns(net: Net) -> None:
    rig = rig_with(net, *two(net), tc(rate="1mbit", burst=SIZE), tc(service="other"))
    rig.send("wan", [frame(net, fill=n) for n in range(5)])
    rig.send("wan", [frame(net, 81, fill=100 + n) for n in range(4)])
    assert fills([one for _, one in drained(rig)]) == [100, 1, 101, 2, 102, 3, 103, 4]


def test_a_class_has_a_rate_below_the_ports(net: Net) -> None:
    rig = rig_with(
        net,
        *two(net),
        tc(rate="4mbit", burst=SIZE),
        tc(service="other", rate="1mbit", burst=SIZE, priority=0),
    )
    rig.send("wan", [frame(net, 81, fill=100 + n) for n in range(10)])
    rig.send("wan", [frame(net, fill=n) for n in range(40)])
    start = rig.now
    left = drained(rig)
    within = [one.frame[-1] for when, one in left if when - start <= 50]
    assert 4 <= sum(fill >= 100 for fill in within) <= 6
    assert 18 <= len(within) <= 21


def test_a_frame_of_many_segments_costs_what_they_cost(net: Net) -> None:
    """Ten segments: headers and Ethernet ten times."""
    head = 60 if net.af == 6 else 40
    rig = Rig(balanced(net) + "\n" + text(tc(rate="8mbit", burst=1)))
    conn = Conn(rig, net)
    conn.up("S")
    rig.advance(1000)
    kind = 4 if net.af == 6 else 1
    whole = conn.outside.segment("A", bytes(14000))
    offload: dict[str, Any] = {"needs_csum": True, "gso_type": kind, "gso_size": 1400}
    before = rig.now
    verdict, sent = rig.receive("wan", vnet(whole, **offload))
    assert (verdict, len(sent)) == (Verdict.ACCEPT, 1), "tokens for a byte are enough to begin"
    verdict, sent = rig.receive("wan", vnet(conn.outside.segment("A", b"x")))
    assert (verdict, sent) == (Verdict.STOLEN, [])
    ((when, _),) = drained(rig)
    assert abs(when - before - 10 * (1400 + head + 14) // 1000) <= 1


def test_an_offloaded_frame_waits_as_it_is(net: Net) -> None:
    rig = Rig(balanced(net) + "\n" + text(tc(rate="8mbit", burst=1)))
    conn = Conn(rig, net)
    conn.up("S")
    kind = 4 if net.af == 6 else 1
    offload: dict[str, Any] = {"needs_csum": True, "gso_type": kind, "gso_size": 1400}
    whole = conn.outside.segment("A", bytes(14000))
    assert rig.receive("wan", vnet(whole, **offload)) == (Verdict.STOLEN, [])
    ((_, sent),) = drained(rig)
    seen = check(sent.frame, ip(daddr=net.dest), offloads(gso_size=1400))
    assert len(seen.payload) == 14000


def test_a_reload_keeps_what_waits(net: Net) -> None:
    def config(rate: str, **keys: Any) -> str:
        return balanced(net, "udp") + "\n" + text(tc(rate=rate, burst=SIZE, **keys))

    rig = Rig(config("1mbit"))
    rig.send("wan", [frame(net, fill=n) for n in range(10)])
    rig.reload(config("2mbit"))
    start = rig.now
    left = drained(rig)
    assert fills([one for _, one in left]) == list(range(1, 10))
    assert abs(left[-1][0] - start - 45) <= 6, "at the new rate"


def test_a_class_that_goes_lets_go_of_what_waits(net: Net) -> None:
    rig = Rig(balanced(net, "udp") + "\n" + text(tc(rate="1mbit", burst=SIZE)))
    rig.send("wan", [frame(net, fill=n) for n in range(10)])
    rig.reload(balanced(net, "udp"))
    assert fills(rig.outbox()) == list(range(1, 10))
    assert len(rig.send("wan", [frame(net) for _ in range(10)])) == 10
    assert rig.director.ip.post_routing.hooks == []


def test_the_tick_is_enough_to_get_on(net: Net) -> None:
    rig = rig_with(net, tc(rate="1mbit", burst=50 * SIZE))
    rig.send("wan", [frame(net) for _ in range(60)])
    assert len(rig.advance(100, 100)) == 10


def test_routed_packets_are_of_the_port(net: Net) -> None:
    rig = rig_with(net, tc(rate="1mbit", burst=1, limit=0))
    body = packet(net.remote, net.dest2, datagram(1, 2))
    rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=body)))
    before = rig.counters()
    rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=body)))
    assert rig.counters()["drop.TC_POLICED"] == before.get("drop.TC_POLICED", 0) + 1


def test_no_class_no_hook(net: Net) -> None:
    assert rig_with(net).director.ip.post_routing.hooks == []


def test_an_unknown_neighbour_is_waited_for_instead(net: Net) -> None:
    lines = [line for line in balanced(net, "udp").split("\n") if '"neigh"' not in line]
    rig = Rig("\n".join(lines) + "\n" + text(tc(rate="1mbit", burst=1)))
    verdicts = [rig.receive("wan", frame(net, fill=n))[0] for n in range(3)]
    assert verdicts == [Verdict.STOLEN] * 3
    assert waiting(rig) == 0
    assert rig.counters()["NEIGH_QUEUED"] == 3


def test_a_syn_that_finds_no_room_is_a_drop_like_any_other(net: Net) -> None:
    rig = Rig(balanced(net) + "\n" + text(tc(rate=1000, burst=1, limit=0)))
    first = Conn(rig, net)
    first.up("S")
    body = packet(net.remote, net.vip, segment(40001, 80, flags="S"))
    syn = vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))
    assert rig.receive("wan", syn) == (Verdict.DROP, [])
    assert rig.counters()["drop.TC_POLICED"] == 1


def test_what_waits_for_its_own_bucket_is_in_nobodys_way(net: Net) -> None:
    """Its number is lower, but it may not be sent: the policer behind it has tokens to spend."""
    rig = rig_with(
        net,
        *two(net),
        tc(rate="100mbit", burst=100 * SIZE, limit=0, priority=7),
        tc(service="other", rate="1mbit", burst=SIZE, priority=0),
    )
    rig.send("wan", [frame(net, 81) for _ in range(5)])
    assert waiting(rig) == 4
    assert len(rig.send("wan", [frame(net) for _ in range(20)])) == 20
    rig.now += 10  # one of the others may go by now, and goes first
    assert rig.receive("wan", frame(net))[0] == Verdict.DROP
    assert rig.counters()["drop.TC_POLICED"] == 1
    assert len(rig.wake()) == 1
    assert len(rig.send("wan", [frame(net) for _ in range(20)])) == 20


def offloaded(conn: Conn, net: Net) -> bytes:
    """A segment of 45 x 1400 bytes, as one frame."""
    kind = 4 if net.af == 6 else 1
    fields: dict[str, Any] = {"needs_csum": True, "gso_type": kind, "gso_size": 1400}
    return vnet(conn.outside.segment("A", bytes(45 * 1400)), **fields)


def test_a_frame_larger_than_the_queue(net: Net) -> None:
    """One may always wait, or it would never get through."""
    rig = Rig(balanced(net) + "\n" + text(tc(rate="10mbit", burst=1, limit=10_000)))
    conn = Conn(rig, net)
    conn.up("S")
    assert rig.receive("wan", offloaded(conn, net)) == (Verdict.STOLEN, [])
    assert rig.receive("wan", offloaded(conn, net)) == (Verdict.DROP, [])
    assert rig.receive("wan", vnet(conn.outside.segment("A", b"x"))) == (Verdict.DROP, [])
    assert len(drained(rig)) == 1
    assert rig.counters()["drop.TC_QUEUE_FULL"] == 2


@pytest.mark.parametrize("burst", [1, 1500, 0], ids=["a byte", "a segment", "the default"])
def test_the_rate_of_offloaded_frames(net: Net, burst: int) -> None:
    """Each is 45 segments, and much larger than the bucket."""
    rig = Rig(balanced(net) + "\n" + text(tc(rate="100mbit", burst=burst, limit=10_000_000)))
    conn = Conn(rig, net)
    conn.up("S")
    rig.advance(1000)
    start = rig.now
    count = 100
    rig.send("wan", [offloaded(conn, net) for _ in range(count)])
    drained(rig)
    head = 60 if net.af == 6 else 40
    bits = count * 45 * (1400 + head + 14) * 8
    last = bits // count  # the last one leaves when its first token is there
    bits -= (burst or 250_000) * 8
    assert (bits - last) / (rig.now - start) * 1000 == pytest.approx(100e6, rel=0.02)


def test_every_fragment_is_of_the_services_class(net: Net) -> None:
    """Also of full NAT, where only the first one says so."""
    line = tc(service="web", rate="1mbit", burst=1, limit=0)
    rig = rig_with(net, line)
    whole = packet(net.remote, net.vip, datagram(40000, 80, bytes(4000)))
    parts = [vnet(eth(WAN_MAC, ROUTER_MAC, payload=part)) for part in cut(whole)]
    assert len(rig.send("wan", parts)) == 1, "the first one"
    assert rig.counters()["drop.TC_POLICED"] == 2


def test_a_class_that_goes_leaves_its_queue_to_the_port(net: Net) -> None:
    """Whose rate is kept."""
    whole = tc(rate="1mbit", burst=SIZE)
    rig = rig_with(net, *two(net), whole, tc(service="other", rate="1mbit", burst=SIZE))
    rig.send("wan", [frame(net, fill=n) for n in range(3)])
    rig.send("wan", [frame(net, 81, fill=100 + n) for n in range(3)])
    rig.reload(balanced(net, "udp") + "\n" + text(*two(net), whole))
    assert rig.outbox() == []
    start = rig.now
    left = drained(rig)
    assert fills([one for _, one in left]) == [1, 2, 100, 101, 102]
    assert left[-1][0] - start == pytest.approx(50, abs=11)
    assert waiting(rig) == 0


def test_ports_take_turns(net: Net) -> None:
    """One with more to send than a turn takes does not keep the others waiting."""
    lines = [tc(rate="1gbit", burst=1, limit=10_000_000, port=name) for name in ("wan", "lan")]
    rig = Rig(balanced(net, "udp") + "\n" + text(*lines))
    conn = Conn(rig, net, "udp")
    conn.up()
    for _ in range(2 * BATCH):
        rig.receive("wan", vnet(conn.frame(conn.outside, "", b"up", False)))
        rig.receive("lan", vnet(conn.frame(conn.inside, "", b"down", True)))
    turns = []
    while waiting(rig):
        rig.now += 20
        turns.append({one.port for one in rig.wake()})
    assert turns[0] != turns[1]
