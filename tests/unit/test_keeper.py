"""The keeper as a process of its own, with workers that do what a test asks of them.

Nothing waits for time to pass: a process that ends is seen by its pidfd, what a keeper does is
done when it has answered.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tunlb
from tunlb.channel import Channel, ChannelClosed, close_all, pair
from tunlb.keeper import Busy, Keeper, KeeperError, KeeperGone, client
from tunlb.keeper.address import socket_address
from tunlb.lab.process import environment

# A worker that evaluates what it is sent, and goes on without its supervisor.
WORK = """
import os, signal, sys, threading
from tunlb import keeper, privileges
from tunlb.channel import ChannelClosed
from tunlb.keeper import server

def work(channel):
    try:
        while True:
            message, fds = channel.receive()
            if "return" in message:
                return eval(message["return"])
            channel.send({"is": eval(message["eval"])})
    except ChannelClosed:
        while True:
            signal.pause()
"""
SERVE = "keeper.serve(int(sys.argv[1]), work)"
TAKE_SIGTERM = "signal.signal(signal.SIGTERM, signal.SIG_DFL)"
ALIVE_S = 10.0


class Process:
    """Any process, seen through a pidfd: by the time one looks its number may be another's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def ends(self) -> bool:
        return self._ended(ALIVE_S)

    def alive(self) -> bool:
        return not self._ended(0)

    def _ended(self, seconds: float) -> bool:
        return bool(select.select([self._fd], [], [], seconds)[0])

    def kill(self, signum: int = signal.SIGKILL) -> None:
        try:
            signal.pidfd_send_signal(self._fd, signum)
        except ProcessLookupError:
            pass

    def forget(self) -> None:
        self.kill()
        assert self.ends()
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass  # not ours, or its keeper's client has waited
        os.close(self._fd)


class Worker:
    """A worker and our end of its channel."""

    def __init__(self, channel: Channel, process: Process) -> None:
        self.channel = channel
        self.process = process
        self.pid = process.pid

    def ask(self, expression: str) -> Any:
        self.channel.send({"eval": expression})
        self.channel.settimeout(ALIVE_S)
        return self.channel.receive()[0]["is"]

    def end(self, expression: str) -> None:
        """It returns this to its keeper, and ends."""
        self.channel.send({"return": expression})
        assert self.process.ends()


class Keepers:
    """Starts keepers and workers, and ends those that are left."""

    def __init__(self, control: str) -> None:
        self.control = control
        self._keepers: list[Keeper] = []
        self._processes: list[Process] = []
        self._channels: list[Channel] = []

    def process(self, pid: int) -> Process:
        made = Process(pid)
        self._processes.append(made)
        return made

    def start(self, settings: str = "", *, listen: bool = True, serve: str = SERVE) -> Keeper:
        keeper = self.spawn(("-c", f"{WORK}\n{settings}\n{serve}"))
        keeper.fetch()
        if listen:
            keeper.listen(self.control)
        return keeper

    def spawn(self, command: Sequence[str]) -> Keeper:
        keeper = Keeper.spawn(command)
        self.own(keeper)
        self.process(keeper.pid)
        return keeper

    def own(self, keeper: Keeper) -> None:
        self._keepers.append(keeper)

    def connect(self) -> Keeper:
        found = Keeper.connect(self.control)
        assert isinstance(found, Keeper)
        self.own(found)
        return found

    def fork(self, keeper: Keeper, index: int = 0, **birth: Any) -> Worker:
        ours, theirs = pair()
        self._channels.append(ours)
        ids = {"uid": os.geteuid(), "gid": os.getegid()}
        pid = keeper.fork(index, theirs, **{**ids, **birth})
        return Worker(ours, self.process(pid))

    def knock(self) -> Channel:
        """A connection that has not said anything yet."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = Channel(sock)
        self._channels.append(channel)
        sock.connect(socket_address(self.control))
        channel.settimeout(ALIVE_S)
        return channel

    def close(self) -> None:
        for process in reversed(self._processes):
            process.forget()
        for keeper in self._keepers:
            keeper.close()
        for channel in self._channels:
            channel.close()


@pytest.fixture
def keepers(request: pytest.FixtureRequest) -> Iterator[Keepers]:
    made = Keepers(f"/run/tunlb-{os.getpid()}/{request.node.name}")
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass  # the test gave it away


def is_open(reader: int) -> bool:
    """Whether anybody has the writing end of this pipe."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    return not poll.poll(0)


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


