"""What of users' code is tried, and what is said of it; over a fake keeper."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable

import pytest

from tunlb.boot import CALLS, Calls, calls_of, encode
from tunlb.channel import Channel, close_all, get_blob
from tunlb.conf import Hook, loads
from tunlb.conf.values import HookCall
from tunlb.supervisor.errors import StartError
from tunlb.supervisor.trial import Trial, try_calls

HOOK = Hook(point="forward", call=HookCall("deny.here:Deny"))
CALLED = Calls(hooks=(HOOK,), schedulers=("first:First",))
NET = '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}\n'


def named(*schedulers: str) -> str:
    return NET + "\n".join(
        f'{{"kind":"service","name":"s{i}","proto":"tcp","vaddr":"10.0.0.100","vport":{i},'
        f'"fwdmode":"nat","scheduler":"{name}"}}'
        for i, name in enumerate(schedulers, start=1)
    )


def test_calls_of_a_configuration() -> None:
    text = named("rr", "b.c:D", "a:B", "wlc", "b.c:D")
    config = loads(text + '\n{"kind":"hook","point":"forward","call":"x.y:Z"}')
    calls = calls_of(config)
    assert calls.schedulers == ("a:B", "b.c:D")
    assert [line.call for line in calls.hooks] == ["x.y:Z"]
    assert calls.modules() == {
        "x.y": "hook x.y:Z",
        "a": "scheduler a:B",
        "b.c": "scheduler b.c:D",
    }
    assert not calls_of(loads(named("rr", "mh")))


def test_what_a_reload_brings() -> None:
    before, after = (calls_of(loads(named(*names))) for names in (["a:B"], ["a:B", "c:D", "rr"]))
    assert after.without(before) == Calls(schedulers=("c:D",))
    assert not before.without(after)


def test_they_are_written_down() -> None:
    assert CALLS.decode(encode(CALLED)) == CALLED


class Keeping:
    """Forks for a Trial: a process that only waits, and a thread in its place that does ``child``
    with the channel and the calls, and closes the channel.
    """

    def __init__(self, child: Callable[[Channel, Calls], None]) -> None:
        self.child = child
        self.preloaded = 0
        self.status: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def preload(self) -> None:
        self.preloaded += 1

    def fork(self, worker: int, channel: Channel, uid: int, gid: int, name: str) -> int:
        self._process = subprocess.Popen(["sleep", "60"])
        threading.Thread(target=self._answer, args=[channel], daemon=True).start()
        return self._process.pid

    def _answer(self, channel: Channel) -> None:
        message, fds = channel.receive()
        if message == {"kind": "try"}:
            self.child(channel, CALLS.decode(get_blob(fds[0])))
        close_all(fds)
        channel.close()

    def reap(self, pid: int) -> int | None:
        assert self._process is not None
        self.status = self._process.poll()
        return self.status


def run(child: Callable[[Channel, Calls], None], calls: Calls = CALLED) -> Keeping:
    keeping = Keeping(child)
    try_calls(calls, keeping, (0, 0))  # type: ignore[arg-type]
    return keeping


def test_nothing_to_try() -> None:
    keeping = run(lambda channel, calls: None, Calls())
    assert (keeping.preloaded, keeping.status) == (0, None)


def test_fine() -> None:
    def fine(channel: Channel, calls: Calls) -> None:
        channel.send({"kind": "fine" if calls == CALLED else "failed"})

    keeping = run(fine)
    assert (keeping.preloaded, keeping.status) == (1, -signal.SIGKILL)


def test_what_it_says_is_told() -> None:
    def failed(channel: Channel, calls: Calls) -> None:
        channel.send({"kind": "failed", "error": f"scheduler {calls.schedulers[0]}: no luck"})

    with pytest.raises(StartError, match="scheduler first:First: no luck"):
        run(failed)


def test_a_process_that_ends_instead() -> None:
    with pytest.raises(StartError, match="ended the process that tried"):
        run(lambda channel, calls: None)


def test_which_of_them_it_was() -> None:
    def end(channel: Channel, calls: Calls) -> None:
        for what in ("hook deny.here:Deny", "scheduler first:First"):
            channel.send({"kind": "trying", "what": what})

    with pytest.raises(StartError, match="scheduler first:First: loading it ended the process"):
        run(end)


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunlb.supervisor.trial.BUSY_HUNG_S", 0.05)
    over = threading.Event()

    def hang(channel: Channel, calls: Calls) -> None:
        channel.send({"kind": "trying", "what": "hook deny.here:Deny"})
        over.wait(10)

    keeping = Keeping(hang)
    trial = Trial(CALLED, keeping, (0, 0))  # type: ignore[arg-type]
    with pytest.raises(StartError, match=r"hook deny\.here:Deny: not loaded in 0\.05 s"):
        trial.wait()
    over.set()
    trial.close()
    assert keeping.status == -signal.SIGKILL
