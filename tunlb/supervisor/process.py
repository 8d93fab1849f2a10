"""A worker process as its supervisor sees it: a channel to talk on, a pidfd that tells its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunlb.channel import Channel, ChannelError, close_all

Message = dict[str, Any]
Heard = Callable[["Process", Message], None]


class Process:
    """One process, from its fork to its end.

    ``heard`` gets what it says unasked. A process of a former supervisor has no channel: it can be
    ended, and waited for.
    """

    def __init__(self, pid: int, channel: Channel | None, heard: Heard) -> None:
        self.pid = pid
        self.since = time.monotonic()  #: when it was forked, or last asked for something
        self.prepared = False
        self.gone = False  #: it was told to go
        self.ready = False
        self.failure: str | None = None  #: why it could not be prepared
        self.ended = asyncio.Event()
        self.left = asyncio.Event()  #: it ended, or is no spare any more
        self._channel = channel
        self._heard = heard
        self._asked: dict[tuple[str, object], asyncio.Future[Message | None]] = {}
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        if channel is not None:
            channel.settimeout(0)
            self._loop.add_reader(channel.fileno(), self._readable)
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._loop.call_soon(self._over)  # so short a life
        else:
            self._loop.add_reader(self._pidfd, self._over)

    @property
    def busy(self) -> bool:
        """Whether it still owes an answer."""
        return bool(self._asked)

    @property
    def adopting(self) -> bool:
        """Whether it takes over its table."""
        return self.gone and self.prepared and not self.ready

    def ask(
        self, kind: str, answer: str, fds: Sequence[int] = (), **fields: object
    ) -> asyncio.Future[Message | None]:
        """Tell it something: the message of the kind ``answer`` (and of the same ``serial``, if
        that is among the fields), None when it ends before that.
        """
        future: asyncio.Future[Message | None] = self._loop.create_future()
        if self.ended.is_set():
            future.set_result(None)
            return future
        self._asked[answer, fields.get("serial")] = future
        self.since = time.monotonic()
        self.tell(kind, fds, **fields)
        return future

    def tell(self, kind: str, fds: Sequence[int] = (), **fields: object) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send({"kind": kind, **fields}, fds)
        except BlockingIOError:
            self.kill(signal.SIGKILL)  # it reads nothing, so it does nothing
        except ChannelError:
            pass  # its end comes next

    def stop(self) -> None:
        """Tell it to end; one without a channel listens to SIGTERM."""
        self.tell("stop")
        if self._channel is None:
            self.kill(signal.SIGTERM)

    def kill(self, signum: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    async def end(self, seconds: float) -> None:
        """Wait for its end, and kill it when it takes too long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)
            return
        self.kill(signal.SIGKILL)
        await self.ended.wait()

    def _readable(self) -> None:
        while self._channel is not None:
            try:
                message, fds = self._channel.receive()
            except BlockingIOError:
                return
            except ChannelError:
                # Who breaks off, or talks nonsense, is given up; a normal end looks the same.
                self._hang_up()
                self.kill(signal.SIGKILL)
                return
            close_all(fds)
            self._answer(message)

    def _answer(self, message: Message) -> None:
        kind = message.get("kind")
        if kind == "failed":
            self.failure = str(message.get("error"))
            return
        self.prepared |= kind == "prepared"
        self.ready |= kind == "ready"
        serial = message.get("serial")
        key = (str(kind), serial if isinstance(serial, int) else None)
        future = self._asked.pop(key, None)
        if future is None:
            self._heard(self, message)
        elif not future.done():  # who asked may have been cancelled
            future.set_result(message)

    def _over(self) -> None:
        self._readable()  # its last words
        self._hang_up()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self.ended.set()
        self.left.set()
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_result(None)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None


def comm(pid: int) -> str:
    """The name of a process, "" when there is none of that number."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("ascii", "replace").strip()
    except OSError:
        return ""
