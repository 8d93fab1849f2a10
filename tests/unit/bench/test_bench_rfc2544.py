"""RFC 2544's search, on models of a subject and a sender."""

from __future__ import annotations

import random

import pytest

from tunlb.bench.rfc2544 import AS_FAST_AS_IT_CAN, RESOLUTION, Trial, search


class Model:
    """A subject that forwards `capacity` packets a second, and a sender that can do `ceiling`."""

    def __init__(self, capacity: float, ceiling: float, *, paced: float | None = None) -> None:
        self.capacity = capacity
        self.ceiling = ceiling
        self.paced = ceiling if paced is None else paced  # what it can do at a given rate
        self.asked: list[float] = []

    def __call__(self, rate: float) -> Trial:
        self.asked.append(rate)
        offered = self.ceiling if rate == AS_FAST_AS_IT_CAN else min(rate, self.paced)
        sent = int(offered * 0.5)
        return Trial(offered=offered, sent=sent, lost=self.lost(sent))

    def lost(self, sent: int) -> int:
        return max(0, sent - int(self.capacity * 0.5))


@pytest.mark.parametrize("capacity", [2e3, 19_999.0, 300e3, 799e3])
def test_search_finds_the_capacity_to_the_resolution(capacity: float) -> None:
    model = Model(capacity, 800e3)
    found = search(model)
    assert found.best is not None
    assert not found.limited
    assert capacity * (1 - RESOLUTION) * 0.999 <= found.best.offered <= capacity + 2
    assert found.ceiling == 800e3
    assert found.trials == len(model.asked) <= 20


def test_search_begins_with_the_sender_s_own_limit() -> None:
    model = Model(1e6, 500e3)
    found = search(model)
    assert model.asked == [AS_FAST_AS_IT_CAN]
    assert found.best is not None
    assert (found.best.offered, found.limited, found.trials) == (500e3, True, 1)


def test_search_is_limited_where_the_sender_misses_its_rate() -> None:
    # It floods faster than it paces: between the two there is nothing to be learnt.
    found = search(Model(400e3, 800e3, paced=300e3))
    assert found.best is not None
    assert (found.best.offered, found.limited) == (300e3, True)


def test_search_without_any_capacity_ends_without_a_rate() -> None:
    model = Model(0, 800e3)
    found = search(model)
    assert found.best is None
    assert not found.limited
    assert len(model.asked) <= 12


def test_search_of_a_sender_that_sent_nothing_ends_without_a_rate() -> None:
    found = search(lambda _: Trial(offered=0.0, sent=0, lost=0))
    assert (found.best, found.trials) == (None, 1)


def test_a_hiccup_is_tried_again_and_a_real_loss_is_not() -> None:
    class Hiccups(Model):
        """Every rate loses one packet in a hundred and twenty the first time."""

        def lost(self, sent: int) -> int:
            real = super().lost(sent)
            again = self.asked.count(self.asked[-1]) > 1
            return real if real or again else sent // 120

    model = Hiccups(300e3, 800e3)
    found = search(model)
    assert found.best is not None
    assert 294e3 * 0.999 <= found.best.offered <= 300e3
    twice = {rate for rate in model.asked if model.asked.count(rate) == 2}
    assert twice == {rate for rate in model.asked[1:] if rate <= 300e3 * 1.01}
    assert 400e3 in model.asked


@pytest.mark.parametrize("seed", range(20))
def test_search_on_a_noisy_edge_stays_near_it(seed: int) -> None:
    chance = random.Random(seed)

    class Noisy(Model):
        """Within 10 % below the capacity, some trials lose a few."""

        def lost(self, sent: int) -> int:
            edge = sent / (self.capacity * 0.5)
            if 0.9 < edge <= 1 and chance.random() < (edge - 0.9) * 5:
                return chance.randint(1, 100)
            return super().lost(sent)

    found = search(Noisy(300e3, 800e3))
    assert found.best is not None
    assert found.best.clean
    assert 300e3 * 0.85 <= found.best.offered <= 300e3
