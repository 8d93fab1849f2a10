"""A client keeps its dest: templates, their masks, ports and ends."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.flow.kit import (
    V4,
    Conn,
    Line,
    Net,
    Rig,
    counted,
    dest,
    dropped,
    network,
    port,
    service,
    states,
    text,
    the_dest,
)
from tests.property.test_adopt import survive
from tunlb.counters import Gauge
from tunlb.hook import Verdict
from tunlb.testing.audit import audit, audit_templates
from tunlb.testing.checkers import check, ip
from tunlb.testing.flow import Memory
from tunlb.testing.frames import vnet
from tunlb.testing.parser import Ip

PERSISTENCE_S = 100
HELD_MS = 60_000  # a template that holds conns is looked at again so much later


def config(net: Net, *dests: Line, more: tuple[Line, ...] = (), **keys: Any) -> str:
    keys = {"persistence_s": PERSISTENCE_S, **keys}
    both = dests or (dest(net), dest(net, daddr=net.dest2))
    return text(*network(net), service(net, **keys), *both, *more)


def near(net: Net, last: int) -> str:
    """A client of the same /24 or /64 as every other one of these."""
    return f"198.51.100.{last}" if net.af == 4 else f"2001:db8::{last:x}"


def far(net: Net) -> str:
    return "203.0.113.7" if net.af == 4 else "2001:db8:5::7"


def daddr_of(rig: Rig, net: Net, caddr: str, cport: int, **keys: Any) -> str:
    """Where the conn that this client opens is sent."""
    probe = Conn(rig, net, caddr=caddr, cport=cport, **keys)
    frame = probe.frame(probe.outside, "S", b"", False)
    verdict, sent = rig.receive("wan", vnet(frame))
    assert verdict == Verdict.ACCEPT
    found = check(sent[0].frame, ip(version=net.af)).find(Ip)
    assert isinstance(found, Ip)
    return found.daddr


def gauge(rig: Rig, which: int) -> int:
    rig.director.tick(rig.now)
    return rig.director.counters.gauge(which)


def test_a_client_keeps_its_dest(net: Net) -> None:
    """The scheduler is rr: without persistence every other conn would go elsewhere."""
    rig = Rig(config(net))
    conns = [Conn(rig, net, cport=100 + i).establish() for i in range(4)]
    others = [
        Conn(rig, net, caddr=far(net), cport=100 + i, daddr=net.dest2).establish() for i in range(3)
    ]
    assert rig.counters() == counted(*conns, *others, TEMPLATE_NEW=2)
    assert (gauge(rig, Gauge.TEMPLATES), gauge(rig, Gauge.CONNS)) == (2, 9)
    audit(rig.director)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_every_mode_and_protocol(net: Net, mode: str, proto: str) -> None:
    both = dest(net, mode), dest(net, mode, daddr=net.dest2)
    rig = Rig(config(net, *both, proto=proto, mode=mode))
    conns = [Conn(rig, net, proto, mode, cport=100 + i).establish() for i in range(3)]
    assert rig.counters() == counted(*conns, TEMPLATE_NEW=1)
    audit(rig.director)


def test_a_mask_makes_one_client_of_a_network(net: Net) -> None:
    rig = Rig(config(net, persistence_mask=24 if net.af == 4 else 64))
    for i in range(4):
        assert daddr_of(rig, net, near(net, 10 + i), 100) == net.dest
    assert daddr_of(rig, net, far(net), 100) == net.dest2
    assert rig.counters()["TEMPLATE_NEW"] == 2


def test_without_a_mask_each_address_is_a_client(net: Net) -> None:
    rig = Rig(config(net))
    found = [daddr_of(rig, net, near(net, 10 + i), 100) for i in range(4)]
    assert found == [net.dest, net.dest2] * 2


def test_any_port_is_one_template(net: Net) -> None:
    """ftp, or http beside https: whatever port the client asks for, it is the same dest."""
    plain = dest(net, dport=None), dest(net, daddr=net.dest2, dport=None)
    both = [{key: value for key, value in line.items() if value is not None} for line in plain]
    rig = Rig(config(net, *both, vport=0))
    for vport in (80, 443, 21, 8080):
        probe = {"vport": vport, "dport": vport}
        assert daddr_of(rig, net, net.remote, 1000 + vport, **probe) == net.dest
    assert rig.counters()["TEMPLATE_NEW"] == 1


def test_a_range_is_one_template_and_another_service_has_its_own(net: Net) -> None:
    other = service(net, name="other", vport=9000, persistence_s=5)
    rig = Rig(
        config(
            net,
            vport="80-89",
            more=(other, dest(net, service="other", daddr=net.dest2)),
        )
    )
    for vport in (80, 85, 89):
        assert daddr_of(rig, net, net.remote, vport, vport=vport) == net.dest
    assert daddr_of(rig, net, net.remote, 1, vport=9000) == net.dest2
    assert rig.counters()["TEMPLATE_NEW"] == 2


def test_tcp_and_udp_have_templates_of_their_own(net: Net) -> None:
    udp = service(net, "udp", name="udp", persistence_s=5)
    rig = Rig(config(net, more=(udp, dest(net, service="udp", daddr=net.dest2))))
    assert daddr_of(rig, net, net.remote, 1) == net.dest
    assert daddr_of(rig, net, net.remote, 1, proto="udp") == net.dest2


def test_a_template_expires(net: Net) -> None:
    """When its time since the last new conn is over; rr goes on to the other dest then."""
    rig = Rig(config(net, proto="udp", timeouts={"udp_oneway_s": 1}))
    for _ in range(3):
        assert daddr_of(rig, net, net.remote, 1, proto="udp") == net.dest
        rig.advance((PERSISTENCE_S - 1) * 1000)
    rig.advance(2000)
    assert rig.counters()["TEMPLATE_EXPIRED"] == 1
    assert gauge(rig, Gauge.CONNS) == 0
    assert daddr_of(rig, net, net.remote, 1, proto="udp") == net.dest2


def test_a_template_stays_while_it_holds_a_conn(net: Net) -> None:
    rig = Rig(config(net))
    conn = Conn(rig, net).establish()
    for _ in range(9):
        rig.advance(PERSISTENCE_S * 1000, step=1000)
        conn.up("PA", b"still")
    assert daddr_of(rig, net, net.remote, 9) == net.dest
    conn.up("R")
    rig.advance((PERSISTENCE_S - 5) * 1000, step=1000)
    assert states(rig) == []  # templates are none
    assert gauge(rig, Gauge.TEMPLATES) == 1
    rig.advance(HELD_MS + 10_000, step=1000)
    assert gauge(rig, Gauge.TEMPLATES) == 0
    assert gauge(rig, Gauge.CONNS) == 0


def test_half_open_conns_leave_no_template(net: Net) -> None:
    """Nor does a conn that could not be made."""
    rig = Rig(config(net, timeouts={"tcp_syn_recv_s": 5}))
    for i in range(20):
        daddr_of(rig, net, near(net, 10 + i), 100)
    assert gauge(rig, Gauge.TEMPLATES) == 20
    rig.advance(7000)
    assert gauge(rig, Gauge.TEMPLATES) == 0
    assert rig.counters()["CONN_EXPIRED"] == 20


def test_a_conn_that_cannot_be_made_leaves_no_template(net: Net) -> None:
    lines = network(net)
    lines[1] = port("lan", f"{net.lan}/{net.length}", mtu=1300)
    rig = Rig(text(*lines, service(net, "udp", persistence_s=5), dest(net)))
    probe = Conn(rig, net, "udp")
    rig.receive("wan", vnet(probe.frame(probe.outside, "", bytes(1400), False)))
    assert rig.counters()["drop.MTU_EXCEEDED"] == 1
    assert gauge(rig, Gauge.TEMPLATES) == 0
    audit(rig.director)


@pytest.mark.parametrize("how", ["removed", "weight-0", "weight-0-reset"])
def test_a_dest_that_goes(net: Net, how: str) -> None:
    """Removed: the template gets another dest. Weight 0: it goes on to lead there (IPVS), unless
    the service ends conns of quiescent dests.
    """
    keys: Line = {"expire_quiescent": "reset"} if how == "weight-0-reset" else {}
    second = dest(net, daddr=net.dest2)
    rig = Rig(config(net, **keys))
    conn = Conn(rig, net).establish()
    left = (second,) if how == "removed" else (dest(net, weight=0), second)
    rig.reload(config(net, *left, **keys))
    expected = net.dest if how == "weight-0" else net.dest2
    assert [daddr_of(rig, net, net.remote, 1 + i) for i in range(3)] == [expected] * 3
    if how != "weight-0":
        assert rig.counters()["TEMPLATE_MOVED"] == 1
    if how != "weight-0-reset":
        conn.up("PA", b"unharmed")
    audit_templates(rig.director)


def test_a_drained_quiescent_dest_leads_nobody(net: Net) -> None:
    rig = Rig(config(net, drain_s=10))
    Conn(rig, net).establish()
    rig.reload(config(net, dest(net, weight=0), dest(net, daddr=net.dest2), drain_s=10))
    rig.advance(11_000)
    assert daddr_of(rig, net, net.remote, 1) == net.dest2


def test_templates_of_a_removed_dest_go(net: Net) -> None:
    """At once, those that hold no conn; or the dest could not be forgotten for as long."""
    rig = Rig(config(net, proto="udp", timeouts={"udp_oneway_s": 1}, drain_s=1))
    for i in range(40):
        daddr_of(rig, net, near(net, 10 + i), 100, proto="udp")
    rig.advance(3000)
    assert gauge(rig, Gauge.TEMPLATES) == 40
    left = dest(net, daddr=net.dest2)
    rig.reload(config(net, left, proto="udp", timeouts={"udp_oneway_s": 1}, drain_s=1))
    rig.advance(500)
    assert gauge(rig, Gauge.TEMPLATES) == 20
    rig.advance(20_000)
    with pytest.raises(LookupError):
        the_dest(rig, net.dest)


def test_overload_does_not_part_a_client_from_its_dest(net: Net) -> None:
    """As in IPVS: who was promised a dest gets it."""
    both = dest(net, max_conn=1), dest(net, daddr=net.dest2)
    rig = Rig(config(net, *both))
    assert [daddr_of(rig, net, net.remote, 1 + i) for i in range(3)] == [net.dest] * 3
    assert daddr_of(rig, net, far(net), 1) == net.dest2
    assert daddr_of(rig, net, near(net, 99), 1) == net.dest2


def test_a_reload_keeps_templates(net: Net) -> None:
    rig = Rig(config(net))
    conn = Conn(rig, net).establish()
    rig.reload(config(net, scheduler="wrr", persistence_s=5, persistence_mask=32))
    assert daddr_of(rig, net, net.remote, 1) == net.dest
    rig.reload(config(net, persistence_s=0))
    found = {daddr_of(rig, net, net.remote, 2 + i) for i in range(2)}
    assert found == {net.dest, net.dest2}
    conn.up("PA", b"still here")
    audit_templates(rig.director)


def test_no_dest(net: Net) -> None:
    rig = Rig(config(net, dest(net, weight=0)))
    probe = Conn(rig, net)
    rig.receive("wan", vnet(probe.frame(probe.outside, "S", b"", False)))
    assert rig.counters() == {"drop.NO_DEST": 1, "ICMP_ERRORS_SENT": 1}
    assert gauge(rig, Gauge.TEMPLATES) == 0


def test_no_packet_finds_a_template(net: Net) -> None:
    """One of protocol 255 with the very ports of a template's key."""
    rig = Rig(config(net))
    Conn(rig, net).establish()
    before = gauge(rig, Gauge.TEMPLATES)
    probe = Conn(rig, net, "udp", cport=6)
    raw = bytearray(vnet(probe.frame(probe.outside, "", b"x" * 20, False)))
    at = 10 + 14 + (9 if net.af == 4 else 6)
    raw[at] = 255
    if net.af == 4:
        total = int.from_bytes(raw[34:36], "big") - (255 - 17)
        raw[34:36] = (total % 65535).to_bytes(2, "big")
    rig.receive("wan", bytes(raw))
    assert rig.director.packet.proto == 255
    assert gauge(rig, Gauge.TEMPLATES) == before
    audit(rig.director)


