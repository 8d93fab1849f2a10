"""Back-off, tables that kill, heartbeats: with a manual clock."""

from __future__ import annotations

import pytest

from tunlb.supervisor.health import BEAT_S, BUSY_HUNG_S, HEALTHY_S, HUNG_S, Health, Watch


def test_a_worker_that_was_healthy_is_replaced_at_once() -> None:
    health = Health()
    now = 100.0
    for _ in range(5):
        health.ready(now)
        now += HEALTHY_S
        assert health.ended(now, adopting=False) == 0
    assert health.restarts == 5


def test_quick_ends_back_off_up_to_a_limit() -> None:
    health = Health()
    delays = [health.ended(float(n), adopting=False) for n in range(10)]
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]


def test_health_forgives() -> None:
    health = Health()
    for n in range(8):
        health.ended(float(n), adopting=False)
    health.ready(50)
    assert health.ended(50 + HEALTHY_S, adopting=False) == 0
    health.ready(60)
    assert health.ended(60 + HEALTHY_S / 2, adopting=False) == 0.1


@pytest.mark.parametrize(
    ("ends", "given_up"),
    [
        ([True, True, True], True),
        ([True, True], False),
        ([True, True, False, True], False),
        ([False, True, True, True], True),
    ],
    ids=["three adoptions", "two", "interrupted", "three at last"],
)
def test_a_table_that_ends_each_adoption(ends: list[bool], given_up: bool) -> None:
    health = Health()
    for n, adopting in enumerate(ends):
        health.ended(float(n), adopting=adopting)
    assert health.gives_up_table() == given_up
    assert not health.gives_up_table()


def test_being_ready_absolves_the_table() -> None:
    health = Health()
    for n in range(5):
        health.ended(float(n), adopting=True)
        health.ready(n + 0.5)
    assert not health.gives_up_table()


@pytest.mark.parametrize(
    ("silent", "busy", "hung"),
    [
        (HUNG_S - 0.1, False, False),
        (HUNG_S + 0.1, False, True),
        (HUNG_S + 0.1, True, False),
        (BUSY_HUNG_S + 0.1, True, True),
    ],
)
def test_a_heartbeat_that_stands_still(silent: float, busy: bool, hung: bool) -> None:
    watch = Watch(0)
    now = 0.0
    while now < silent:
        now += BEAT_S
        watch.look(now)
    assert watch.hung(silent, 0, busy=busy) == hung


def test_nobody_is_blamed_for_our_own_sleep() -> None:
    watch = Watch(0)
    watch.look(BEAT_S)
    watch.look(60)  # we were stopped
    assert not watch.hung(60, BEAT_S, busy=False)
    watch.look(60 + BEAT_S)
    assert watch.hung(60 + HUNG_S + 0.1, BEAT_S, busy=False)