# ---- start and end ------------------------------------------------------------------------------


def test_its_session_name_and_standard_input(keepers: Keepers) -> None:
    keeper = keepers.start()
    assert os.getsid(keeper.pid) == keeper.pid != os.getsid(0)
    assert Path(f"/proc/{keeper.pid}/comm").read_text("ascii") == "tunlb-keeper\n"
    assert os.readlink(f"/proc/{keeper.pid}/fd/0") == os.devnull


def test_a_supervisor_that_blocks_signals_starts_one_that_does_not(keepers: Keepers) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
    try:
        keeper = keepers.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    status = Path(f"/proc/{keeper.pid}/status").read_text("ascii")
    assert "SigBlk:\t0000000000000000\n" in status


def test_it_exits_when_told_to(keepers: Keepers) -> None:
    keeper = keepers.start()
    keeper.exit()
    with pytest.raises(ChildProcessError):
        os.waitpid(keeper.pid, os.WNOHANG)
    assert Keeper.connect(keepers.control) is None
    with pytest.raises(KeeperGone):
        keeper.listen(keepers.control)


def test_workers_outlive_an_exit(keepers: Keepers) -> None:
    keeper = keepers.start()
    worker = keepers.fork(keeper)
    keeper.exit()
    assert worker.ask("1 + 1") == 2


@pytest.mark.parametrize(
    "command",
    [("-m", "tunlb.keeperr"), ("-c", "import tunlb.nothing"), ("-c", "raise SystemExit(3)")],
    ids=["no module", "cannot import", "exits"],
)
def test_one_that_cannot_start(
    keepers: Keepers, command: Sequence[str], capfd: pytest.CaptureFixture[str]
) -> None:
    keeper = keepers.spawn(command)
    with pytest.raises(KeeperError, match=r"did not start \(exit status [13]\)") as failed:
        keeper.listen(keepers.control)
    assert not isinstance(failed.value, KeeperGone)
    assert command[0] == "-m" or "nothing" in capfd.readouterr().err or "Exit" in command[1]


def test_no_interpreter(keepers: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(KeeperError, match="cannot be started: /nonexistent/python"):
        Keeper.spawn()


def test_one_that_dies_is_gone(keepers: Keepers) -> None:
    keeper = keepers.start()
    os.kill(keeper.pid, signal.SIGKILL)
    with pytest.raises(KeeperGone, match=r"is gone \(SIGKILL\)"):
        keeper.fetch()
    with pytest.raises(KeeperGone):
        keeper.fetch()


def test_an_answer_that_comes_too_late_is_not_the_next_ones(keepers: Keepers) -> None:
    keeper = keepers.start()
    os.kill(keeper.pid, signal.SIGSTOP)
    with pytest.raises(KeeperError, match=r"did not answer `fetch` in 0\.01 s") as late:
        keeper._request("fetch", start=0, timeout_s=0.01)
    assert not isinstance(late.value, KeeperGone)
    os.kill(keeper.pid, signal.SIGCONT)
    with pytest.raises(KeeperError, match="process 1 is no worker"):
        keeper.reap(1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_with_a_supervisor_it_ignores(keepers: Keepers, name: str) -> None:
    keeper = keepers.start()
    worker = keepers.fork(keeper)
    os.kill(keeper.pid, getattr(signal, name))
    assert keeper.fetch().workers == [worker.pid]
    assert worker.ask("1 + 1") == 2


# ---- the real one -------------------------------------------------------------------------------

PROGRAM = """
import runpy, tunlb.loop
tunlb.loop.work = work
runpy.run_module("tunlb.keeper", run_name="__main__")
"""


def test_a_worker_has_nothing_left_to_import(keepers: Keepers) -> None:
    keeper = keepers.start(serve=PROGRAM)
    worker = keepers.fork(keeper)
    loaded = set(worker.ask("list(sys.modules)"))
    assert loaded >= {"uvloop", "tunlb.loop", "tunlb.director", "tunlb.tap"}
    for package in ("sched", "xmit"):
        folder = Path(tunlb.__file__).parent / "ipvs" / package
        names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert names
        assert loaded >= {f"tunlb.ipvs.{package}.{name}" for name in names}
    assert len(os.listdir(f"/proc/{keeper.pid}/task")) == 1, "a fork copies one thread only"


# ---- descriptors --------------------------------------------------------------------------------


def test_what_is_stored_can_be_fetched(keepers: Keepers, pipe: tuple[int, int]) -> None:
    keeper = keepers.start()
    keeper.store({"reader": pipe[0], "writer": pipe[1]})
    fetched = keeper.fetch()
    assert fetched.version == tunlb.__version__
    assert fetched.workers == []
    assert list(fetched.descriptors) == ["reader", "writer"]
    os.write(fetched.descriptors["writer"], b"through the copy")
    assert os.read(pipe[0], 100) == b"through the copy"
    assert not any(os.get_inheritable(fd) for fd in fetched.descriptors.values())
    close_all(fetched.descriptors.values())


def test_more_descriptors_than_fit_in_a_message(keepers: Keepers, pipe: tuple[int, int]) -> None:
    keeper = keepers.start()
    names = [f"queue-{number}-{'x' * 100}" for number in range(450)]
    keeper.store(dict.fromkeys(names, pipe[0]))
    descriptors = keeper.fetch().descriptors
    assert sorted(descriptors) == sorted(names)
    assert {inode(fd) for fd in descriptors.values()} == {inode(pipe[0])}
    close_all(descriptors.values())


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(lambda keeper, fd: keeper.store({"queue": fd}), id="stored again"),
        pytest.param(lambda keeper, fd: keeper.drop(["queue", "unknown"]), id="dropped"),
        pytest.param(lambda keeper, fd: keeper.exit(), id="exit"),
    ],
)
def test_the_keepers_copy_is_closed(keepers: Keepers, pipe: tuple[int, int], request_) -> None:
    reader, writer = pipe
    keeper = keepers.start()
    keeper.store({"queue": writer})
    os.close(writer)
    assert is_open(reader)
    request_(keeper, reader)
    assert not is_open(reader)