# -- full tables and killed workers


def test_a_full_table_gives_up_half_open_conns_before_templates(net: Net) -> None:
    lines = config(net)
    rig = Rig(lines, conn_max=16)
    kept = Conn(rig, net).establish()
    for i in range(200):
        rig.now += 1
        daddr_of(rig, net, near(net, 10 + i), 100)
    kept.up("PA", b"still here")
    assert daddr_of(rig, net, net.remote, 1) == net.dest
    assert rig.counters()["CONN_EVICTED"] > 100
    audit(rig.director)


def test_a_full_table_takes_idle_templates(net: Net) -> None:
    rig = Rig(config(net, proto="udp", timeouts={"udp_oneway_s": 1}), conn_max=16)
    for i in range(16):
        daddr_of(rig, net, near(net, 10 + i), 100, proto="udp")
        rig.advance(2000)
    held = Conn(rig, net, "udp", caddr=far(net), daddr=net.dest)
    held.up("", b"x")
    for i in range(40):
        daddr_of(rig, net, near(net, 100 + i), 100, proto="udp")
        rig.now += 1
    audit(rig.director)


def test_a_full_table_of_established_conns(net: Net) -> None:
    """Neither a template nor a conn is made, and what is there is unharmed."""
    rig = Rig(config(net), conn_max=16)
    conns = [Conn(rig, net, cport=100 + i).establish() for i in range(15)]
    probe = Conn(rig, net, caddr=far(net))
    dropped(rig, "wan", vnet(probe.frame(probe.outside, "S", b"", False)), "CONN_TABLE_FULL")
    same = Conn(rig, net, cport=999)
    dropped(rig, "wan", vnet(same.frame(same.outside, "S", b"", False)), "CONN_TABLE_FULL")
    for conn in conns:
        conn.up("PA", b"still here")
    audit(rig.director)


