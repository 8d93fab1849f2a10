"""The workers: forked, prepared, sent off, watched, and replaced when they end or hang.

A worker is a *slot*: a number, a table, counters, a mailbox. Processes come and go in it, and at
most one of them *goes*, which means that it reads the slot's queues and writes its table. Another
one, the *spare*, is prepared and waits: it costs no time, and replaces one that ends within a few
milliseconds, which a fork and a new director would take many of.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import NamedTuple

from tunlb.boot import Applied, Boot, encode, encode_pieces
from tunlb.channel import pair, put_blob
from tunlb.counters import Counters, Gauge
from tunlb.ipvs.dest import ACTCONNS, INACTCONNS, STATS_SIZE, TEMPLATES
from tunlb.keeper.client import KeeperError
from tunlb.log import Logger
from tunlb.shared import Shared
from tunlb.supervisor.errors import StartError
from tunlb.supervisor.health import BEAT_S, BUSY_HUNG_S, Health, Watch
from tunlb.supervisor.keeping import Keeping, how
from tunlb.supervisor.process import Message, Process

STOP_S = 1.0  #: what a worker may take to end
SPARE_S = 0.2  #: after a worker was replaced, before the next spare is made: first things first


class Slot:
    """One worker. ``mailbox``: its (read_fd, write_fd)."""

    def __init__(self, number: int, shared: Shared, mailbox: tuple[int, int]) -> None:
        self.number = number
        self.mailbox = mailbox
        self.health = Health()
        self.process: Process | None = None
        self.spare: Process | None = None
        self.predecessors: list[Process] = []
        self.set_memory(shared)

    def set_memory(self, shared: Shared) -> None:
        self.shared = shared
        self.counters = Counters(shared.counters)

    def carries(self, dest: int) -> bool:
        """Whether the dest, or the service, of this number has conns or templates here."""
        row = self.shared.dests[dest * STATS_SIZE : (dest + 1) * STATS_SIZE].cast("Q")
        return bool(row[ACTCONNS] or row[INACTCONNS] or row[TEMPLATES])

    def beat(self) -> float:
        """When it last let time pass, in seconds."""
        return self.counters.gauge(Gauge.HEARTBEAT) / 1000


class Means(NamedTuple):
    """What a worker process is made with. ``boot`` and ``queues`` are told its slot's number."""

    keeping: Keeping
    user: tuple[int, int]
    cpus: Sequence[int]
    boot: Callable[[int], Boot]
    queues: Callable[[int], list[int]]


