"""When a worker that ended is started again, and when one that lives is given up. No IO."""

from __future__ import annotations

HEALTHY_S = 1.0  #: having worked for so long, a worker that ends is replaced at once
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
ADOPTIONS_MAX = 3  #: ends in a row while the table was taken over, before it is given up

BEAT_S = 0.25  #: how often heartbeats are looked at
HUNG_S = 1.5  #: without a heartbeat
BUSY_HUNG_S = 30.0  #: the same, while it does what it was asked to (a boot, a new configuration)


class Health:
    """One worker's, over all its processes. ``now``: seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.restarts = 0
        self._quick = 0
        self._ready: float | None = None
        self._adoptions = 0

    def ready(self, now: float) -> None:
        self._ready = now
        self._adoptions = 0

    def ended(self, now: float, *, adopting: bool) -> float:
        """It ended (``adopting``: between going and being ready): seconds until the next one."""
        self.restarts += 1
        self._adoptions = self._adoptions + 1 if adopting else 0
        if self._ready is not None and now - self._ready >= HEALTHY_S:
            self._quick = 0
        self._ready = None
        delay = 0.0
        if self._quick:
            delay = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._quick - 1, 16))
        self._quick += 1
        return delay

    def gives_up_table(self) -> bool:
        """Whether the table itself must be what ends them. Asked once."""
        if self._adoptions < ADOPTIONS_MAX:
            return False
        self._adoptions = 0
        return True


class Watch:
    """Which heartbeats are too old.

    When we ourselves did not run for a while (stopped, or starved), nobody is blamed for it: time
    counts from when we run again.
    """

    def __init__(self, now: float) -> None:
        self._looked = now
        self._since = now

    def look(self, now: float) -> None:
        """Call it every BEAT_S, before :meth:`hung`."""
        if now - self._looked > 2 * BEAT_S:
            self._since = now
        self._looked = now

    def hung(self, now: float, beat: float, *, busy: bool) -> bool:
        """``beat``: when the worker last showed life (seconds, same clock)."""
        return now - max(beat, self._since) > (BUSY_HUNG_S if busy else HUNG_S)
