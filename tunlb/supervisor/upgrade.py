"""The program replaces itself: same process, same descriptors with the keeper, new code.

First the new code is asked whether it could take over (`tunlb run ... --fits`, a process of its
own): it reads the configuration, the state and the tables' headers and says what is wrong. Only
then this process becomes it. The workers notice nothing but the end of their channel.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tunlb.keeper.client import ending
from tunlb.supervisor.state import Upgrade

#: Held back across the change: the default of each would end a process that has no handlers yet.
SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2})
TRY_TIMEOUT_S = 60.0
FITS = "--fits"


def next_argv() -> list[str]:
    """How this program was started, with the interpreter that runs it."""
    return [sys.executable, *sys.orig_argv[1:]]


def try_next(fds: Sequence[int]) -> str | None:
    """What the program as it is now on disk has against taking over; None: nothing (blocks).

    ``fds``: the state, and a worker's two memories.
    """
    argv = [*next_argv(), FITS, ",".join(map(str, fds))]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRY_TIMEOUT_S,
            pass_fds=fds,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"the new program cannot be tried: {error}"
    if done.returncode == 0:
        return None
    if said := done.stderr.strip():
        return said
    doing = done.stdout.strip().rpartition("\n")[2]
    while_it = f"while {doing}" if doing else "and said nothing"
    return f"the new program ended ({ending(done.returncode)}) {while_it}"


def become_next() -> str:
    """Become the program as it is now on disk. Returns only if that fails: why."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        os.execv(sys.executable, next_argv())
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return f"{sys.executable}: {error.strerror}"


def told(order: Upgrade) -> dict[str, object]:
    """What `tunlb upgrade` is told of the last order."""
    return {"number": order.number, "outcome": order.outcome, "text": order.text}
