"""The keeper's process."""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import tunlb
from tunlb import privileges
from tunlb.channel import FDS_MAX, Channel, ChannelClosed, ChannelError, close_all
from tunlb.keeper.address import socket_address
from tunlb.keeper.child import Birth, Entry, fork_worker, load_worker, name_process
from tunlb.privileges import Capability

Request = Mapping[str, Any]
Reply = tuple[dict[str, object], Sequence[int]]

NAME_MAX: Final = 128  # characters of a descriptor's name, so that FDS_MAX of them fit in a message
ERROR_MAX: Final = 4096  # characters of an error's text, which may come from a user's module
WAITING_MAX: Final = 8  # connections that have not said hello yet; more wait to be accepted
HELLO_S: Final = 2.0  # how long they may take for it
END_S: Final = 1.0  # what workers may take to end before they are killed

# What it takes to fork workers of another user, and to read modules that only root can reach.
_NEEDED: Final = (
    Capability.DAC_READ_SEARCH,
    Capability.KILL,
    Capability.SETGID,
    Capability.SETPCAP,
    Capability.SETUID,
)
# Descriptors besides the store: of a message, of connections, of the modules that are loaded.
_NOT_STORED: Final = FDS_MAX + WAITING_MAX + 56


class Refused(Exception):
    """A request that cannot be fulfilled; the text says why."""


def serve(fd: int, entry: Entry | None = None) -> None:
    """Is the keeper of the supervisor at the other end of ``fd``, until it may end."""
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    os.set_inheritable(fd, False)
    name_process("tunlb-keeper")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    privileges.keep(_NEEDED)
    Server(Channel(socket.socket(fileno=fd)), entry or load_worker()).run()


