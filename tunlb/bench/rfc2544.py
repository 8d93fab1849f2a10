"""The highest rate without loss: the search of RFC 2544, section 26.1.

Heads up: read section 26.1 first. A trial sends at one rate for a while and counts what is missing.
When nothing is, the next trial is faster; else it is slower, until the two rates are as close as
the resolution. The tolerance for loss is zero.

Two additions. The sender has a limit of its own, so the first trial finds out how fast it is, and
a rate that it missed counts as the one that it kept. And the cores are shared with everything else
of the machine, so a trial that lost next to nothing is made once more before it decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

RESOLUTION: Final = 0.02
MISSED: Final = 0.02  # of a rate: less than it by more, and the sender did not keep it
HICCUP: Final = 0.01  # of the packets: what a trial may have lost to be made once more
LOWEST: Final = 1000.0  # packets a second; what loses at this rate has no rate without loss
AS_FAST_AS_IT_CAN: Final = 0.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of one rate."""

    offered: float  # packets a second that were sent
    sent: int
    lost: int

    @property
    def clean(self) -> bool:
        return self.sent > 0 and self.lost <= 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """The end of a search."""

    best: Trial | None  # the fastest without loss; None: even LOWEST lost packets
    ceiling: float  # packets a second that the sender can do
    trials: int
    limited: bool  # the sender could not go faster than `best`: the subject may be


def search(send: Callable[[float], Trial]) -> Found:
    """Looks for the highest rate at which `send(rate)` loses nothing.

    `send` is first asked for AS_FAST_AS_IT_CAN, then for rates in packets a second.
    """
    first = send(AS_FAST_AS_IT_CAN)
    trials = 1
    if first.clean:
        return Found(best=first, ceiling=first.offered, trials=trials, limited=True)
    best: Trial | None = None
    low, high = 0.0, first.offered
    while high - low > RESOLUTION * high and high > LOWEST:
        rate = (low + high) / 2
        trial = send(rate)
        trials += 1
        if not trial.clean and trial.lost <= HICCUP * trial.sent:
            trial = send(rate)
            trials += 1
        if not trial.clean:
            high = min(rate, trial.offered)
            continue
        if best is None or trial.offered > best.offered:
            best = trial
        if trial.offered < (1 - MISSED) * rate:
            return Found(best=best, ceiling=first.offered, trials=trials, limited=True)
        low = rate
    return Found(best=best, ceiling=first.offered, trials=trials, limited=False)
