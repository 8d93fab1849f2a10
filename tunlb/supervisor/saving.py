"""When the conns go into the snapshot file: at an interval, and when all workers have ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tunlb.log import Logger
from tunlb.shared import Shared
from tunlb.supervisor import snapshot
from tunlb.supervisor.fleet import Slot
from tunlb.supervisor.state import State
from tunlb.tap import monotonic_ms


class Saving:
    """Keeps the file that the running configuration names. ``failed`` gets a task that ended."""

    def __init__(
        self,
        slots: Sequence[Slot],
        log: Logger,
        failed: Callable[[asyncio.Future[None]], None],
    ) -> None:
        self._slots = slots
        self._log = log
        self._failed = failed
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[int] | None = None

    def plan(self, state: State) -> None:
        """Go by this state's configuration from now on."""
        self.cancel()
        tunlb = state.config.tunlb
        if tunlb.snapshot is not None and tunlb.snapshot_s > 0:
            self._task = asyncio.ensure_future(self._repeat(state, tunlb.snapshot_s))
            self._task.add_done_callback(self._failed)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _repeat(self, state: State, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.write(state)

    async def write(self, state: State) -> None:
        """Once, now, if there is a file to write. What fails is logged: conns go on without."""
        path = state.config.tunlb.snapshot
        if path is None:
            return
        head = snapshot.Head(
            at_ms=monotonic_ms(),
            at=time.time(),
            workers=state.workers,
            secret=state.secret,
            dests=state.numbers,
        )
        tables = [slot.shared for slot in self._slots]
        try:
            conns = await self._in_thread(Path(path), head, tables)
        except OSError as error:
            self._log.warning("snapshot_failed", snapshot=path, error=str(error))
        else:
            self._log.info("snapshot_written", snapshot=path, conns=conns)

    async def _in_thread(self, path: Path, head: snapshot.Head, tables: Sequence[Shared]) -> int:
        """A million rows take a second, in which workers want to be looked after.

        Whoever waits may be cancelled, the thread not: the next one waits until it has ended.
        """
        while self._writing is not None and not self._writing.done():
            await asyncio.wait({self._writing})
        writing = asyncio.ensure_future(asyncio.to_thread(snapshot.write, path, head, tables))
        writing.add_done_callback(_look_at)
        self._writing = writing
        return await asyncio.shield(writing)


def _look_at(ended: asyncio.Future[int]) -> None:
    """An error that nobody waits for any more is no news."""
    if not ended.cancelled():
        ended.exception()
