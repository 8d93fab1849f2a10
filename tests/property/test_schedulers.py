"""Schedulers that look at loads and weights only, against their formulas in exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.sched import find
from tunlb.packet import Packet


class Load(NamedTuple):
    weight: int
    active: int
    inactive: int
    max_conn: int
    available: bool

    @property
    def valid(self) -> bool:
        full = 0 < self.max_conn <= self.active + self.inactive
        return self.available and self.weight > 0 and not full

    @property
    def overhead(self) -> int:
        return 256 * self.active + self.inactive


few = st.integers(0, 6)
many = st.integers(0, 2**31)
loads = st.lists(
    st.builds(
        Load,
        weight=st.one_of(few, st.integers(0, 65535)),
        active=st.one_of(few, many),
        inactive=st.one_of(few, many),
        max_conn=st.one_of(st.just(0), few),
        available=st.sampled_from((True, True, True, False)),
    ),
    max_size=8,
)


def nq_cost(load: Load) -> tuple[bool, Fraction | int]:
    return (True, Fraction(load.active + 1, load.weight)) if load.active else (False, 0)


#: What the valid dest that is picked has the least of; the first of equals.
COSTS: dict[str, Callable[[Load], object]] = {
    "lc": lambda load: load.overhead,
    "wlc": lambda load: Fraction(load.overhead, load.weight),
    "sed": lambda load: Fraction(load.active + 1, load.weight),
    "nq": nq_cost,
    "fo": lambda load: -load.weight,
    "ovf": lambda load: -load.weight,
}


def expected(name: str, given: list[Load]) -> int:
    valid = [i for i, load in enumerate(given) if load.valid]
    if name == "ovf":
        valid = [i for i in valid if given[i].active <= given[i].weight]
    return min(valid, key=lambda i: COSTS[name](given[i]), default=-1)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("name", COSTS)
@given(given=loads)
def test_the_formula(name: str, given: list[Load]) -> None:
    dests = []
    for i, load in enumerate(given):
        dest = Dest(i, 4, 0, 0xFFFF_0A00_0001 + i, 80, load.weight, max_conn=load.max_conn)
        dest.actconns, dest.inactconns, dest.available = load.active, load.inactive, load.available
        dests.append(dest)
    scheduler = find(name)(1)
    scheduler.update(dests)
    picked = scheduler.schedule(Packet(), 0)
    assert (-1 if picked is None else picked.id) == expected(name, given)
