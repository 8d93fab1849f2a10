"""The fleet over a fake keeper: its workers are idle processes that the test speaks for."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from tunlb.boot import BOOT, Applied, Boot
from tunlb.channel import Channel, ChannelClosed, close_all, get_blob
from tunlb.conf import loads
from tunlb.counters import Event
from tunlb.destids import DestIds
from tunlb.keeper import KeeperError
from tunlb.lab import TOPOLOGIES
from tunlb.log import Logger
from tunlb.mailbox import open_mailbox
from tunlb.shared import Shared
from tunlb.supervisor import fleet as fleet_module
from tunlb.supervisor.errors import StartError
from tunlb.supervisor.fleet import Fleet, Means, Slot
from tunlb.supervisor.keeping import Keeping
from tunlb.supervisor.process import Process

CONFIG = loads(TOPOLOGIES["one-arm"].config_text)
APPLIED = Applied(at_ms=1, config=CONFIG, ids=tuple(DestIds().assign(CONFIG).items()))


class FakeWorker:
    """A process that does nothing, and the worker's end of its channel."""

    def __init__(self, worker: int, name: str, channel: Channel, manners: Manners) -> None:
        self.worker = worker
        self.name = name
        self.process = subprocess.Popen(["sleep", "600"])
        self.channel = Channel(channel._sock.dup())
        self.heard: list[dict[str, Any]] = []
        self.boot: Boot | None = None
        self._manners = manners
        asyncio.get_running_loop().add_reader(self.channel.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            message, fds = self.channel.receive()
        except ChannelClosed:
            self.end()
            return
        self.heard.append(message)
        if message["kind"] == "boot":
            self.boot = BOOT.decode(get_blob(fds[0]))
        close_all(fds)
        if message["kind"] == "go":
            self.name = message["name"]
        self._manners(self, message["kind"])

    def say(self, kind: str, **fields: object) -> None:
        with contextlib.suppress(ChannelClosed):
            self.channel.send({"kind": kind, **fields})

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.channel.fileno())
            self.channel.close()
        self.process.send_signal(how)


Manners = Callable[[FakeWorker, str], None]


def good(worker: FakeWorker, kind: str) -> None:
    """What a worker answers."""
    if kind == "boot":
        worker.say("prepared")
    elif kind == "go":
        worker.say("ready", kept=3, dropped=1)
    elif kind == "config":
        worker.say("applied", serial=worker.heard[-1]["serial"])
    elif kind == "quiesce":
        worker.say("quiesced")
    elif kind == "stop":
        worker.end(signal.SIGTERM)


