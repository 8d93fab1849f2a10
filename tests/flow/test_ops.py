"""One-packet scheduling: a datagram, a dest, and nothing kept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import Conn, Line, Net, Rig, dest, network, port, service, text, the_dest
from tunlb.hook import Verdict
from tunlb.ipvs.dest import CONNS, IN_BYTES, IN_PACKETS
from tunlb.testing.audit import audit
from tunlb.testing.checkers import check, ether, ip, udp
from tunlb.testing.frames import vnet

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
