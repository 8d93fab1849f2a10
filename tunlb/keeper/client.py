"""A keeper, as its supervisor sees it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import tunlb
from tunlb.channel import FDS_MAX, Channel, ChannelClosed, ChannelError, close_all, pair
from tunlb.keeper.address import socket_address

REQUEST_S: Final = 5.0
START_S: Final = 30.0  # an interpreter starts, or users' modules are imported, on a busy machine
HELLO_S: Final = 2.0
RETRY_S: Final = 0.02
END_S: Final = 1.0

Answer = tuple[dict[str, Any], list[int]]


class KeeperError(Exception):
    """The keeper could not do it; the text says why."""


class KeeperGone(KeeperError):
    """The keeper has died (``status``: how, if it was our child) or was left."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class KeeperSilent(KeeperError):
    """The keeper did not answer in time, and may yet do it."""


class Busy(NamedTuple):
    """A keeper that has a supervisor; pid 0: one of another pid namespace."""

    pid: int


class Fetched(NamedTuple):
    """What a keeper holds: descriptors by name, now open here too, and its living workers' pids."""

    descriptors: dict[str, int]
    workers: list[int]
    version: str


class Keeper:
    """Requests block, and any thread may make them. Each raises KeeperError, which is KeeperGone
    once the keeper has died.
    """

    def __init__(self, channel: Channel, pid: int, version: str = tunlb.__version__) -> None:
        self.pid = pid
        self.version = version
        self._channel = channel
        self._serial = 0
        self._answered = False
        self._lock = threading.Lock()

    @classmethod
    def spawn(cls, command: Sequence[str] = ("-m", "tunlb.keeper")) -> Keeper:
        """Starts one, and does not wait for it: the first request does.

        ``command`` are arguments of the interpreter; the number of its channel follows them.
        """
        ours, theirs = pair()
        try:
            # dup2() of a number onto itself would leave it to be closed at the exec
            high = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 10)
            try:
                pid = os.posix_spawn(
                    sys.executable,
                    # -P: the working directory holds modules only if it does for us
                    [sys.executable, "-P", *command, "3"],
                    {**os.environ, "PYTHONPATH": _module_path()},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, high, 3),
                    ],
                    setsid=True,
                    setsigmask=(),
                )
            finally:
                os.close(high)
        except OSError as error:
            ours.close()
            raise KeeperError(f"the keeper cannot be started: {sys.executable}: {error}") from None
        finally:
            theirs.close()
        return cls(ours, pid)

    @classmethod
    def connect(cls, control: str, patience_s: float = 2.0) -> Keeper | Busy | None:
        """Succeeds the supervisor of the keeper for ``control``; None: there is no keeper.

        Tries for ``patience_s`` while the keeper has no time, or takes this process for its
        supervisor: until it sees the end of what we were before an exec. Raises KeeperError where
        it is not ours to succeed.
        """
        deadline = time.monotonic() + patience_s
        while True:
            found: Keeper | Busy | Exception | None
            try:
                found = cls._knock(control)
                if not isinstance(found, Busy) or found.pid != os.getpid():
                    return found
            # BlockingIOError: a crowd is before us; ChannelClosed: it has just ended
            except (BlockingIOError, ChannelClosed, TimeoutError) as error:
                found = error
            if time.monotonic() >= deadline:
                break
            time.sleep(RETRY_S)
        if isinstance(found, Busy):
            return found
        raise KeeperError(f"the keeper for the control {control} does not answer: {found}")

    @classmethod
    def _knock(cls, control: str) -> Keeper | Busy | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = Channel(sock)
        try:
            channel.settimeout(HELLO_S)
            try:
                sock.connect(socket_address(control))
            except ConnectionRefusedError:
                channel.close()
                return None
            keeper = cls(channel, channel.peer().pid)
            # Any user may have taken the name, and what a keeper gives is believed.
            if channel.peer().uid != os.geteuid():
                raise KeeperError(
                    f"process {keeper.pid} of user {channel.peer().uid} has the control {control}:"
                    " set another `control`, or run as that user"
                )
            reply, fds = keeper._exchange("hello", ())
            close_all(fds)
        except BaseException:
            channel.close()
            raise
        if "busy" in reply:
            channel.close()
            return Busy(int(reply["busy"]))
        keeper.version = str(reply["version"])
        keeper._answered = True
        return keeper

    def listen(self, control: str) -> None:
        """From now on a successor finds this keeper. An error while another one has the name."""
        self._request("listen", control=control)

    def preload(self, modules: Sequence[str]) -> None:
        """Imports modules that workers will need; the error names the one that cannot be had, or is
        KeeperGone: one of them has ended the process.
        """
        self._request("preload", timeout_s=START_S, modules=list(modules))

    def store(self, descriptors: Mapping[str, int]) -> None:
        """Gives copies to keep; what was kept under the same name is closed."""
        names = list(descriptors)
        for start in range(0, len(names), FDS_MAX):
            batch = names[start : start + FDS_MAX]
            self._request("store", [descriptors[name] for name in batch], names=batch)

    def drop(self, names: Sequence[str]) -> None:
        """Closes the keeper's copies, where it has them."""
        self._request("drop", names=list(names))

    def fork(
        self,
        worker: int,
        channel: Channel,
        *,
        uid: int,
        gid: int,
        cpu: int | None = None,
        name: str | None = None,
    ) -> int:
        """The pid of a new worker. ``channel`` is its end, and is closed here come what may."""
        try:
            reply, _ = self._request(
                "fork", [channel.fileno()], worker=worker, uid=uid, gid=gid, cpu=cpu, name=name
            )
        finally:
            channel.close()
        return int(reply["pid"])

    def reap(self, pid: int) -> int | None:
        """A worker's exit status (negative: the signal), told once; None while it lives."""
        reply, _ = self._request("reap", pid=pid)
        status: int | None = reply["status"]
        return status

    def fetch(self) -> Fetched:
        """Copies of all that is kept; they are the caller's."""
        descriptors: dict[str, int] = {}
        try:
            while True:
                reply, fds = self._request("fetch", start=len(descriptors))
                descriptors.update(zip(reply["names"], fds, strict=True))
                if not reply["more"]:
                    return Fetched(descriptors, reply["workers"], reply["version"])
        except BaseException:
            close_all(descriptors.values())
            raise

    def exit(self) -> None:
        """Ends the keeper. Workers that still live go on, and are init's to reap."""
        self._request("exit")
        self.close()
        self._wait()

    def close(self) -> None:
        """Leaves the keeper without a supervisor, as our death would."""
        self._channel.close()

    def _request(
        self,
        request: str,
        fds: Sequence[int] = (),
        /,
        timeout_s: float = REQUEST_S,
        **arguments: Any,
    ) -> Answer:
        if not self._answered:
            timeout_s = START_S
        try:
            with self._lock:
                if self._channel.fileno() < 0:
                    raise KeeperGone(f"the keeper (pid {self.pid}) is gone")
                self._channel.settimeout(timeout_s)
                reply, received = self._exchange(request, fds, **arguments)
        except TimeoutError:
            raise KeeperSilent(
                f"the keeper (pid {self.pid}) did not answer `{request}` in {timeout_s:g} s"
            ) from None
        except ChannelError as error:
            raise self._gone(error) from None
        except OSError as error:
            raise KeeperError(f"`{request}` for the keeper (pid {self.pid}): {error}") from None
        self._answered = True
        if "error" in reply:
            raise KeeperError(str(reply["error"]))
        return reply, received

    def _exchange(self, request: str, fds: Sequence[int], /, **arguments: Any) -> Answer:
        self._serial += 1
        self._channel.send({"request": request, "serial": self._serial, **arguments}, fds)
        while True:
            reply, received = self._channel.receive()
            # the late answer to a request that was given up comes before ours
            if reply.get("serial") == self._serial:
                return reply, received
            close_all(received)

    def _gone(self, error: ChannelError) -> KeeperError:
        self.close()
        status = self._wait()
        end = "" if status is None else f" ({ending(status)})"
        if self._answered:
            return KeeperGone(f"the keeper, pid {self.pid}, is gone{end}: {error}", status)
        return KeeperError(
            f"the keeper, pid {self.pid}, did not start{end}: see its messages above"
        )

    def _wait(self) -> int | None:
        """Waits for the end of the process, not for long; its exit status if it was our child."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return None
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(END_S * 1000)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status) if pid else None
        except ChildProcessError:
            return None
        finally:
            os.close(pidfd)


def ending(status: int) -> str:
    """How a process ended, of its exit status, or negative the signal."""
    return f"exit status {status}" if status >= 0 else signal_name(-status)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # most real-time ones have no name


def _module_path() -> str:
    """PYTHONPATH of an interpreter that shall find modules where we do: what comes before those
    that every interpreter finds.
    """
    library = os.path.dirname(os.__file__)
    end = sys.path.index(library) if library in sys.path else len(sys.path)
    return os.pathsep.join(path or os.getcwd() for path in sys.path[:end])