class FakeKeeping:
    """Forks FakeWorkers."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.up.set()
        self.manners: Manners = good
        self.workers: list[FakeWorker] = []
        self.stored: dict[str, int] = {}

    def fork(self, worker: int, channel: Channel, uid: int, gid: int, name: str) -> int:
        assert (uid, gid) == (7, 8)
        if not self.up.is_set():
            channel.close()
            raise KeeperError("gone")
        made = FakeWorker(worker, name, channel, self.manners)
        channel.close()
        self.workers.append(made)
        return made.process.pid

    def reap(self, pid: int) -> int | None:
        [worker] = [worker for worker in self.workers if worker.process.pid == pid]
        return worker.process.wait()

    def store(self, fds: dict[str, int]) -> None:
        self.stored.update(fds)

    def named(self, name: str) -> FakeWorker:
        """The living one of that name."""
        return [w for w in self.workers if w.name == name and w.process.returncode is None][-1]


class FakeLog:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.events.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


class Rig:
    """A fleet of two workers."""

    def __init__(self, shared: list[Shared]) -> None:
        self.keeping = FakeKeeping()
        self.log = FakeLog()
        self.heard: list[dict[str, Any]] = []
        self.saved = 0
        self.failures: list[BaseException] = []
        self.mailboxes = [open_mailbox() for _ in shared]
        slots = [Slot(i, m, self.mailboxes[i]) for i, m in enumerate(shared)]
        means = Means(cast(Keeping, self.keeping), (7, 8), [0], self._boot, lambda _: [0])
        log = cast(Logger, self.log)
        self.fleet = Fleet(slots, means, log, self.heard.append, self._save, self._failed)

    def _boot(self, worker: int) -> Boot:
        return Boot(
            worker=worker,
            workers=2,
            secret=b"",
            seed=1,
            macs={},
            history=(APPLIED,),
            generations=(0,),
            quiescent=False,
            environ={},
        )

    def _save(self) -> None:
        self.saved += 1

    def _failed(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)

    async def start(self) -> None:
        await self.fleet.prepare()
        await self.fleet.go()

    async def logged(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.log.of(event)) >= count)
        return self.log.of(event)

    async def spares(self) -> None:
        await until(lambda: all(s.spare is not None and s.spare.prepared for s in self.fleet.slots))

    async def close(self) -> None:
        self.keeping.manners = good
        await self.fleet.stop()
        for worker in self.keeping.workers:
            worker.end()
            worker.process.wait()
        for pair in self.mailboxes:
            close_all(pair)
        assert not self.failures


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.001)


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Shared]]:
    monkeypatch.setattr(fleet_module, "SPARE_S", 0)
    made = [Shared.create(i, 16) for i in range(2)]
    yield made
    for shared in made:
        shared.close_fds()


def run(memories: list[Shared], test: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        rig = Rig(memories)
        try:
            await test(rig)
        finally:
            await rig.close()

    asyncio.run(main())


def test_each_worker_is_prepared_and_sent_off(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        await rig.start()
        first, second = rig.keeping.workers[:2]
        assert [m["kind"] for m in first.heard] == ["boot", "go"]
        assert (first.name, second.name) == ("tunlb-worker-0", "tunlb-worker-1")
        assert second.boot is not None
        assert (second.boot.worker, second.boot.history) == (1, (APPLIED,))
        assert rig.saved == 2
        await rig.spares()

    run(memories, test)


def test_a_worker_that_cannot_be_prepared_ends_the_start(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        def fails(worker: FakeWorker, kind: str) -> None:
            worker.say("failed", error="hook a:B: no such thing")
            worker.end()

        rig.keeping.manners = fails
        with pytest.raises(StartError, match=r"^hook a:B: no such thing$"):
            await rig.start()

    run(memories, test)


def test_a_worker_that_ends_during_the_start(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        rig.keeping.manners = lambda worker, kind: worker.end()
        with pytest.raises(StartError, match=r"worker 0 ended while it started \(signal SIGKILL\)"):
            await rig.start()

    run(memories, test)


def test_the_spare_takes_the_place_of_one_that_ends(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        await rig.start()
        await rig.spares()
        spare = rig.keeping.named("tunlb-spare-1")
        rig.keeping.named("tunlb-worker-1").end()
        [died] = await rig.logged("worker_died")
        assert (died["worker"], died["signal"], died["restarts"]) == (1, "SIGKILL", 1)
        [started] = await rig.logged("worker_started")
        assert (started["pid"], started["kept"], started["dropped"]) == (spare.process.pid, 3, 1)
        assert spare.name == "tunlb-worker-1"
        await rig.spares()

    run(memories, test)


def test_without_a_spare_one_is_forked(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        await rig.start()
        await rig.spares()

        def no_spares(worker: FakeWorker, kind: str) -> None:
            if "spare" in worker.name:
                worker.end()
            else:
                good(worker, kind)

        rig.keeping.manners = no_spares
        rig.keeping.named("tunlb-spare-0").end()
        await rig.logged("spare_died")
        rig.keeping.named("tunlb-worker-0").end()
        [started] = await rig.logged("worker_started")
        assert started["worker"] == 0
        assert not rig.log.of("worker_hung")

    run(memories, test)


def test_without_a_keeper_it_waits_for_one(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        await rig.start()
        await rig.spares()
        rig.keeping.up.clear()
        rig.keeping.named("tunlb-spare-0").end()
        await rig.logged("spare_died")
        rig.keeping.named("tunlb-worker-0").end()
        await rig.logged("worker_died")
        assert rig.fleet.slots[0].process is None
        rig.keeping.up.set()
        assert (await rig.logged("worker_started"))[0]["worker"] == 0

    run(memories, test)


def test_a_table_that_ends_its_workers_is_given_up(
    memories: list[Shared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunlb.supervisor.health.BACKOFF_FIRST_S", 0)

    async def test(rig: Rig) -> None:
        await rig.start()
        slot = rig.fleet.slots[0]
        slot.counters.add(Event.CONN_NEW, 5)
        before = slot.shared

        def dies_of_it(worker: FakeWorker, kind: str) -> None:
            if kind == "go" and slot.shared is before:
                worker.end()
            else:
                good(worker, kind)

        rig.keeping.manners = dies_of_it
        for worker in rig.keeping.workers:
            worker._manners = dies_of_it
        rig.keeping.named("tunlb-worker-0").end()
        [discarded] = await rig.logged("table_discarded")
        assert discarded["worker"] == 0
        await rig.logged("worker_started")
        assert slot.shared is not before
        assert slot.counters.event(Event.CONN_NEW) == 5
        assert rig.keeping.stored == {
            "conns/0": slot.shared.conns_fd,
            "stats/0": slot.shared.stats_fd,
        }
        memories.append(slot.shared)

    run(memories, test)


def test_a_configuration_reaches_all_that_live(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        await rig.start()
        await rig.spares()
        rig.keeping.named("tunlb-worker-1").process.kill()
        await rig.fleet.configure(APPLIED, 2)
        for name in ("tunlb-worker-0", "tunlb-spare-0"):
            kinds = [message["kind"] for message in rig.keeping.named(name).heard]
            assert kinds[-1] == "config", name

    run(memories, test)


def test_a_former_process_ends_before_ours_goes(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        former = subprocess.Popen(["sleep", "600"])
        order: list[str] = []

        def notes(worker: FakeWorker, kind: str) -> None:
            alive = former.poll() is None
            order.append(f"{worker.worker} {kind} {'beside' if alive else 'after'} it")
            good(worker, kind)

        rig.keeping.manners = notes
        await rig.fleet.prepare()
        rig.fleet.take_over(1, Process(former.pid, None, lambda *_: None))
        rig.keeping.reap = lambda pid: None  # type: ignore[method-assign]
        await rig.fleet.go()
        assert order[:4] == [
            "0 boot beside it",
            "1 boot beside it",
            "0 go beside it",
            "1 go after it",
        ]
        assert former.wait() == -signal.SIGTERM

    run(memories, test)


def test_counters_are_summed(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        for slot, n in zip(rig.fleet.slots, (2, 3), strict=True):
            slot.counters.add(Event.RX_FRAMES, n)
        assert rig.fleet.counted() == {"RX_FRAMES": 5}
        assert rig.fleet.gauged()["conn_max"] == 32

    run(memories, test)


def test_what_a_worker_says_unasked_is_passed_on(memories: list[Shared]) -> None:
    async def test(rig: Rig) -> None:
        await rig.start()
        rig.keeping.named("tunlb-worker-0").say("port_lost", index=0, generation=0)
        await until(lambda: bool(rig.heard))
        assert rig.heard == [{"kind": "port_lost", "index": 0, "generation": 0}]

    run(memories, test)