def test_a_descriptor_outlives_its_supervisor(keepers: Keepers, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    keeper = keepers.start()
    keeper.store({"queue": writer})
    os.close(writer)
    keeper.close()
    successor = keepers.connect()
    assert is_open(reader)
    [fd] = successor.fetch().descriptors.values()
    successor.exit()
    assert is_open(reader)
    os.close(fd)
    assert not is_open(reader)


def test_it_may_have_as_many_files_open_as_the_hard_limit_allows(keepers: Keepers) -> None:
    keeper = keepers.start("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 350))")
    limits = Path(f"/proc/{keeper.pid}/limits").read_text("ascii")
    [line] = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert line.split()[3:5] == ["350", "350"]
    keeper.store(dict.fromkeys([f"fd-{number}" for number in range(36)], 0))
    keeper.store({"fd-0": 0})
    with pytest.raises(KeeperError, match="may only have 350 files open: raise the hard limit"):
        keeper.store({"one-more": 0})


# ---- requests that cannot be fulfilled ----------------------------------------------------------

BAD_REQUESTS = {
    "a long word": ("x" * 60000, {}, "knows no request 'xxx"),
    "unknown": ("explode", {}, "knows no request 'explode'"),
    "no word": ([], {}, "TypeError"),
    "argument missing": ("drop", {}, "KeyError: 'names'"),
    "argument of a wrong type": ("fork", {"worker": []}, "ValueError"),
    "fork without a channel": ("fork", {"worker": 0}, "ValueError"),
    "more names than descriptors": ("store", {"names": ["a"]}, "1 names came with 0"),
    "module that is not there": (
        "preload",
        {"modules": ["tunlb.nothing"]},
        "^tunlb.nothing: Module",
    ),
    "module without a name": ("preload", {"modules": [""]}, "ValueError"),
    "another's process": ("reap", {"pid": 1}, "process 1 is no worker"),
    "listens already": ("listen", {"control": "b"}, "listens already"),
}


@pytest.mark.parametrize(
    ("word", "arguments", "text"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys()
)
def test_it_refuses_and_goes_on(
    keepers: Keepers, word: Any, arguments: dict[str, Any], text: str
) -> None:
    keeper = keepers.start()
    with pytest.raises(KeeperError, match=text) as refused:
        keeper._request(word, **arguments)
    assert not isinstance(refused.value, KeeperGone)
    assert keeper.fetch().descriptors == {}


@pytest.mark.parametrize(
    "name",
    ["", "x" * 129, "queue-\xe4", "\xe4" * 9000],
    ids=["empty", "long", "not ASCII", "larger than any answer"],
)
def test_a_descriptor_needs_a_name(keepers: Keepers, name: str, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    keeper = keepers.start()
    with pytest.raises(KeeperError, match="name has 1 to 128 ASCII"):
        keeper.store({"good": writer, name: writer})
    os.close(writer)
    assert not is_open(reader), "a refused descriptor is not kept"
    assert keeper.fetch().descriptors == {}


def test_the_control_of_another_keeper(keepers: Keepers) -> None:
    keepers.start()
    second = keepers.start(listen=False)
    with pytest.raises(KeeperError, match=f"another tunlb has the control {keepers.control}"):
        second.listen(keepers.control)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        pytest.param("import sys\nsys.exit(1)", "^hooks_of_mine: SystemExit: 1", id="exit"),
        pytest.param("1 / 0", "^hooks_of_mine: ZeroDivisionError", id="raises"),
        pytest.param("raise ValueError('x' * 100000)", "ValueError: xxx", id="long text"),
        pytest.param(
            "class E(Exception):\n  def __str__(self): raise self\nraise E", "E", id="no text"
        ),
    ],
)
def test_a_module_that_cannot_be_imported(
    keepers: Keepers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    (tmp_path / "hooks_of_mine.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    keeper = keepers.start()
    with pytest.raises(KeeperError, match=text):
        keeper.preload(["hooks_of_mine"])
    keeper.preload(["json"])


# ---- workers ------------------------------------------------------------------------------------


def test_a_worker_has_its_channel_and_nothing_else(keepers: Keepers, pipe: tuple[int, int]) -> None:
    keeper = keepers.start()
    keeper.store({"reader": pipe[0], "writer": pipe[1]})
    first = keepers.fork(keeper)
    keepers.knock()
    for worker in (first, keepers.fork(keeper, 1)):
        # the one above 2 that is not the channel lists the directory
        fds = worker.ask("[int(fd) for fd in os.listdir('/proc/self/fd')]")
        channel = worker.ask("channel.fileno()")
        assert sorted(fds)[:3] == [0, 1, 2]
        assert len(set(fds) - {0, 1, 2, channel}) == 1
        assert channel in fds


def test_a_worker_starts_as_any_process_would(keepers: Keepers) -> None:
    worker = keepers.fork(keepers.start())
    ignored = worker.ask(
        "[s.name for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN"
        " and isinstance(s, signal.Signals)]"
    )
    assert set(ignored) == {"SIGHUP", "SIGINT", "SIGPIPE", "SIGTERM", "SIGXFSZ"}
    assert worker.ask("signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL")
    assert worker.ask("signal.set_wakeup_fd(-1)") == -1
    assert worker.ask("list(signal.pthread_sigmask(signal.SIG_BLOCK, ()))") == []
    assert worker.ask("threading.active_count()") == 1


@pytest.mark.parametrize(
    ("name", "shown"), [(None, "tunlb-worker-63"), ("tunlb-spare", "tunlb-spare")]
)
def test_a_worker_shows_its_name(keepers: Keepers, name: str | None, shown: str) -> None:
    worker = keepers.fork(keepers.start(), 63, name=name)
    assert worker.ask("open('/proc/self/comm').read()") == f"{shown}\n"


@pytest.mark.parametrize("cpu", [None, min(os.sched_getaffinity(0)), 100000])
def test_a_worker_runs_where_it_should_if_it_can(keepers: Keepers, cpu: int | None) -> None:
    may = os.sched_getaffinity(0)
    worker = keepers.fork(keepers.start(), cpu=cpu)
    assert set(worker.ask("list(os.sched_getaffinity(0))")) == ({cpu} if cpu in may else may)


def test_a_worker_has_no_privileges(keepers: Keepers) -> None:
    worker = keepers.fork(keepers.start())
    status = worker.ask("privileges.status()._asdict()")
    assert status["effective"] == status["permitted"] == status["inheritable"] == 0
    assert status["no_new_privs"]


def test_a_worker_has_the_modules_that_were_loaded_for_it(
    keepers: Keepers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hooks_of_mine.py").write_text("LOADED_BY = __import__('os').getpid()", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    keeper = keepers.start()
    keeper.preload(["hooks_of_mine"])
    worker = keepers.fork(keeper)
    assert worker.ask("sys.modules['hooks_of_mine'].LOADED_BY") == keeper.pid


@pytest.mark.parametrize(
    ("result", "status"),
    [
        pytest.param("0", 0, id="well"),
        pytest.param("75", 75, id="failed"),
        pytest.param("1 / 0", 70, id="raised"),
        pytest.param("sys.exit(3)", 70, id="exit"),
        pytest.param("None", 70, id="no status"),
        pytest.param("os.kill(os.getpid(), 9)", -9, id="killed"),
    ],
)
def test_how_a_worker_ended(
    keepers: Keepers, result: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    keeper = keepers.start()
    worker = keepers.fork(keeper)
    assert keeper.reap(worker.pid) is None
    worker.end(result)
    assert keeper.reap(worker.pid) == status
    assert ("Traceback" in capfd.readouterr().err) == (status == 70)
    with pytest.raises(KeeperError, match="no worker of this keeper"):
        keeper.reap(worker.pid)
    assert keeper.fetch().workers == []


def test_a_dead_worker_is_no_zombie_until_somebody_asks(keepers: Keepers) -> None:
    keeper = keepers.start()
    workers = [keepers.fork(keeper, index) for index in range(3)]
    for worker in workers[:2]:
        worker.end("0")
    assert keeper.fetch().workers == [workers[2].pid]
    assert [os.path.exists(f"/proc/{worker.pid}") for worker in workers] == [False, False, True]
    assert [keeper.reap(worker.pid) for worker in workers] == [0, 0, None]


def test_a_worker_sees_the_end_of_its_supervisor_only(keepers: Keepers) -> None:
    """Nobody else has the supervisor's end of its channel, nor any worker that of another."""
    keeper = keepers.start()
    workers = [keepers.fork(keeper, index) for index in range(2)]
    workers[0].channel.close()
    assert workers[1].ask("1 + 1") == 2
    workers[0].process.kill(signal.SIGTERM)
    assert workers[1].process.alive()
    workers[1].process.kill()
    workers[1].channel.settimeout(ALIVE_S)
    with pytest.raises(ChannelClosed):
        workers[1].channel.receive()


# ---- without a supervisor -----------------------------------------------------------------------


def test_a_successor_finds_the_workers(keepers: Keepers) -> None:
    keeper = keepers.start()
    workers = [keepers.fork(keeper, index) for index in range(2)]
    keeper.close()
    workers[0].end("5")
    successor = keepers.connect()
    assert (successor.pid, successor.version) == (keeper.pid, tunlb.__version__)
    assert successor.fetch().workers == [workers[1].pid]
    assert successor.reap(workers[0].pid) == 5
    assert keepers.fork(successor, 2).ask("1 + 1") == 2


@pytest.mark.parametrize("listen", [True, False], ids=["listening", "not listening"])
def test_it_ends_when_it_keeps_nothing(keepers: Keepers, listen: bool) -> None:
    keeper = keepers.start(listen=listen)
    process = keepers.process(keeper.pid)
    keepers.fork(keeper).end("0")
    keeper.close()
    assert process.ends()
    assert os.waitstatus_to_exitcode(os.waitpid(keeper.pid, 0)[1]) == 0


def test_it_ends_after_its_last_worker(keepers: Keepers) -> None:
    keeper = keepers.start()
    process = keepers.process(keeper.pid)
    worker = keepers.fork(keeper)
    keeper.close()
    worker.end("0")
    assert process.ends()


def test_it_stays_for_what_is_stored(keepers: Keepers) -> None:
    keeper = keepers.start()
    keeper.store({"conns": 0})
    worker = keepers.fork(keeper)
    keeper.close()
    worker.end("0")
    fetched = keepers.connect().fetch()
    assert (fetched.workers, list(fetched.descriptors)) == ([], ["conns"])
    close_all(fetched.descriptors.values())


def test_it_ends_with_its_workers_when_nobody_can_find_it(keepers: Keepers) -> None:
    keeper = keepers.start(listen=False)
    process = keepers.process(keeper.pid)
    worker = keepers.fork(keeper)
    worker.ask(TAKE_SIGTERM)
    keeper.close()
    assert process.ends()
    assert worker.process.ends()


def test_one_that_could_not_listen_tries_again_without_a_supervisor(keepers: Keepers) -> None:
    """The supervisor of an upgrade died between the old keeper's end and the new one's listen."""
    old, new = keepers.start(), keepers.start(listen=False)
    worker = keepers.fork(new)
    with pytest.raises(KeeperError):
        new.listen(keepers.control)
    old.exit()
    new.close()
    process = keepers.process(new.pid)
    # that its channel ended is all that it hears of
    while (found := Keeper.connect(keepers.control)) is None:
        assert process.alive()
    assert isinstance(found, Keeper)
    keepers.own(found)
    assert found.fetch().workers == [worker.pid]


def test_one_that_still_cannot_listen_ends(keepers: Keepers) -> None:
    """The supervisor of an upgrade died before the old keeper's end: the old one is found."""
    old, new = keepers.start(), keepers.start(listen=False)
    kept, ended = keepers.fork(old), keepers.fork(new)
    with pytest.raises(KeeperError):
        new.listen(keepers.control)
    ended.ask(TAKE_SIGTERM)
    new.close()
    old.close()
    assert ended.process.ends()
    assert keepers.connect().fetch().workers == [kept.pid]


@pytest.mark.parametrize("stubborn", [False, True], ids=["ends at once", "has to be killed"])
def test_sigterm_ends_it_and_its_workers(keepers: Keepers, stubborn: bool) -> None:
    keeper = keepers.start("server.END_S = 0.05" if stubborn else "")
    process = keepers.process(keeper.pid)
    worker = keepers.fork(keeper)
    if not stubborn:
        worker.ask(TAKE_SIGTERM)
    keeper.close()
    process.kill(signal.SIGTERM)
    assert worker.process.ends()
    assert process.ends()
    assert os.waitstatus_to_exitcode(os.waitpid(keeper.pid, 0)[1]) == 0


# A SIGTERM that comes right after one of its steps, in the turn that finds the supervisor gone.
AFTER = """
def after(method):
    def wrapper(self, *arguments):
        method(self, *arguments)
        if self._supervisor is None:
            server.Server.{step} = method
            os.kill(os.getpid(), signal.SIGTERM)
    return wrapper

server.Server.{step} = after(server.Server.{step})
"""


@pytest.mark.parametrize("step", ["_hear_supervisor", "_greet", "_stand_alone"])
def test_no_sigterm_is_missed(keepers: Keepers, step: str) -> None:
    keeper = keepers.start(AFTER.format(step=step))
    process = keepers.process(keeper.pid)
    keepers.fork(keeper).ask(TAKE_SIGTERM)
    keeper.close()
    assert process.ends()


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_without_a_supervisor_it_still_ignores(keepers: Keepers, name: str) -> None:
    keeper = keepers.start()
    worker = keepers.fork(keeper)
    keeper.close()
    os.kill(keeper.pid, getattr(signal, name))
    assert keepers.connect().fetch().workers == [worker.pid]


def test_a_supervisor_that_talks_nonsense_is_none(
    keepers: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "END_S", 0)
    keeper = keepers.start()
    worker = keepers.fork(keeper)
    keeper._channel._sock.send(b"[]")
    with pytest.raises(KeeperGone):
        keeper.fetch()
    assert keepers.connect().fetch().workers == [worker.pid]


def test_a_supervisor_that_does_not_read_is_none(keepers: Keepers) -> None:
    keeper = keepers.start()
    keepers.fork(keeper)
    channel = keeper._channel
    channel.settimeout(ALIVE_S)
    with pytest.raises(ChannelClosed):
        flood(channel)
    assert isinstance(keepers.connect(), Keeper)


def flood(channel: Channel) -> None:
    for _ in range(10000):
        channel.send({"request": "fetch", "start": 0})


# ---- who knocks ---------------------------------------------------------------------------------


def test_nobody_is_there(keepers: Keepers) -> None:
    assert Keeper.connect(keepers.control) is None


def test_one_supervisor_at_a_time(keepers: Keepers) -> None:
    keeper = keepers.start()
    assert Keeper.connect(keepers.control, 0) == Busy(os.getpid())
    keepers.fork(keeper)
    keeper.close()
    keepers.connect()
    assert Keeper.connect(keepers.control, 0) == Busy(os.getpid())


UPGRADE = """
import os, sys
from tunlb.channel import pair
from tunlb.keeper import Keeper

command, control = sys.argv[1:3]
keeper = Keeper.spawn(("-c", command))
keeper.listen(control)
ours, theirs = pair()
worker = keeper.fork(0, theirs, uid=os.geteuid(), gid=os.getegid())
new = '''
import os, signal, sys
from tunlb.keeper import Keeper
keeper = Keeper.connect(sys.argv[1])
[worker] = keeper.fetch().workers
signal.pidfd_send_signal(os.pidfd_open(worker), signal.SIGKILL)
keeper.exit()
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print(worker, keeper.pid)
'''
print(worker, keeper.pid, flush=True)
os.execv(sys.executable, [sys.executable, "-c", new, control])
"""


def test_a_supervisor_that_becomes_another_program_succeeds_itself(keepers: Keepers) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UPGRADE, f"{WORK}\n{SERVE}", keepers.control],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    before, after = done.stdout.splitlines()
    assert before == after, done.stderr


def test_its_own_pid_is_only_busy_for_a_moment(
    keepers: Keepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keepers.start()
    keepers.fork(keeper)
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        keeper.close()

    monkeypatch.setattr(time, "sleep", pause)
    keepers.connect()
    assert len(pauses) == 1


def test_the_end_of_the_old_supervisor_comes_before_the_new_one(keepers: Keepers) -> None:
    """Both wait for a keeper that had no time: it must not call the newcomer's place taken."""
    keeper = keepers.start()
    keepers.fork(keeper)
    os.kill(keeper.pid, signal.SIGSTOP)
    newcomer = keepers.knock()
    newcomer.send({"request": "hello", "serial": 1})
    keeper.close()
    os.kill(keeper.pid, signal.SIGCONT)
    hello = {"ok": True, "pid": keeper.pid, "version": tunlb.__version__, "serial": 1}
    assert newcomer.receive() == (hello, [])


@pytest.mark.parametrize(
    "message",
    [b"[]", b"", b"{}", b'{"request":"fetch","start":0}', b'{"request":"exit"}'],
    ids=["garbage", "nothing", "no word", "fetch", "exit"],
)
def test_only_hello_opens_the_door(keepers: Keepers, message: bytes) -> None:
    keeper = keepers.start()
    keepers.fork(keeper)
    keeper.close()
    stranger = keepers.knock()
    socket.send_fds(stranger._sock, [message], [0])
    with pytest.raises(ChannelClosed):
        stranger.receive()
    keepers.connect()


def test_a_serial_that_is_no_number_is_not_repeated(keepers: Keepers) -> None:
    keeper = keepers.start()
    stranger = keepers.knock()
    stranger.send({"request": "hello", "serial": "x" * 60000})
    assert stranger.receive() == ({"busy": os.getpid(), "serial": 0}, [])
    assert keeper.fetch().workers == []


def test_silent_connections_keep_nobody_waiting_for_long(keepers: Keepers) -> None:
    keeper = keepers.start("server.HELLO_S = 0.05")
    worker = keepers.fork(keeper)
    silent = [keepers.knock() for _ in range(12)]
    assert keeper.fetch().workers == [worker.pid]
    keeper.close()
    keepers.connect()  # once those before us have had their time
    for channel in silent:
        with pytest.raises(ChannelClosed):
            channel.receive()


def test_a_crowd_at_the_door(keepers: Keepers) -> None:
    keeper = keepers.start()
    worker = keepers.fork(keeper)
    keeper.close()
    os.kill(keeper.pid, signal.SIGSTOP)
    crowd = [knock_once(keepers) for _ in range(100)]
    with pytest.raises(KeeperError, match="does not answer"):
        Keeper.connect(keepers.control, 0)
    for sock in crowd:
        sock.close()
    os.kill(keeper.pid, signal.SIGCONT)
    assert keepers.connect().fetch().workers == [worker.pid]


def knock_once(keepers: Keepers) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(socket_address(keepers.control))
    except BlockingIOError:
        pass  # as many wait as may
    return sock


@pytest.mark.parametrize(
    ("control", "address"),
    [
        ("/run/tunlb/control.sock", b"\0tunlb:/run/tunlb/control.sock"),
        ("x" * 101, b"\0tunlb:" + b"x" * 101),
        (os.fsdecode(b"/\xff"), b"\0tunlb:/\xff"),
    ],
    ids=["path", "longest", "not UTF-8"],
)
def test_address(control: str, address: bytes) -> None:
    assert socket_address(control) == address
    assert len(address) <= 108


def test_a_long_address_is_hashed() -> None:
    addresses = {socket_address("/" + "x" * length) for length in range(101, 5000)}
    assert len(addresses) == 4899
    assert max(map(len, addresses)) <= 108
