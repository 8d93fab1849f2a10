"""A pool of lports is a set: no port twice, none lost, every one of its residue."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tunlb.ipvs.laddr import FIRST_PORT, LAST_PORT, LportPool, LportPools

steps = st.lists(
    st.tuples(st.sampled_from(("take", "take", "give")), st.integers(0, 66000)),
    max_size=80,
)
shapes = st.sampled_from((1, 2, 64, 4096, 16384)).flatmap(
    lambda step: st.tuples(st.just(step), st.integers(0, step - 1))
)


@given(shape=shapes, taken=steps)
@settings(deadline=None)
def test_pool_is_a_set(shape: tuple[int, int], taken: list[tuple[str, int]]) -> None:
    step, residue = shape
    pool = LportPool(step, residue)
    ports = {port for port in range(FIRST_PORT, LAST_PORT + 1) if port % step == residue}
    assert pool.size == len(ports)
    model: set[int] = set()
    for name, number in taken:
        if name == "take":
            port = pool.take()
            assert port in ports - model if ports - model else port == 0
            model |= {port} if port else set()
            continue
        # Half of the numbers mean a port that is out, the others any port at all.
        port = sorted(model)[number % len(model)] if model and number % 2 else number
        pool.give(port)
        model.discard(port)
        assert pool.used == len(model)


@pytest.mark.parametrize(("step", "residue"), [(1, 0), (4, 3), (8, 1), (4096, 1024), (32768, 1030)])
def test_a_pool_gives_each_of_its_ports_once_in_turn(step: int, residue: int) -> None:
    pool = LportPool(step, residue)
    ports = [port for port in range(FIRST_PORT, LAST_PORT + 1) if port % step == residue]
    assert [pool.take() for _ in ports] == ports
    assert pool.take() == 0
    assert pool.used == pool.size == len(ports)
    pool.give(ports[-1])
    assert pool.take() == ports[-1]
    assert pool.take() == 0


def test_a_port_comes_back_last() -> None:
    """One that was just given back may still be in TIME_WAIT at the dest."""
    pool = LportPool(4096, 1025)
    first = pool.take()
    pool.give(first)
    others = [pool.take() for _ in range(pool.size - 1)]
    assert first not in others
    assert pool.take() == first


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_victims_go_round(turns: list[int]) -> None:
    pool = LportPool(16384, 1025)
    ports = [pool.take() for _ in range(pool.size)]
    assert pool.take() == 0
    seen = [pool.next_victim() for _ in range(len(turns))]
    assert seen == [ports[i % len(ports)] for i in range(len(turns))]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)), max_size=30))
@settings(deadline=None)
def test_workers_never_share_a_port(endpoints: list[tuple[int, int, int]]) -> None:
    """Pools are by endpoint; two workers with other residues never hand out the same port."""
    workers = [LportPools(2, residue) for residue in range(2)]
    out: set[tuple[int, int, int, int, int, int]] = set()
    for laddr, daddr, dport in endpoints:
        key = (0, laddr, 0, daddr, dport << 8 | 6)
        for pools in workers:
            port = pools.pool(*key).take()
            assert (*key, port) not in out
            out.add((*key, port))
    assert all(len(pools) == len(set(endpoints)) for pools in workers)
    for pools in workers:
        for taken in out:
            pools.pool(*taken[:5]).give(taken[5])
        pools.sweep()
        assert len(pools) == 0
