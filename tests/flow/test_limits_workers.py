"""What is counted over all workers: limits, loads that schedulers see, half-open conns, rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from itertools import count
from typing import Any

import pytest

from tests.flow.kit import V4, Conn, Line, Net, dest, network, service, text
from tests.flow.test_workers import COUNT, Anywhere
from tunlb.hook import Verdict
from tunlb.ipvs.dest import CARRIED, STATS_SIZE, Dest
from tunlb.ipvs.sharding import Sharding
from tunlb.testing.audit import audit
from tunlb.testing.flow import Rig
from tunlb.testing.frames import vnet
from tunlb.wiring import pair

TIMEOUTS = {"tcp_close_s": 1, "tcp_syn_recv_s": 1000, "udp_oneway_s": 1}


def config(net: Net, *dests: Line, **keys: Any) -> str:
    keys = {"timeouts": TIMEOUTS, **keys}
    return text(*network(net), service(net, **keys), *(dests or (dest(net),)))


def send(rig: Anywhere, net: Net, cport: int, flags: str) -> Verdict:
    probe = Conn(rig, net, cport=cport)  # type: ignore[arg-type]
    return rig.receive("wan", vnet(probe.frame(probe.outside, flags, b"", False)))[0]


def born(rig: Anywhere) -> int:
    return rig.counters().get("CONN_NEW", 0)


def knock(rig: Anywhere, net: Net, cport: int) -> bool:
    """A SYN; whether it became a conn, which is established then."""
    before = born(rig)
    send(rig, net, cport, "S")
    if born(rig) == before:
        return False
    send(rig, net, cport, "A")
    return True


def reset(rig: Anywhere, net: Net, *cports: int) -> None:
    """The client ends its conns; a second later they are no more."""
    for cport in cports:
        send(rig, net, cport, "R")
    rig.workers.advance(2000)


def reload(rig: Anywhere, lines: str) -> None:
    """At every worker; then the time in which they tell each other."""
    rig.workers.config_text = lines
    for each in rig.workers.rigs:
        each.reload(lines)
    rig.workers.advance(250)


def the_dests(rig: Anywhere) -> list[Dest]:
    """The first dest, at each worker."""
    return [each.director.ipvs.dests[0] for each in rig.workers.rigs]


def home(rig: Anywhere, net: Net, worker: int, start: int = 1000) -> Callable[[], int]:
    """Gives client ports whose flows are this worker's."""
    sharding = rig.workers.rigs[0].director.ipvs.sharding
    assert sharding is not None
    caddr = pair(ip_address(Conn(rig, net).caddr))  # type: ignore[arg-type]
    ports = (port for port in count(start) if sharding.by_endpoint(*caddr, port) == worker)
    return lambda: next(ports)


def finish(rig: Anywhere) -> None:
    for each in rig.workers.rigs:
        audit(each.director)


@pytest.mark.parametrize("limit", [1, 2, 7])
@pytest.mark.parametrize("whose", ["dest", "service"])
def test_a_limit_is_that_of_all_workers(net: Net, whose: str, limit: int) -> None:
    lines = (
        config(net, dest(net, max_conn=limit)) if whose == "dest" else config(net, max_conn=limit)
    )
    rig = Anywhere(lines)
    assert sum(knock(rig, net, 100 + i) for i in range(40)) == limit
    assert sum(rig.conns()) == limit
    reason = "NO_DEST" if whose == "dest" else "SERVICE_FULL"
    assert rig.counters()[f"drop.{reason}"] == 40 - limit
    if limit == 7:
        assert max(rig.conns()) < limit
    finish(rig)


@pytest.mark.parametrize(("min_conn", "again"), [(0, 5), (4, 3), (8, 7), (1, 0)], ids=str)
def test_the_pause_is_that_of_all_workers(net: Net, min_conn: int, again: int) -> None:
    """Full at 8 conns, wherever they are; open again with ``again``, whoever is asked."""
    rig = Anywhere(config(net, dest(net, max_conn=8, min_conn=min_conn)))
    for i in range(8):
        assert knock(rig, net, 100 + i)
    for left in range(7, again - 1, -1):
        reset(rig, net, 100 + left)
        assert sum(rig.conns()) == left
        assert [each.valid() for each in the_dests(rig)] == [left == again] * COUNT
    finish(rig)


