"""Token buckets of sources: exact for each, bounded for all."""

from __future__ import annotations

import pytest

from tunlb.counters import Counters, Event
from tunlb.ipvs.conn import ConnTable, hash_secret
from tunlb.ipvs.rates import SOURCES, WAYS, ConnRates
from tunlb.ipvs.sched import find
from tunlb.ipvs.service import Service
from tunlb.ipvs.timeouts import NO_TIMEOUTS
from tunlb.packet import Packet

MAPPED = 0xFFFF_0000_0000


def room() -> tuple[ConnRates, Counters]:
    counters = Counters()
    return ConnRates(counters, ConnTable(16, hash_secret(b"test"))), counters


def service(rate: int, burst: int = 0, port: int = 80) -> Service:
    made = Service("web", 4, 6, (0, MAPPED | 1), port, port, find("rr")(0, 0), NO_TIMEOUTS)
    made.conn_rate, made.conn_burst = rate, burst
    return made


def packet(number: int) -> Packet:
    return aimed(Packet(), number)


def aimed(pkt: Packet, number: int) -> Packet:
    """A packet of the source with this number."""
    pkt.af = 4
    pkt.saddr = MAPPED | number
    pkt.daddr = MAPPED | 1
    return pkt


@pytest.mark.parametrize("rate", [1, 3, 999, 1_000_000])
def test_as_many_as_the_rate_in_any_time(rate: int) -> None:
    rates, _ = room()
    web, pkt = service(rate, 5), packet(9)
    span = max(3000, 20_000 // rate)
    taken = sum(rates.take(pkt, web, 1_000_000 + ms) for ms in range(span) for _ in range(3))
    assert taken == min(3 * span, 5 + (span - 1) * rate // 1000)


def test_the_clock_may_be_anywhere_and_wrap() -> None:
    rates, _ = room()
    web, pkt = service(10, 10), packet(9)
    start = (1 << 32) - 500
    assert [rates.take(pkt, web, start) for _ in range(11)] == [True] * 10 + [False]
    assert sum(rates.take(pkt, web, start + 1000) for _ in range(20)) == 10


def test_a_crowd_makes_the_limit_softer_never_harder() -> None:
    rates, counters = room()
    web, pkt = service(1), packet(0)
    for number in range(1, SOURCES * 3 // 2):
        assert rates.take(aimed(pkt, number), web, 5000 + number // 100)
    forgotten = counters.event(Event.RATE_EVICTED)
    assert SOURCES // 2 - 1 <= forgotten < SOURCES


def test_who_came_last_stays_longest() -> None:
    """However many others come, one who comes more often than they keeps his empty bucket."""
    rates, _ = room()
    web, busy, other = service(1, 1), packet(7), packet(0)
    assert rates.take(busy, web, 0)
    passed = 0
    for number in range(100, 40_000):
        rates.take(aimed(other, number), web, number // 100)
        passed += rates.take(busy, web, number // 100) if number % WAYS == 0 else 0
    assert passed == 0, "400 ms are not enough for another one"