@pytest.mark.parametrize("mode", ["fnat", "dr"])
def test_a_worker_killed_at_any_moment(net: Net, mode: str) -> None:
    both = dest(net, mode), dest(net, mode, daddr=net.dest2)
    lines = config(net, *both, mode=mode, expire_nodest="reset")
    memory = Memory(64)
    rig = Rig(lines, memory=memory)
    first = Conn(rig, net, mode=mode)
    survive(lines, memory, rig, lambda: first.up("S"))
    survive(lines, memory, rig, partial(Conn(rig, net, mode=mode, cport=9).up, "S"))
    survive(lines, memory, rig, partial(rig.director.ipvs.life.end, 2))
    survive(lines, memory, rig, partial(rig.director.ipvs.life.end, 1))
    assert list(rig.director.ipvs.conns.rows()) == []


def test_a_successor_goes_on_with_templates(net: Net) -> None:
    lines, memory = config(net), Memory(64)
    rig = Rig(lines, memory=memory)
    conn = Conn(rig, net).establish()
    lone = Conn(rig, net, caddr=far(net), daddr=net.dest2).establish()
    lone.up("R")
    rig.advance(20_000)
    conn.rig = Rig(lines, memory=memory, now=rig.now)
    assert conn.rig.director.adopt(conn.rig.now) == (3, 0)
    audit_templates(conn.rig.director)
    assert [daddr_of(conn.rig, net, net.remote, 1 + i) for i in range(3)] == [net.dest] * 3
    assert daddr_of(conn.rig, net, far(net), 1) == net.dest2
    conn.up("PA", b"still here")
    assert "TEMPLATE_NEW" not in conn.rig.counters()
    audit(conn.rig.director)


