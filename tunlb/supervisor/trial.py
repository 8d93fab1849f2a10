"""Can users' hooks and schedulers be had? A process as workers are tries, because we load no user
code.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Any

from tunlb.boot import Calls, encode
from tunlb.channel import ChannelError, close_all, pair, put_blob
from tunlb.supervisor.errors import StartError
from tunlb.supervisor.health import BUSY_HUNG_S
from tunlb.supervisor.keeping import Keeping

END_S = 5.0  #: how long a process may take to end that was killed


class Trial:
    """Forks a process that tries ``calls``. Raises KeeperError, StartError.

    :meth:`wait` may be called in a thread, all else where ``keeping`` is used.
    """

    def __init__(self, calls: Calls, keeping: Keeping, user: tuple[int, int]) -> None:
        self._keeping = keeping
        self._ours, theirs = pair()
        self._ours.settimeout(BUSY_HUNG_S)
        try:
            self._pid = keeping.fork(0, theirs, *user, "tunlb-trial")
            payload = put_blob(encode(calls))
            try:
                self._ours.send({"kind": "try"}, [payload])
            finally:
                os.close(payload)
        except BaseException:
            self._ours.close()
            raise

    def wait(self) -> None:
        """Until it has answered and ended (blocks). Raises StartError when there is something that
        cannot be had.
        """
        what = "hooks and schedulers"
        try:
            answer = self._hear()
            while answer.get("kind") == "trying":
                what = str(answer.get("what"))
                answer = self._hear()
        except TimeoutError:
            raise StartError(
                f"{what}: not loaded in {BUSY_HUNG_S:g} s "
                "(does its module or its constructor wait for something?)"
            ) from None
        except ChannelError as error:
            raise StartError(f"{what}: loading it ended the process that tried: {error}") from error
        finally:
            self._kill()
        if answer.get("kind") != "fine":
            raise StartError(str(answer.get("error")))

    def _hear(self) -> dict[str, Any]:
        message, fds = self._ours.receive()
        close_all(fds)
        return message

    def close(self) -> None:
        self._ours.close()
        self._keeping.reap(self._pid)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self._pid)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], END_S)
            finally:
                os.close(pidfd)


def try_calls(calls: Calls, keeping: Keeping, user: tuple[int, int]) -> None:
    """Before anything is set up for which that would matter (blocks). Raises StartError,
    KeeperError.
    """
    if not calls:
        return
    keeping.preload()
    trial = Trial(calls, keeping, user)
    try:
        trial.wait()
    finally:
        trial.close()