class Server:
    """One thread and no event loop, so that it can fork at any time."""

    def __init__(self, supervisor: Channel, entry: Entry) -> None:
        supervisor.settimeout(0)
        self._supervisor: Channel | None = supervisor
        self._supervisor_pid = supervisor.peer().pid
        self._entry = entry
        self._store: dict[str, int] = {}
        self._workers: dict[int, int | None] = {}  # by pid: None while it lives, then its status
        self._control: str | None = None
        self._listener: socket.socket | None = None
        self._waiting: dict[Channel, float] = {}  # until when they may say hello
        self._terminated = False
        self._done = False
        self._requests: dict[object, Callable[[Request, list[int]], Reply]] = {
            "listen": self._listen,
            "preload": self._preload,
            "store": self._put,
            "drop": self._drop,
            "fork": self._fork,
            "reap": self._reap,
            "fetch": self._fetch,
            "exit": self._exit,
        }
        # poll() goes on after a signal's handler; the byte that is written here makes it return
        self._wake, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def run(self) -> None:
        _settle()
        while not self._done:
            self._wait()
            self._bury()
            # Before the supervisor is heard, so that one whose end came first is gone by then. A
            # SIGTERM from here on is for the next turn.
            terminated, self._terminated = self._terminated, False
            self._hear_supervisor()
            self._accept()
            self._greet()
            # Else it was told to stop as well, and stops us in its own time.
            if self._supervisor is None:
                self._stand_alone(terminated)

    def _on_sigterm(self, *_: object) -> None:
        self._terminated = True

    def _wait(self) -> None:
        """Returns when there may be something to do; none of it blocks when there is not."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._supervisor is not None:
            poll.register(self._supervisor, select.POLLIN)
        if self._listener is not None and len(self._waiting) < WAITING_MAX:
            poll.register(self._listener, select.POLLIN)
        for channel in self._waiting:
            poll.register(channel, select.POLLIN)
        timeout = None
        if self._waiting:
            timeout = max(0.0, min(self._waiting.values()) - time.monotonic()) * 1000 + 1
        poll.poll(timeout)

    def _bury(self) -> None:
        """Reaps workers that died, so that none stays a zombie until somebody asks for it."""
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        for pid in self._alive():
            dead, status = os.waitpid(pid, os.WNOHANG)
            if dead:
                self._workers[pid] = os.waitstatus_to_exitcode(status)

    def _alive(self) -> list[int]:
        return [pid for pid, status in self._workers.items() if status is None]

    # -- the supervisor, and those who want to be the next one

    def _hear_supervisor(self) -> None:
        """Answers all that the supervisor has sent, and finds out whether it is still there."""
        while self._supervisor is not None and not self._done:
            try:
                request, fds = self._supervisor.receive()
            except BlockingIOError:
                return
            except (ChannelError, OSError):
                self._lose_supervisor(self._supervisor)
                return
            reply, answers = self._answer(request, fds)
            try:
                self._supervisor.send({**reply, "serial": _serial(request)}, answers)
            # BlockingIOError too: one that does not read its answers does not wait for any
            except (ChannelError, OSError):
                self._lose_supervisor(self._supervisor)

    def _answer(self, request: Request, fds: list[int]) -> Reply:
        """``fds`` are closed, but for those that the request took out of the list."""
        try:
            handler = self._requests.get(request.get("request"))
            if handler is None:
                raise Refused(f"the keeper knows no request {request.get('request')!r}")
            reply, answers = handler(request, fds)
            return {"ok": True, **reply}, answers
        except Refused as error:
            return {"error": str(error)[:ERROR_MAX]}, ()
        # What the keeper holds is worth more than any request: it does not die of one.
        except Exception as error:
            return {"error": _describe(error)}, ()
        finally:
            close_all(fds)

    def _lose_supervisor(self, supervisor: Channel) -> None:
        supervisor.close()
        self._supervisor = None

    def _stand_alone(self, terminated: bool) -> None:
        """Goes on without a supervisor as long as that is of use."""
        if not (self._alive() or self._store):
            self._done = True
        elif terminated or not (self._listener is not None or self._can_be_found()):
            self._end()

    def _can_be_found(self) -> bool:
        if self._control is None:
            return False
        try:
            self._listener = _bind(self._control)
        except OSError:
            return False
        return True

    def _accept(self) -> None:
        """Takes one connection: a crowd at the door does not keep the supervisor waiting."""
        if self._listener is None or len(self._waiting) >= WAITING_MAX:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # nobody is there any more
        channel = Channel(sock)
        # Anybody in this network namespace may connect.
        if channel.peer().uid in (0, os.geteuid()):
            channel.settimeout(0)
            self._waiting[channel] = time.monotonic() + HELLO_S
        else:
            channel.close()

    def _greet(self) -> None:
        for channel, deadline in list(self._waiting.items()):
            try:
                message, fds = channel.receive()
                close_all(fds)
                self._admit(channel, message)
                del self._waiting[channel]
                continue
            except BlockingIOError:
                if time.monotonic() < deadline:
                    continue
            except (ChannelError, OSError):
                pass  # no tunlb, or it did not wait
            del self._waiting[channel]
            channel.close()

    def _admit(self, channel: Channel, message: Request) -> None:
        if message.get("request") != "hello":
            raise ChannelError("no hello")
        serial = _serial(message)
        # A supervisor that became another program is back at once: its end comes first.
        self._hear_supervisor()
        if self._done:
            raise ChannelClosed("too late")
        if self._supervisor is not None:
            channel.send({"busy": self._supervisor_pid, "serial": serial})
            channel.close()
            return
        hello = {"ok": True, "pid": os.getpid(), "version": tunlb.__version__, "serial": serial}
        channel.send(hello)
        self._supervisor = channel
        self._supervisor_pid = channel.peer().pid

    def _end(self) -> None:
        """Stops the workers and then itself."""
        self._signal_workers(signal.SIGTERM)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        deadline = time.monotonic() + END_S
        while self._alive() and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self._bury()
        self._signal_workers(signal.SIGKILL)
        self._done = True

    def _signal_workers(self, signum: int) -> None:
        for pid in self._alive():
            try:
                os.kill(pid, signum)
            except PermissionError:
                pass  # another user's, and this root has no CAP_KILL

    # -- requests

    def _listen(self, request: Request, _: list[int]) -> Reply:
        if self._listener is not None:
            raise Refused(f"the keeper listens already, for the control {self._control}")
        self._control = str(request["control"])
        try:
            self._listener = _bind(self._control)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise Refused(f"the keeper of another tunlb has the control {self._control}") from None
        return {}, ()

    def _preload(self, request: Request, _: list[int]) -> Reply:
        for name in request["modules"]:
            try:
                import_module(name)
            # More than Exception: a module that is also a program raises SystemExit
            except BaseException as error:
                raise Refused(f"{name}: {_describe(error)}") from error
        _settle()
        return {}, ()

    def _put(self, request: Request, fds: list[int]) -> Reply:
        names = request["names"]
        if len(names) != len(fds):
            raise Refused(f"{len(names)} names came with {len(fds)} descriptors")
        for name in names:
            if not (isinstance(name, str) and name.isascii() and 0 < len(name) <= NAME_MAX):
                raise Refused(
                    f"a descriptor's name has 1 to {NAME_MAX} ASCII characters, unlike {name!r}"
                )
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._store.keys() | set(names)) > limit - _NOT_STORED:
            raise Refused(
                f"the keeper may only have {limit} files open: raise the hard limit"
                " (ulimit -Hn, LimitNOFILE=)"
            )
        while fds:
            name = names[len(fds) - 1]
            self._forget(name)
            self._store[name] = fds.pop()
        return {}, ()

    def _drop(self, request: Request, _: list[int]) -> Reply:
        for name in request["names"]:
            self._forget(name)
        return {}, ()

    def _forget(self, name: str) -> None:
        fd = self._store.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def _fetch(self, request: Request, _: list[int]) -> Reply:
        """Up to FDS_MAX descriptors from number ``start`` on, in the order of their names."""
        self._bury()
        start = int(request["start"])
        names = sorted(self._store)
        batch = names[start : start + FDS_MAX]
        reply: dict[str, object] = {
            "names": batch,
            "more": start + len(batch) < len(names),
            "workers": self._alive(),
            "version": tunlb.__version__,
        }
        return reply, [self._store[name] for name in batch]

    def _fork(self, request: Request, fds: list[int]) -> Reply:
        [fd] = fds
        cpu = request["cpu"]
        birth = Birth(
            name=str(request["name"] or f"tunlb-worker-{int(request['worker'])}"),
            uid=int(request["uid"]),
            gid=int(request["gid"]),
            cpu=None if cpu is None else int(cpu),
        )
        _settle()
        pid = fork_worker(self._entry, fd, birth)
        self._workers[pid] = None
        return {"pid": pid}, ()

    def _reap(self, request: Request, _: list[int]) -> Reply:
        """Its exit status, negative for a signal; null while it lives. A dead one is forgotten."""
        self._bury()
        pid = request["pid"]
        if pid not in self._workers:
            raise Refused(f"process {pid} is no worker of this keeper")
        status = self._workers[pid]
        if status is not None:
            del self._workers[pid]
        return {"status": status}, ()

    def _exit(self, _: Request, __: list[int]) -> Reply:
        # before the answer, so that the next keeper can have the name
        if self._listener is not None:
            self._listener.close()
        self._done = True
        return {}, ()


def _bind(control: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(socket_address(control))
        listener.listen(WAITING_MAX)
    except OSError:
        listener.close()
        raise
    return listener


def _serial(request: Request) -> int:
    """Its number; nothing else that a stranger may write there is repeated."""
    serial = request.get("serial")
    return serial if isinstance(serial, int) else 0


def _describe(error: BaseException) -> str:
    """Its type and text, of which the author of a hook may have been careless."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"[:ERROR_MAX]


def _settle() -> None:
    """What is loaded stays: a child's collector must not touch, and so copy, all of its pages."""
    gc.collect()
    gc.freeze()
