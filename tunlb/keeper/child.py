"""From a keeper's fork to a worker: nothing of the keeper's is left but the modules it loaded."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Final, NamedTuple, NoReturn

from tunlb import privileges
from tunlb.channel import Channel

EXIT_FAILED: Final = 70  # a worker that raised: EX_SOFTWARE of sysexits.h

Entry = Callable[[Channel], int]


class Birth(NamedTuple):
    """How a worker comes to life; ``cpu`` None: on any core."""

    name: str
    uid: int
    gid: int
    cpu: int | None


def load_worker() -> Entry:
    """Imports all that a worker runs, and returns what it runs.

    A fork then has nothing left to load, and a worker that gave up its privileges may not be able
    to read a module any more.
    """
    from tunlb.ipvs import sched, xmit

    import_module("uvloop")
    for name in sched.names():
        sched.find(name)
    for name in xmit.names():
        xmit.find(name)
    entry: Entry = import_module("tunlb.loop").work
    return entry


def fork_worker(entry: Entry, fd: int, birth: Birth) -> int:
    """The pid of a new process, which runs ``entry`` on the channel ``fd`` and exits with its
    result.
    """
    # A signal for the child must not reach our handlers there: they would write into the pipe that
    # it shares with us.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(entry, fd, birth)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(entry: Entry, fd: int, birth: Birth) -> NoReturn:
    status = EXIT_FAILED
    try:
        _forget_keeper(fd)
        name_process(birth.name)
        if birth.cpu is not None:
            try:
                os.sched_setaffinity(0, (birth.cpu,))
            except OSError:
                pass  # the core was taken away: better on any other than not at all
        privileges.drop(birth.uid, birth.gid)
        status = int(entry(Channel(socket.socket(fileno=fd)))) & 0xFF
    # SystemExit as well: nothing of a worker's may go on as a second keeper
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass  # nobody reads it any more
        os._exit(status)


def _forget_keeper(fd: int) -> None:
    """Signals as a worker has them from its start, and no descriptor but 0 to 2 and ``fd``."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A supervisor stops its workers by their channels; SIGTERM is for those who have lost theirs.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for other in map(int, os.listdir("/proc/self/fd")):
        if other > 2 and other != fd:
            try:
                os.close(other)
            except OSError:
                pass  # the one that listed the directory


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` show; the kernel cuts it to 15 bytes."""
    try:
        comm = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(comm, name.encode())
        finally:
            os.close(comm)
    except OSError:
        pass  # a sandbox without a writable /proc: only the name is lost
