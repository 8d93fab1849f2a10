"""When a service's SYNs are answered for it."""

from __future__ import annotations

import pytest

from tunlb.ipvs.dest import Dest
from tunlb.ipvs.synpolicy import RETIRED_MS, SynPolicy
from tunlb.ipvs.tally import Tally


@pytest.mark.parametrize(
    ("above", "counts", "engaged"),
    [
        (0, (0, 5, 0), (True, True, True)),
        (10, (10, 11, 6, 5, 10), (False, True, True, False, False)),
        (1, (1, 2, 1, 0), (False, True, True, False)),
    ],
)
def test_above(above: int, counts: tuple[int, ...], engaged: tuple[bool, ...]) -> None:
    policy = SynPolicy(above)
    assert tuple(bool(policy.engaged(count)) for count in counts) == engaged
    assert policy.accepts(0)


def test_a_retired_one_only_accepts() -> None:
    policy = SynPolicy()
    policy.retire(1000)
    policy.retire(5000)
    assert not policy.engaged(100)
    assert policy.accepts(1000 + RETIRED_MS - 1)
    assert not policy.accepts(1000 + RETIRED_MS)


def test_a_dest_takes_its_half_open_conns_along() -> None:
    one, other = Tally(), Tally()
    dest = Dest(0, 4, 0, 0, 80)
    dest.half_opened(3)
    dest.count_in(None)
    dest.count_in(one)
    dest.half_opened(2)
    assert (dest.half_open, one.count) == (5, 5)
    dest.count_in(other)
    dest.half_opened(-1)
    assert (dest.half_open, one.count, other.count) == (4, 0, 4)
    dest.count_in(None)
    dest.half_opened(-1)
    assert (dest.half_open, other.count) == (3, 0)
