"""Pools of lports: which they hold, and when they are forgotten."""

from __future__ import annotations

import pytest

from tunlb.ipvs.laddr import LportPool, LportPools

ENDPOINT = (0, 0xFFFF_0A00_00C8, 0, 0xFFFF_0A00_000B, 8080 << 8 | 6)


@pytest.mark.parametrize(
    ("step", "residue", "first", "size"),
    [(1, 0, 1025, 64511), (2, 0, 1026, 32255), (2, 1, 1025, 32256), (64, 63, 1087, 1008)],
)
def test_the_ports_of_a_worker(step: int, residue: int, first: int, size: int) -> None:
    pool = LportPool(step, residue)
    assert (pool.first, pool.size, pool.used) == (first, size, 0)
    assert pool.take() == first
    assert pool.take() == first + step


@pytest.mark.parametrize("port", [-1, 0, 1024, 1026, 65536])
def test_a_port_of_another_pool_is_left_alone(port: int) -> None:
    pool = LportPool(2, 1)
    assert pool.take() == 1025
    pool.give(port)
    assert pool.used == 1


def test_giving_twice_frees_once() -> None:
    pool = LportPool()
    port = pool.take()
    pool.give(port)
    pool.give(port)
    assert pool.used == 0


def test_towards_another_dest_the_same_port_is_free() -> None:
    pools = LportPools()
    other = (*ENDPOINT[:3], ENDPOINT[3] + 1, ENDPOINT[4])
    assert pools.pool(*ENDPOINT).take() == pools.pool(*other).take() == 1025
    assert pools.pool(*ENDPOINT).take() == 1026
    assert len(pools) == 2


def test_sweep_forgets_pools_without_ports_only() -> None:
    pools = LportPools()
    port = pools.pool(*ENDPOINT).take()
    pools.sweep()
    assert len(pools) == 1
    pools.pool(*ENDPOINT).give(port)
    pools.sweep()
    assert len(pools) == 0


def test_a_claimed_port_is_taken() -> None:
    pool = LportPool(step=2, residue=1)
    assert pool.claim(1027)
    assert not pool.claim(1027)
    assert not pool.claim(1028)  # another worker's
    assert not pool.claim(1023)
    assert [pool.take() for _ in range(3)] == [1025, 1029, 1031]
    pool.give(1027)
    assert pool.claim(1027)