class Fleet:
    """All workers. ``heard`` gets what one says unasked, ``changed`` is called after a process took
    its place, ``failed`` with a task of ours that ended.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        means: Means,
        log: Logger,
        heard: Callable[[Message], None],
        changed: Callable[[], None],
        failed: Callable[[asyncio.Future[None]], None],
    ) -> None:
        self.slots = slots
        self.log = log
        self._means = means
        self._heard = heard
        self._changed = changed
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []

    # -- start

    def take_over(self, worker: int, process: Process) -> None:
        """A process of a former supervisor goes in this slot; it ends before ours goes."""
        self.slots[worker].predecessors.append(process)

    async def prepare(self) -> None:
        """A process for every slot, ready to go. Raises StartError when one cannot be had."""
        prepared = []
        for slot in self.slots:
            try:
                slot.process = self._fork(slot, f"tunlb-next-{slot.number}")
            except KeeperError as error:
                raise StartError(f"worker {slot.number} cannot be started: {error}") from error
            prepared.append(self._boot(slot, slot.process))
        for slot, answer in zip(self.slots, prepared, strict=True):
            assert slot.process is not None
            await self._demand(slot, slot.process, answer)

    async def go(self) -> list[float]:
        """Send them off one after the other, each when its predecessor has ended, and look after
        them from then on. Returns for how many ms each worker's queues were not read.
        """
        gaps = []
        for slot in sorted(self.slots, key=lambda slot: bool(slot.predecessors)):
            process = slot.process
            assert process is not None
            began = time.monotonic()
            for former in slot.predecessors:
                former.kill(signal.SIGTERM)
            for former in slot.predecessors:
                await former.end(STOP_S)
                self._means.keeping.reap(former.pid)
            slot.predecessors = []
            answer = self._go(slot, process)
            self._changed()
            await self._demand(slot, process, answer)
            slot.health.ready(time.monotonic())
            gaps.append(round((time.monotonic() - began) * 1000, 1))
            self._begin(self._care(slot, process))
        for slot in self.slots:
            self._begin(self._stand_by(slot))
        self._begin(self._watch())
        return gaps

    def _begin(self, task: Coroutine[None, None, None]) -> None:
        made = asyncio.ensure_future(task)
        made.add_done_callback(self._failed)
        self._tasks.append(made)

    async def _demand(
        self, slot: Slot, process: Process, answer: asyncio.Future[Message | None]
    ) -> None:
        """Wait for an answer that a start depends on. Raises StartError when none comes."""
        await asyncio.wait([answer], timeout=BUSY_HUNG_S)
        if not answer.done():
            raise StartError(
                f"worker {slot.number} was not ready in {BUSY_HUNG_S:g} s "
                "(does the constructor of a hook wait for something?)"
            )
        if answer.result() is not None:
            return
        if process.failure is not None:
            raise StartError(process.failure)
        end = ", ".join(f"{k} {v}" for k, v in how(self._means.keeping.reap(process.pid)).items())
        raise StartError(f"worker {slot.number} ended while it started ({end}); see above")

    def _fork(self, slot: Slot, name: str) -> Process:
        ours, theirs = pair()
        try:
            pid = self._means.keeping.fork(slot.number, theirs, *self._means.user, name)
        except KeeperError:
            ours.close()
            raise
        return Process(pid, ours, lambda _, message: self._heard(message))

    def _boot(self, slot: Slot, process: Process) -> asyncio.Future[Message | None]:
        payload = put_blob(encode(self._means.boot(slot.number)))
        try:
            fds = [
                payload,
                slot.shared.conns_fd,
                slot.shared.stats_fd,
                slot.mailbox[0],
                *(other.mailbox[1] for other in self.slots),
                *(other.shared.stats_fd for other in self.slots),
                *self._means.queues(slot.number),
            ]
            return process.ask("boot", "prepared", fds)
        finally:
            os.close(payload)

    def _go(self, slot: Slot, process: Process) -> asyncio.Future[Message | None]:
        process.gone = True
        cpus = self._means.cpus
        # A single worker is not pinned: several tunlbs would all sit on the first core.
        cpu = cpus[slot.number % len(cpus)] if len(self.slots) > 1 else None
        return process.ask("go", "ready", name=f"tunlb-worker-{slot.number}", cpu=cpu)

    # -- watch and replace

    async def _care(self, slot: Slot, process: Process) -> None:
        """Replace the slot's process whenever it ends."""
        while True:
            await process.ended.wait()
            noticed = time.monotonic()
            slot.process = None
            ended = process
            delay = slot.health.ended(noticed, adopting=ended.adopting)
            if slot.health.gives_up_table():
                self._discard_table(slot)
            said = asyncio.ensure_future(self._say_died(slot, ended, delay))
            if delay:
                await asyncio.sleep(delay)
            process = self._take_spare(slot) or await self._make(slot, f"tunlb-next-{slot.number}")
            slot.process = process
            ready = await self._go(slot, process)
            now = time.monotonic()
            await said
            if ready is None:
                continue
            slot.health.ready(now)
            self._changed()
            self.log.info(
                "worker_started",
                worker=slot.number,
                pid=process.pid,
                kept=ready.get("kept"),
                dropped=ready.get("dropped"),
                ms=round((now - noticed - delay) * 1000, 1),
                restarts=slot.health.restarts,
            )

    async def _stand_by(self, slot: Slot) -> None:
        """Have a spare ready."""
        health = Health()
        while True:
            slot.spare = spare = await self._make(slot, f"tunlb-spare-{slot.number}")
            await spare.left.wait()
            if slot.spare is spare:
                slot.spare = None
                delay = health.ended(time.monotonic(), adopting=False)
                self.log.warning(
                    "spare_died",
                    worker=slot.number,
                    **how(self._means.keeping.reap(spare.pid)),
                    error=spare.failure,
                    retry_s=round(delay, 1),
                )
                await asyncio.sleep(delay)
            await asyncio.sleep(SPARE_S)

    def _take_spare(self, slot: Slot) -> Process | None:
        spare = slot.spare
        if spare is None or not spare.prepared or spare.ended.is_set():
            return None
        slot.spare = None
        spare.left.set()
        return spare

    async def _make(self, slot: Slot, name: str) -> Process:
        """A new process that prepares itself; without a keeper it waits for the next one."""
        while True:
            await self._means.keeping.up.wait()
            try:
                process = self._fork(slot, name)
                break
            except KeeperError:
                await asyncio.sleep(BEAT_S)  # the keeper's end is noticed meanwhile
        self._boot(slot, process)
        return process

    async def _say_died(self, slot: Slot, process: Process, delay: float) -> None:
        conns, restarts = slot.counters.gauge(Gauge.CONNS), slot.health.restarts
        status = await asyncio.to_thread(self._means.keeping.reap, process.pid)
        self.log.error(
            "worker_died",
            worker=slot.number,
            pid=process.pid,
            **how(status),
            conns=conns,
            restarts=restarts,
            retry_s=round(delay, 1),
            **({} if process.failure is None else {"error": process.failure}),
        )

    def _discard_table(self, slot: Slot) -> None:
        """An empty table for a worker that dies of the one it has; counters go on."""
        self.log.error(
            "table_discarded", worker=slot.number, conns=slot.counters.gauge(Gauge.CONNS)
        )
        slot.set_memory(slot.shared.discard_conns(slot.number))
        self._means.keeping.store(stored_memory(slot))
        if slot.spare is not None:
            slot.spare.kill(signal.SIGKILL)  # it has the old one

    async def _watch(self) -> None:
        """Kill a worker whose heartbeat stands still: its end is then noticed like any other."""
        watch = Watch(time.monotonic())
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            watch.look(now)
            for slot in self.slots:
                process, spare = slot.process, slot.spare
                if process is not None and not process.ended.is_set():
                    beat = max(slot.beat(), process.since)
                    if watch.hung(now, beat, busy=process.busy):
                        self._kill_hung(slot, process, now - beat)
                # A spare that is not asked anything waits, which does not show.
                if spare is not None and spare.busy and watch.hung(now, spare.since, busy=True):
                    self._kill_hung(slot, spare, now - spare.since)

    def _kill_hung(self, slot: Slot, process: Process, silent_s: float) -> None:
        self.log.error(
            "worker_hung", worker=slot.number, pid=process.pid, silent_s=round(silent_s, 2)
        )
        process.kill(signal.SIGKILL)

    # -- orders

    def _living(self) -> list[Process]:
        return [slot.process for slot in self.slots if slot.process is not None]

    def _spares(self) -> list[Process]:
        return [slot.spare for slot in self.slots if slot.spare is not None]

    async def configure(self, applied: Applied, serial: int) -> None:
        """Have every worker apply a configuration. One that is down gets it at its boot."""
        payload = put_blob(encode_pieces(applied))
        try:
            answers = [
                process.ask("config", "applied", [payload], serial=serial)
                for process in self._living()
            ]
            for spare in self._spares():
                spare.ask("config", "applied", [payload], serial=serial)
        finally:
            os.close(payload)
        await asyncio.gather(*answers)

    def tell_port(self, index: int, generation: int, queues: Sequence[int]) -> None:
        """The device of a port was made anew; ``queues`` are its, by worker."""
        for slot in self.slots:
            for process in (slot.process, slot.spare):
                if process is not None:
                    fd = queues[slot.number]
                    process.tell("port", [fd], index=index, generation=generation)

    def tell_active(self, index: int) -> None:
        """The device of this port is the active one of its bond from now on."""
        for slot in self.slots:
            for process in (slot.process, slot.spare):
                if process is not None:
                    process.tell("active", index=index)

    async def quiesce(self) -> None:
        """No new conns from here on; counters are up to date afterwards."""
        for spare in self._spares():
            spare.tell("quiesce")
        answers = [process.ask("quiesce", "quiesced") for process in self._living()]
        if answers:
            await asyncio.wait(answers, timeout=STOP_S)

    async def stop(self) -> None:
        """End every process, those of a former supervisor included."""
        for task in self._tasks:
            task.cancel()
        for spare in self._spares():
            spare.kill(signal.SIGKILL)
        processes = [
            *self._living(),
            *self._spares(),
            *(p for slot in self.slots for p in slot.predecessors),
        ]
        for process in processes:
            process.stop()
        await asyncio.gather(*(process.end(STOP_S) for process in processes))

    async def abandon(self) -> None:
        """End the processes that have not gone yet: a start failed, and its predecessors go on."""
        for task in self._tasks:
            task.cancel()
        waiting = [process for process in self._living() if not process.gone]
        for process in waiting:
            process.kill(signal.SIGKILL)
        await asyncio.gather(*(process.ended.wait() for process in waiting))

    # -- looking in

    def counted(self) -> dict[str, int]:
        """All counters, summed over the workers."""
        total: Counter[str] = Counter()
        for slot in self.slots:
            total.update(slot.counters.snapshot())
        return dict(total)

    def gauged(self) -> dict[str, int]:
        """Gauges beside the counters. Every worker knows the same neighbours."""

        def values(gauge: Gauge) -> list[int]:
            return [slot.counters.gauge(gauge) for slot in self.slots]

        return {
            "conns": sum(values(Gauge.CONNS)),
            "conn_max": sum(slot.shared.conn_max for slot in self.slots),
            "neighs": max(values(Gauge.NEIGHS)),
            "lport_pools": sum(values(Gauge.LPORT_POOLS)),
        }


def stored_memory(slot: Slot) -> dict[str, int]:
    """The names by which the keeper has a worker's memory."""
    return {
        f"conns/{slot.number}": slot.shared.conns_fd,
        f"stats/{slot.number}": slot.shared.stats_fd,
    }


def stored_mailbox(slot: Slot) -> dict[str, int]:
    return {
        f"mailbox/{slot.number}/read": slot.mailbox[0],
        f"mailbox/{slot.number}/write": slot.mailbox[1],
    }