SPOILS = {
    "the template's dest": (0, 4 * 22 + 1, 77),
    "the template's protocol": (0, 72, 6),
    "the template's direction": (0, 76, 1 | 128),
    "the template itself": (0, 76, 0),
    "the template's family": (0, 73, 6),
}


@pytest.mark.parametrize("spoilt", SPOILS)
def test_a_template_that_makes_no_sense_is_dropped(spoilt: str) -> None:
    """Its conns are held no more, and live on."""
    net = V4
    lines, memory = config(net), Memory(64)
    conn = Conn(Rig(lines, memory=memory), net).establish()
    row, offset, value = SPOILS[spoilt]
    memory.conns[4096 + 128 * row + offset] = value
    after = Rig(lines, memory=memory, now=conn.rig.now)
    assert after.director.adopt(after.now).kept == 1
    conn.rig = after
    conn.up("PA", b"still here")
    audit(after.director)


def test_a_conn_held_by_what_is_no_template(net: Net) -> None:
    lines, memory = config(net), Memory(64)
    conn = Conn(Rig(lines, memory=memory), net).establish()
    extras = memoryview(memory.conns)[4096 + 128 * 64 :].cast("I")
    for wrong in (1, 5, 0xFFFFFFFF):
        extras[16] = wrong
        after = Rig(lines, memory=memory.copy(), now=conn.rig.now)
        after.director.adopt(after.now)
        audit(after.director)
