"""The keeper's side of the supervisor: spawned, filled, watched, and spawned again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping

from tunlb.channel import Channel
from tunlb.keeper.client import (
    START_S,
    Keeper,
    KeeperError,
    KeeperGone,
    KeeperSilent,
    ending,
    signal_name,
)
from tunlb.log import Logger
from tunlb.supervisor.health import Health


class Keeping:
    """The keeper, whichever process that is at the moment.

    It owns ``stored``: each descriptor under the name by which the keeper has a copy, once
    :meth:`fill` was called. ``modules`` are users', each with what names it. What the keeper cannot
    do raises KeeperError until :meth:`watch`; from then on it is replaced for it.
    """

    def __init__(self, modules: Mapping[str, str], log: Logger) -> None:
        self.stored: dict[str, int] = {}
        self.up = asyncio.Event()
        self._modules = modules
        self._log = log
        self._health = Health()
        self._keeper: Keeper | None = None
        self._pidfd = -1
        self._control: str | None = None
        self._filled = False
        self._watched = False
        self._reviving: asyncio.Task[None] | None = None

    def spawn(self) -> None:
        """Start the process; its imports run while we go on."""
        self._keeper = Keeper.spawn()
        self._pidfd = os.pidfd_open(self._keeper.pid)

    def preload(self) -> None:
        """Have it load users' modules (blocks until it has started). Raises KeeperError for one
        that ends the keeper, or does not let it go on. One that just cannot be imported is for the
        worker to complain of.
        """
        keeper = self._get()
        keeper.preload(())  # from its answer on, what ends it is what it imports
        for module, what in self._modules.items():
            try:
                keeper.preload((module,))
            except KeeperGone as error:
                end = "" if error.status is None else f" ({ending(error.status)})"
                raise KeeperGone(
                    f"{what}: importing {module} ended the process{end}; "
                    f"see what it does: {_by_hand(module)}"
                ) from error
            except KeeperSilent as error:
                self._kill()  # it would hear of nothing, our end included, and keep its descriptors
                raise KeeperSilent(
                    f"{what}: importing {module} is not done after {START_S:g} s "
                    f"(does it wait for something?); see what it does: {_by_hand(module)}"
                ) from error
            except KeeperError:
                pass

    def fill(self) -> None:
        """Have it load users' modules and keep what is stored (blocks until it has started)."""
        self._filled = True
        self._get().store(dict(self.stored))
        self.preload()

    def own(self, fds: Mapping[str, int]) -> None:
        """``fds`` are ours now, in place of what had these names."""
        for name, fd in fds.items():
            old = self.stored.get(name, fd)
            self.stored[name] = fd
            if old != fd:
                os.close(old)

    def listen(self, control: str) -> None:
        """Be found by a successor."""
        self._control = control
        self._get().listen(control)

    def watch(self) -> None:
        """From here on a keeper that ends, or fails, is replaced. On the running loop."""
        self._watched = True
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)
        self.up.set()

    def store(self, fds: Mapping[str, int]) -> None:
        """Own them, and have copies kept."""
        self.own(fds)
        try:
            if self._keeper is not None and self._filled:
                self._keeper.store(fds)
        except KeeperGone:
            pass  # the next one gets all of it
        except KeeperError as error:
            self._give_up(error)

    def fork(self, worker: int, channel: Channel, uid: int, gid: int, name: str) -> int:
        """The pid of a new worker process, whose end ``channel`` is. Raises KeeperError."""
        try:
            return self._get().fork(worker, channel, uid=uid, gid=gid, name=name)
        except KeeperGone:
            raise
        except KeeperError as error:
            self._give_up(error)
            raise

    def reap(self, pid: int) -> int | None:
        """How a worker ended: an exit status, negative for a signal; None when nobody knows
        (blocks, if the keeper has no time).
        """
        try:
            return self._get().reap(pid)
        except KeeperError:
            pass  # a former keeper's child; ours, if we are the first process of a container
        with contextlib.suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status) if found else None
        return None

    def close(self) -> None:
        """End the keeper and wait for it (blocks)."""
        self._watched = False
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            if not self._filled:
                # It may still be busy with its imports, or one of a user's may have ended it.
                self._kill()
            with contextlib.suppress(KeeperError):
                keeper.exit()
        for fd in self.stored.values():
            os.close(fd)
        self.stored = {}

    def unwatch(self) -> None:
        """What ends from here on ends because we want it to."""
        self.up.clear()
        if self._reviving is not None:
            self._reviving.cancel()
        if self._watched:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            self._watched = False

    def _get(self) -> Keeper:
        if self._keeper is None:
            raise KeeperGone("there is no keeper at the moment")
        return self._keeper

    def _give_up(self, error: KeeperError) -> None:
        if not self._watched or self._keeper is None:
            raise error
        self._log.error("keeper_failed", error=str(error))
        self._kill()

    def _kill(self) -> None:
        """By its pidfd: who saw its end before us may have reaped it, and its pid be another's."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._watched = False
        self.up.clear()
        keeper, self._keeper = self._keeper, None
        assert keeper is not None
        keeper.close()
        status = None
        with contextlib.suppress(ChildProcessError):
            status = os.waitstatus_to_exitcode(os.waitpid(keeper.pid, 0)[1])
        delay = self._health.ended(time.monotonic(), adopting=False)
        self._log.error(
            "keeper_died",
            **how(status),
            pid=keeper.pid,
            restarts=self._health.restarts,
            retry_s=round(delay, 1),
        )
        self._reviving = asyncio.ensure_future(self._revive(delay))

    async def _revive(self, delay: float) -> None:
        await asyncio.sleep(delay)
        began = time.monotonic()
        self.spawn()
        try:
            await asyncio.to_thread(self._refill)
        except KeeperError as error:
            self._log.error("keeper_failed", error=str(error))
            self._kill()
        else:
            now = time.monotonic()
            self._health.ready(now)
            assert self._keeper is not None
            ms = round((now - began) * 1000, 1)
            self._log.info("keeper_started", pid=self._keeper.pid, ms=ms)
        self.watch()  # and so one that has ended meanwhile is noticed

    def _refill(self) -> None:
        self.fill()
        if self._control is not None:
            self._get().listen(self._control)


def how(status: int | None) -> dict[str, object]:
    """How a process ended, for a log line: its signal, or its exit status if anybody knows it."""
    if status is not None and status < 0:
        return {"signal": signal_name(-status)}
    return {"status": status}


def _by_hand(module: str) -> str:
    return f"{sys.executable} -c 'import {module}'"