def test_who_did_not_look_is_told(net: Net) -> None:
    """One worker alone sees it full, and not any more before another one is asked."""
    rig = Anywhere(config(net, dest(net, max_conn=4, min_conn=2)))
    mine, other = home(rig, net, 0), home(rig, net, 1)
    ports = [mine() for _ in range(4)]
    assert all(knock(rig, net, cport) for cport in ports)
    reset(rig, net, ports[0])
    assert not knock(rig, net, other())
    reset(rig, net, *ports[1:3])
    assert knock(rig, net, other())
    finish(rig)


def test_counts_and_pause_outlive_each_worker(net: Net) -> None:
    rig = Anywhere(config(net, dest(net, max_conn=8, min_conn=4), max_conn=9))
    for i in range(8):
        assert knock(rig, net, 100 + i)
    reset(rig, net, 100, 101)
    for worker in range(COUNT):
        rig.workers.kill(worker)
        assert [each.total() for each in the_dests(rig)] == [6] * COUNT
        assert [each.carried.total() for each in the_dests(rig)] == [6] * COUNT
        assert not any(each.valid() for each in the_dests(rig))
    reset(rig, net, 102, 103, 104)
    assert all(each.valid() for each in the_dests(rig))
    finish(rig)


def test_a_spare_touches_nothing(net: Net) -> None:
    """It takes every configuration that its predecessor took, over the same memory."""
    small, large = (config(net, dest(net, max_conn=n), max_conn=n) for n in (4, 6))
    rig = Anywhere(large)
    for i in range(6):
        assert knock(rig, net, 100 + i)
    memory = rig.workers.memories[0]
    before = bytes(memory.dests)
    spare = Rig(
        small,
        memory=memory,
        sharding=Sharding(COUNT, 0, rig.workers.keys),
        fleet=rig.workers.memories,
        quiet=False,
    )
    for lines in (config(net), large, text(*network(net)), large):
        spare.reload(lines)
    assert bytes(memory.dests) == before
    spare.director.adopt(rig.workers.rigs[0].now)
    assert bytes(memory.dests[:STATS_SIZE]) == before[:STATS_SIZE]


def test_a_limit_that_a_reload_brings_counts_what_is_there(net: Net) -> None:
    both = dest(net), dest(net, daddr=net.dest2)
    rig = Anywhere(config(net, *both))
    for i in range(9):
        assert knock(rig, net, 100 + i)
    reload(rig, config(net, *both, max_conn=10))
    assert [knock(rig, net, 200 + i) for i in range(4)] == [True, False, False, False]
    reload(rig, config(net, *both, max_conn=12))
    assert sum(knock(rig, net, 300 + i) for i in range(5)) == 2
    reload(rig, config(net, *both))
    assert all(knock(rig, net, 400 + i) for i in range(6))
    reload(rig, config(net, *both, max_conn=19))
    assert [knock(rig, net, 500 + i) for i in range(3)] == [True, False, False]
    finish(rig)


def test_a_dests_limit_that_changes(net: Net) -> None:
    rig = Anywhere(config(net, dest(net, max_conn=4)))
    assert sum(knock(rig, net, 100 + i) for i in range(9)) == 4
    reload(rig, config(net, dest(net, max_conn=6)))
    assert sum(knock(rig, net, 200 + i) for i in range(9)) == 2
    reload(rig, config(net))
    assert all(knock(rig, net, 300 + i) for i in range(6))
    reload(rig, config(net, dest(net, max_conn=12)))
    assert not any(knock(rig, net, 400 + i) for i in range(COUNT))
    finish(rig)


def test_removed_dests_count_until_their_conns_end(net: Net) -> None:
    """And still when the service was away in between."""
    both = dest(net), dest(net, daddr=net.dest2)
    rig = Anywhere(config(net, *both, max_conn=10))
    for i in range(10):
        assert knock(rig, net, 100 + i)
    reload(rig, text(*network(net)))
    reload(rig, config(net, both[1], max_conn=10))
    assert not any(knock(rig, net, 200 + i) for i in range(COUNT))
    reset(rig, net, *range(100, 104))
    assert sum(knock(rig, net, 300 + i) for i in range(9)) == 4
    finish(rig)


