"""Long work in small pieces, so that a burst never waits for more than one turn of it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

#: One turn of a loop gives so much to work. Under load a turn has a burst of each port besides,
#: which takes about as long, so half of the time is left to packets.
TURN_S = 0.00025

_DONE: Final = object()


class Pace:
    """Runs iterators one after the other, each step of which is a piece of work, on a loop.

    ``failed`` gets the exception that one ended with; nothing more is run then.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._waiting: deque[Iterator[None]] = deque()
        self._turn: asyncio.Handle | None = None

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, work: Iterator[None]) -> None:
        """Run it after what was added before; on the running loop."""
        # It makes thousands of objects and leaves no cycles: a collection would find nothing, and
        # take as long as no burst may wait.
        gc.disable()
        self._waiting.append(work)
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._run)

    def finish(self) -> None:
        """Do all that is left at once."""
        while self._waiting:
            self._step()
        self.stop()

    def stop(self) -> None:
        """Run nothing more."""
        self._waiting.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        # What lives now lives long.
        gc.freeze()
        gc.enable()

    def _run(self) -> None:
        ends = time.monotonic() + TURN_S
        try:
            while True:
                self._step()
                if not self._waiting or time.monotonic() >= ends:
                    break
        except BaseException as error:
            self.stop()
            self._failed(error)
            return
        if self._waiting:
            self._turn = asyncio.get_running_loop().call_soon(self._run)
        else:
            self.stop()

    def _step(self) -> None:
        if next(self._waiting[0], _DONE) is _DONE:
            self._waiting.popleft()
