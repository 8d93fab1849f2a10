"""max_conn and min_conn of a dest, max_conn of a service."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import Conn, Line, Net, Rig, dest, network, one, service, text, the_dest
from tunlb.hook import Verdict
from tunlb.ipvs.dest import CONNS
from tunlb.testing.audit import audit, audit_templates
from tunlb.testing.flow import Memory
from tunlb.testing.frames import vnet

TIMEOUTS = {"tcp_close_s": 1, "udp_oneway_s": 1}


def config(net: Net, *dests: Line, **keys: Any) -> str:
    return text(*network(net), service(net, timeouts=TIMEOUTS, **keys), *dests)


def syn(rig: Rig, net: Net, cport: int) -> Verdict:
    """The verdict on the SYN of a conn, which is established then."""
    probe = Conn(rig, net, cport=cport)
    verdict, _ = rig.receive("wan", vnet(probe.frame(probe.outside, "S", b"", False)))
    if verdict == Verdict.ACCEPT:
        one(rig.receive("wan", vnet(probe.frame(probe.outside, "A", b"", False))))
    return verdict


def reset(rig: Rig, net: Net, cport: int) -> None:
    """The client ends its conn; a second later it is no more."""
    probe = Conn(rig, net, cport=cport)
    one(rig.receive("wan", vnet(probe.frame(probe.outside, "R", b"", False))))


@pytest.mark.parametrize(
    ("max_conn", "min_conn", "again"),
    [(4, 0, 2), (4, 2, 1), (4, 4, 3), (4, 1, 0), (1, 0, 0), (8, 0, 5), (10, 3, 2)],
    ids=str,
)
def test_hysteresis(net: Net, max_conn: int, min_conn: int, again: int) -> None:
    """Full at max_conn; open again with ``again`` conns left, and not with one more."""
    rig = Rig(config(net, dest(net, max_conn=max_conn, min_conn=min_conn)))
    for i in range(max_conn):
        assert syn(rig, net, 100 + i) == Verdict.ACCEPT
    assert syn(rig, net, 99) == Verdict.DROP
    for left in range(max_conn - 1, again - 1, -1):
        reset(rig, net, 100 + left)
        rig.advance(2000)
        assert the_dest(rig).load() == left
        assert syn(rig, net, 99) == (Verdict.ACCEPT if left == again else Verdict.DROP)
    audit(rig.director)


def test_full_though_nobody_asked(net: Net) -> None:
    """It was full for a moment in which nobody came: that counts."""
    rig = Rig(config(net, dest(net, max_conn=4, min_conn=2), dest(net, daddr=net.dest2)))
    for i in range(8):  # rr: half of them each
        assert syn(rig, net, 100 + i) == Verdict.ACCEPT
    reset(rig, net, 100)
    rig.advance(2000)
    before = the_dest(rig, net.dest).stats[CONNS]
    for i in range(4):
        assert syn(rig, net, 200 + i) == Verdict.ACCEPT
    assert the_dest(rig, net.dest).stats[CONNS] == before


def test_limits_are_live(net: Net) -> None:
    rig = Rig(config(net, dest(net, max_conn=2)))
    assert [syn(rig, net, 100 + i) for i in range(3)] == [1, 1, 0]
    rig.reload(config(net, dest(net, max_conn=3)))
    assert [syn(rig, net, 200 + i) for i in range(2)] == [1, 0]
    rig.reload(config(net, dest(net)))
    assert [syn(rig, net, 300 + i) for i in range(3)] == [1, 1, 1]
    rig.reload(config(net, dest(net, max_conn=2)))
    assert syn(rig, net, 400) == Verdict.DROP


def test_a_service_is_full(net: Net) -> None:
    """Over all dests, with a reason of its own; and no hysteresis."""
    both = dest(net), dest(net, daddr=net.dest2)
    other = [service(net, name="other", vport=81), dest(net, service="other")]
    rig = Rig(text(*network(net), service(net, timeouts=TIMEOUTS, max_conn=3), *both, *other))
    assert [syn(rig, net, 100 + i) for i in range(5)] == [1, 1, 1, 0, 0]
    found = rig.counters()
    assert (found["drop.SERVICE_FULL"], found["ICMP_ERRORS_SENT"], found["CONN_NEW"]) == (2, 2, 3)
    Conn(rig, net, vport=81).up("S")
    reset(rig, net, 100)
    rig.advance(2000)
    assert [syn(rig, net, 200 + i) for i in range(2)] == [1, 0]
    audit(rig.director)


def test_a_service_counts_the_conns_of_removed_dests(net: Net) -> None:
    both = dest(net), dest(net, daddr=net.dest2)
    keys: Line = {"max_conn": 4}
    rig = Rig(config(net, *both, **keys))
    for i in range(4):
        assert syn(rig, net, 100 + i) == Verdict.ACCEPT
    rig.reload(config(net, both[1], **keys))
    assert syn(rig, net, 200) == Verdict.DROP
    reset(rig, net, 100)
    rig.advance(2000)
    assert [syn(rig, net, 200 + i) for i in range(2)] == [1, 0]
    audit(rig.director)


def test_a_limit_is_set_on_a_service_that_runs(net: Net) -> None:
    """What it has counts from then on; and again, when it was without a limit for a while."""
    both = dest(net), dest(net, daddr=net.dest2)
    rig = Rig(config(net, *both))
    for i in range(4):
        assert syn(rig, net, 100 + i) == Verdict.ACCEPT
    rig.reload(config(net, *both, max_conn=5))
    assert [syn(rig, net, 200 + i) for i in range(2)] == [1, 0]
    audit_templates(rig.director)
    rig.reload(config(net, both[1], max_conn=5))
    rig.reload(config(net, both[1]))
    assert [syn(rig, net, 300 + i) for i in range(2)] == [1, 1]
    rig.reload(config(net, both[1], max_conn=5))  # 4 of them; those of the removed one do not count
    for cport in (100, 102):
        reset(rig, net, cport)
    rig.advance(2000)
    assert [syn(rig, net, 400 + i) for i in range(2)] == [1, 0]
    audit(rig.director)


def test_a_service_that_comes_back_counts_what_it_had(net: Net) -> None:
    keys: Line = {"max_conn": 3}
    lines = config(net, dest(net), **keys)
    rig = Rig(lines)
    for i in range(2):
        assert syn(rig, net, 100 + i) == Verdict.ACCEPT
    rig.reload(text(*network(net)))
    rig.advance(1000)
    rig.reload(lines)
    assert [syn(rig, net, 200 + i) for i in range(2)] == [1, 0]
    audit(rig.director)


def test_a_successor_counts_again(net: Net) -> None:
    lines, memory = config(net, dest(net, max_conn=4, min_conn=2), max_conn=6), Memory(64)
    rig = Rig(lines, memory=memory)
    for i in range(4):
        assert syn(rig, net, 100 + i) == Verdict.ACCEPT
    after = Rig(lines, memory=memory, now=rig.now)
    after.director.adopt(after.now)
    reset(after, net, 100)
    after.advance(2000)
    assert syn(after, net, 200) == Verdict.DROP
    audit(after.director)