def test_a_tally_whose_service_is_gone_is_forgotten(net: Net) -> None:
    lines = config(net, max_conn=10)
    rig = Anywhere(lines)
    for i in range(6):
        assert knock(rig, net, 100 + i)
    row = [bytes(memory.dests[STATS_SIZE:][8 * CARRIED :][:8]) for memory in rig.workers.memories]
    assert sum(int.from_bytes(word, "little") for word in row) == 6
    reload(rig, text(*network(net)))
    reset(rig, net, *range(100, 106))
    rig.workers.advance(11_000, step=1000)
    assert not any(any(memory.dests[8 * CARRIED : STATS_SIZE]) for memory in rig.workers.memories)
    reload(rig, lines)
    assert sum(knock(rig, net, 200 + i) for i in range(20)) == 10


def spread(rig: Anywhere, net: Net) -> Counter[int]:
    """Conns ever, by dest."""
    found: Counter[int] = Counter()
    for each in rig.workers.rigs:
        for known in each.director.ipvs.dests:
            found[known.id] += known.load()
    return found


@pytest.mark.parametrize("scheduler", ["lc", "wlc", "sed", "nq"])
def test_loads_are_those_of_all_workers(net: Net, scheduler: str) -> None:
    """A few conns, each at another worker, do not all go to the first dest of the file."""
    both = dest(net), dest(net, daddr=net.dest2)
    rig = Anywhere(config(net, *both, scheduler=scheduler))
    ports = [home(rig, net, worker) for worker in range(COUNT)]
    for turn in range(1, 3):
        for port in ports:
            assert knock(rig, net, port())
        assert sorted(spread(rig, net).values()) == [3 * turn // 2, -(-3 * turn // 2)]
    finish(rig)


def test_a_capacity_is_that_of_all_workers(net: Net) -> None:
    both = dest(net, weight=5), dest(net, daddr=net.dest2, weight=3)
    rig = Anywhere(config(net, *both, scheduler="ovf"))
    assert sum(knock(rig, net, 100 + i) for i in range(20)) == 10  # IPVS: one above each weight
    assert sorted(spread(rig, net).values()) == [4, 6]
    finish(rig)


def test_half_open_conns_are_those_of_all_workers(net: Net) -> None:
    rig = Anywhere(config(net, synproxy=True, synproxy_above=6))
    for i in range(20):
        send(rig, net, 100 + i, "S")
    found = rig.counters()
    assert (found["CONN_NEW"], found["SYNPROXY_ON"]) == (7, COUNT)
    for worker in range(COUNT):
        rig.workers.kill(worker)
    services = [one for each in rig.workers.rigs for one in each.director.services()]
    assert [one.half_open.total() for one in services] == [7] * COUNT
    finish(rig)


def test_a_rate_is_that_of_all_workers(net: Net) -> None:
    rig = Anywhere(config(net, conn_rate=5))
    assert sum(knock(rig, net, 100 + i) for i in range(40)) == 5
    assert rig.counters()["drop.CONN_RATE"] == 35
    rig.workers.kill(0)
    assert not knock(rig, net, 200)
    rig.workers.advance(1000)
    assert sum(knock(rig, net, 300 + i) for i in range(40)) == 5


def test_a_packet_that_asks_another_worker_is_counted_once(net: Net) -> None:
    """With persistence a client's first SYN goes to its home and back."""
    rig = Anywhere(config(net, conn_rate=9, persistence_s=60))
    assert sum(knock(rig, net, 100 + i) for i in range(9)) == 9
    assert rig.counters()["TEMPLATE_ASKED"] > 0
    assert not knock(rig, net, 200)


def test_workers_at_once_pass_a_limit_by_their_number_at_most() -> None:
    """What nobody can see yet: each looks before any of the others counts."""
    rig = Anywhere(config(V4, dest(V4, max_conn=4)))
    ports = [home(rig, V4, worker) for worker in range(COUNT)]
    for _ in range(3):
        assert knock(rig, V4, ports[0]())
    looks = [known.valid() for known in the_dests(rig)]
    assert looks == [True] * COUNT  # so at worst each of them takes one more
    assert sum(knock(rig, V4, port()) for port in ports) == 1
