"""Slow start: the weight of a dest that joins a running service grows to the full one in steps.

A dest without conns is the least loaded of all, so wlc would send it every new client at once, with
its caches cold (keepalived and DPVS users' "thundering herd"). For ``slow_start_s`` it takes the
share of a lighter one: 1/10 of its weight, then 2/10, and so on.

Schedulers know whole weights. While any dest of a service ramps, the weights of all its dests are
multiplied by the same number, at most STEPS, so that a tenth of 1 is not 0 and shares are as they
were. Whoever starts together with the service does not ramp: there is nobody to spare it.

Times are those of the reload that a dest came by, so every worker and successor ramps alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tunlb.ipvs.service import Service

STEPS = 10
WEIGHT_MAX = 65535  #: schedulers may count on it


class Ramp(NamedTuple):
    """One dest: its configured ``weight``, and since when (ms) it ramps; -1: it does not."""

    weight: int
    since: int


def weights(ramps: Sequence[Ramp], slow_start_ms: int, now: int) -> list[int]:
    """The weights of a service's dests at ``now``, to be set all at once."""
    steps = [_step(ramp, slow_start_ms, now) for ramp in ramps]
    if all(step == STEPS for step in steps):
        return [ramp.weight for ramp in ramps]
    times = max(1, min(STEPS, WEIGHT_MAX // max(ramp.weight for ramp in ramps)))
    return [
        0 if ramp.weight == 0 else max(1, ramp.weight * times * step // STEPS)
        for ramp, step in zip(ramps, steps, strict=True)
    ]


def over(ramp: Ramp, slow_start_ms: int, now: int) -> bool:
    return _step(ramp, slow_start_ms, now) == STEPS


def next_step(ramps: Sequence[Ramp], slow_start_ms: int, now: int) -> int:
    """When weights change again. Each dest has its own start, so there may be many steps: what
    comes within a quarter of one waits for it.
    """
    steps = [(ramp.since, _step(ramp, slow_start_ms, now)) for ramp in ramps]
    times = [
        since + -(-step * slow_start_ms // (STEPS - 1)) for since, step in steps if step < STEPS
    ]
    return max(min(times), now + slow_start_ms // (4 * STEPS))


def _step(ramp: Ramp, slow_start_ms: int, now: int) -> int:
    """1 to STEPS, where it has its full weight."""
    passed = now - ramp.since
    if ramp.since < 0 or ramp.weight == 0 or passed >= slow_start_ms:
        return STEPS
    return 1 + max(0, passed) * (STEPS - 1) // slow_start_ms


class Ramps:
    """The services some of whose dests ramp."""

    def __init__(self) -> None:
        self.count = 0  # dests
        self._due: dict[str, tuple[Service, int]] = {}

    def watch(self, service: Service, now: int) -> None:
        """A service has new dests or weights."""
        self._due.pop(service.name, None)
        if any(not over(ramp, service.slow_start_ms, now) for ramp in _ramps(service)):
            self._due[service.name] = service, now
        self._count(now)

    def forget(self, services: Mapping[str, Service], now: int) -> None:
        """Go on with those of ``services`` alone."""
        for name, (service, _) in list(self._due.items()):
            if services.get(name) is not service:
                del self._due[name]
        self._count(now)

    def due(self, now: int) -> bool:
        """Is there something for :meth:`turn`?"""
        return bool(self._due) and any(due <= now for _, due in self._due.values())

    def turn(self, now: int) -> Iterator[None]:
        """Give dests the weights of ``now``, in pieces: between two packets all of a service."""
        for name, (service, due) in list(self._due.items()):
            if due > now:
                continue
            ramps = _ramps(service)
            fresh = weights(ramps, service.slow_start_ms, now)
            if fresh != [dest.weight for dest in service.dests]:
                yield from service.scheduler.prepare(service.dests, fresh)
                for dest, weight in zip(service.dests, fresh, strict=True):
                    dest.weight = weight
                service.scheduler.update(service.dests)
            if all(over(ramp, service.slow_start_ms, now) for ramp in ramps):
                del self._due[name]
            else:
                self._due[name] = service, next_step(ramps, service.slow_start_ms, now)
            self._count(now)
            yield

    def _count(self, now: int) -> None:
        self.count = sum(
            not over(ramp, service.slow_start_ms, now)
            for service, _ in self._due.values()
            for ramp in _ramps(service)
        )


def _ramps(service: Service) -> list[Ramp]:
    return [Ramp(dest.full_weight, dest.ramp_from) for dest in service.dests]
