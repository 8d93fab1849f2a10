"""Peers: messages for the other workers, written to their mailboxes after the burst.

Workers share no table. What one has to tell another fits into a few dozen bytes, and each kind has
its owner (see :mod:`tunlb.neighrows`); the first byte says which. A message may be lost like a
frame, so whoever sends one must be able to do without its effect, or say it again.
"""

from __future__ import annotations

import cython

from tunlb.counters import Counters, DropReason

#: Messages per burst; more are dropped as PEERS_FULL. 64 frames that each teach 63 workers fit.
PEERS_MAX = 4096

_MAX = cython.declare(cython.int, PEERS_MAX)
_PEERS_FULL = cython.declare(cython.int, DropReason.PEERS_FULL)


class Peers:
    """A bounded list of (worker, message), as worker ``worker`` of ``workers`` fills it."""

    def __init__(self, worker: int, workers: int, counters: Counters) -> None:
        self.worker = worker
        self.workers = workers
        self.counters = counters
        self.waiting: list[tuple[int, bytes]] = []

    def put(self, to: int, message: bytes) -> bool:
        """Queue ``message`` for worker ``to``."""
        if len(self.waiting) >= _MAX:
            self.counters.drop(_PEERS_FULL)
            return False
        self.waiting.append((to, message))
        return True

    def tell_all(self, message: bytes) -> None:
        """Queue ``message`` for every worker but this one."""
        for to in range(self.workers):
            if to != self.worker:
                self.put(to, message)

    def take(self) -> list[tuple[int, bytes]]:
        waiting = self.waiting
        self.waiting = []
        return waiting
