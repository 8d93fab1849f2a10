"""The worker: a process with one event loop that moves frames and lets the director's time pass.

The director knows no clock and no descriptor; this is where it gets both. Whatever needs privilege
or may block (netlink, opening a device) is the supervisor's, which is at the other end of the
channel. When it is gone the worker goes on forwarding: only then SIGTERM ends it.

What takes long (a new configuration) is done in pieces between bursts, see tunlb/pace.py.

A worker is *prepared* first, which takes milliseconds and touches nothing that a predecessor still
uses, and *goes* when it is told to: it takes over the rows of its table and reads its queues.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import inspect
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tunlb.boot import BOOT, CALLS, Boot, Calls, decode_pieces
from tunlb.channel import Channel, ChannelClosed, blob_lines, get_blob
from tunlb.conf import Hook as HookConf
from tunlb.counters import Counters, Event
from tunlb.director import Director
from tunlb.hook import Hook, Point
from tunlb.ipvs import sched
from tunlb.ipvs.conn import ConnTable, hash_secret
from tunlb.ipvs.sharding import Sharding, shard_keys
from tunlb.log import Logger, LogSettings, make_logger
from tunlb.mailbox import Mailbox
from tunlb.pace import Pace
from tunlb.shared import LayoutError, Shared, map_stats
from tunlb.tap import Drain, Port, monotonic_ms

TICK_S = 0.1
HOOK_LOG_INTERVAL_S = 1.0
EXIT_UNPREPARED = 78  #: the supervisor was told why

_PR_SET_NAME = 15  # linux/prctl.h

Message = dict[str, Any]


class HookError(Exception):
    """A hook of the configuration cannot be had; the text says what to do."""


def load_hook(line: HookConf) -> Hook:
    """The hook object of a configuration line."""
    module_name, _, class_name = line.call.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    # More than Exception: a module that is also a program raises SystemExit
    except BaseException as error:
        hint = "the module must be importable: install its package, or set PYTHONPATH"
        raise _refused(line, error, hint) from error
    if not (isinstance(cls, type) and issubclass(cls, Hook)):
        raise HookError(f"hook {line.call}: {class_name} is not a subclass of tunlb.hook.Hook")
    if cls.run is Hook.run or inspect.iscoroutinefunction(cls.run):
        raise HookError(
            f"hook {line.call}: {class_name} needs a method run(self, pkt, now), "
            "which is no coroutine"
        )
    try:
        hook = cls()
        hook.point = Point[line.point.upper()]
        hook.priority = line.priority
    except BaseException as error:
        hint = "the class is made without arguments, and its point and priority are set"
        raise _refused(line, error, hint) from error
    return hook


def attempts(calls: Calls) -> Iterator[str]:
    """Tries to have each of ``calls``, and says which before it does. Raises HookError,
    SchedulerError.
    """
    for line in calls.hooks:
        yield f"hook {line.call}"
        load_hook(line)
    for name in calls.schedulers:
        yield f"scheduler {name}"
        sched.trial(name)


def _refused(line: HookConf, error: BaseException, hint: str) -> HookError:
    return HookError(f"hook {line.call}: {type(error).__name__}: {error} ({hint})")


class HookErrors:
    """One log line a second at most for each hook that raises."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._logged: dict[int, float] = {}

    def __call__(self, hook: object, error: Exception) -> None:
        now = time.monotonic()
        if now - self._logged.get(id(hook), -HOOK_LOG_INTERVAL_S) < HOOK_LOG_INTERVAL_S:
            return
        self._logged[id(hook)] = now
        self._log.error("hook_error", hook=type(hook).__name__, exc_info=error)


class Worker:
    """Runs a director on ports, indexed by ``Netif.queue``.

    ``on_lost`` is told the index of a port whose device is gone for good; :meth:`replace` brings a
    new queue. ``standby`` are the indexes of those that are not the active device of their bond.
    ``pace`` runs what the director leaves to do between bursts.
    """

    def __init__(
        self,
        director: Director,
        ports: Sequence[Port],
        on_lost: Callable[[int], None],
        pace: Pace,
        mailbox: Mailbox | None = None,
        standby: Iterable[int] = (),
    ) -> None:
        self.director = director
        self.mailbox = mailbox
        self.pace = pace
        self.drain = Drain(director, ports, self._lost, mailbox)
        self._standby = set(standby)
        self._on_lost = on_lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._waker: asyncio.TimerHandle | None = None
        self._waking = 0  # when, while there is a waker
        self.drain.on_wake = self._wake_at

    def start(self) -> None:
        """Begin to forward; call it on the running loop."""
        self._loop = asyncio.get_running_loop()
        for index in range(len(self.drain.ports)):
            self._watch(index)
        if self.mailbox is not None:
            self._loop.add_reader(self.mailbox.fd, self.drain.mail)
        self._tick()

    def stop(self) -> None:
        """Forward nothing more; descriptors are left open for their owner."""
        if self._loop is None:
            return
        for timer in (self._ticker, self._waker):
            if timer is not None:
                timer.cancel()
        for port in self.drain.ports:
            if port.fd >= 0:
                self._loop.remove_reader(port.fd)
        if self.mailbox is not None:
            self._loop.remove_reader(self.mailbox.fd)
        self.director.tick(monotonic_ms())

    def replace(self, index: int, fd: int) -> None:
        """The device of a port was made anew: go on with its queue ``fd``."""
        old = self.drain.ports[index]
        if old.fd >= 0:
            if self._loop is not None:
                self._loop.remove_reader(old.fd)
            old.close()
        port = Port(old.netif, fd, old.counters, old.offloads)
        self.drain.ports[index] = port
        self._watch(index)
        self.director.announce(monotonic_ms())

    def activate(self, index: int) -> None:
        """This device takes the place of the active one of its bond."""
        carried = self.director.carried
        former = [i for i, netif in enumerate(carried) if netif is carried[index] and i != index]
        self._standby.update(former)
        self._standby.discard(index)
        if self._loop is not None:
            for i in former:
                if self.drain.ports[i].fd >= 0:
                    self._loop.remove_reader(self.drain.ports[i].fd)
        self.drain.discard(self.drain.ports[index])
        self.director.activate(index, monotonic_ms())
        self._watch(index)

    def _watch(self, index: int) -> None:
        port = self.drain.ports[index]
        if self._loop is not None and port.fd >= 0 and index not in self._standby:
            self._loop.add_reader(port.fd, self.drain.readable, port)

    def _tick(self) -> None:
        assert self._loop is not None
        self.director.tick(monotonic_ms())
        self.drain.flush()
        # One who is at it already does this as well.
        if self.director.busy and not self.pace.busy:
            self.pace.add(self._steps())
        for index, port in enumerate(self.drain.ports):
            if port.fd < 0:
                continue
            # A reader is told once that its device was deleted, and a read at that very moment may
            # find it only empty (see tunlb/tap.py).
            if index in self._standby:
                self.drain.discard(port)
            elif not port.lost:
                self.drain.run(port, monotonic_ms(), 1)
            if port.lost:
                self._lost(port)
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _wake_at(self, at: int) -> None:
        """The director has something to do at ``at`` (ms), which is before its next tick."""
        if self._loop is None or (self._waker is not None and self._waking <= at):
            return
        if self._waker is not None:
            self._waker.cancel()
        self._waking = at
        delay_ms = max(1, at - monotonic_ms())
        self._waker = self._loop.call_later(delay_ms / 1000, self._wake)

    def _wake(self) -> None:
        self._waker = None
        self.director.wake(monotonic_ms())
        self.drain.flush()

    def _steps(self) -> Iterator[None]:
        while self.director.step():
            self.drain.flush()  # RSTs, where it ends conns
            yield

    def _lost(self, port: Port) -> None:
        assert self._loop is not None
        self._loop.remove_reader(port.fd)
        port.close()
        self._on_lost(self.drain.ports.index(port))


class WorkerLife:
    """From the boot message to the end."""

    def __init__(self, channel: Channel) -> None:
        self._channel: Channel | None = channel
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._status = 0
        self._worker: Worker | None = None
        self._pace = Pace(self._fail)
        self._gone = False
        self._hear: dict[str, Callable[[Message, list[int]], None]] = {
            "try": self._try,
            "boot": self._boot,
            "go": self._go,
            "config": self._config,
            "port": self._port,
            "active": self._active,
            "quiesce": self._quiesce,
            "stop": self._stop,
        }

    async def run(self) -> int:
        """Live; the exit status."""
        assert self._channel is not None
        loop = asyncio.get_running_loop()
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_reader(self._channel.fileno(), self._readable)
        await self._ended.wait()
        self._pace.stop()
        if self._worker is not None:
            self._worker.stop()
        if self._failure is not None:
            raise self._failure
        return self._status

    def _readable(self) -> None:
        assert self._channel is not None
        try:
            message, fds = self._channel.receive()
            self._hear[message["kind"]](message, fds)
        except ChannelClosed:
            self._orphaned()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        # Half of a message done is no state to go on in: the successor begins anew.
        self._failure = error
        self._ended.set()

    def _say(self, kind: str, **fields: object) -> None:
        if self._channel is not None:
            # Its end of the channel is read next, and says the same.
            with contextlib.suppress(ChannelClosed):
                self._channel.send({"kind": kind, **fields})

    def _orphaned(self) -> None:
        """The supervisor is gone. Who does not forward yet has nothing to go on with."""
        assert self._channel is not None
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        self._channel = None
        if not self._gone:
            self._ended.set()

    def _terminate(self) -> None:
        if self._channel is None:
            self._ended.set()

    # -- what the supervisor says

    def _try(self, message: Message, fds: list[int]) -> None:
        """Can users' code be had? Asked before anything is set up for which that would matter."""
        del message
        try:
            calls = CALLS.decode(_payload(fds[0]))
            for what in attempts(calls):
                self._say("trying", what=what)
        except (HookError, sched.SchedulerError) as error:
            self._say("failed", error=str(error))
        else:
            self._say("fine")
        self._ended.set()

    def _boot(self, message: Message, fds: list[int]) -> None:
        del message
        boot = BOOT.decode(_payload(fds[0]))
        config = boot.history[-1].config
        self._settings = LogSettings(config.tunlb, boot.environ)
        self._log = make_logger(self._settings, boot.environ).bind(worker=boot.worker)
        self._generations = list(boot.generations)
        try:
            self._worker = self._prepare(boot, fds[1:])
        except (HookError, sched.SchedulerError, LayoutError) as error:
            self._say("failed", error=str(error))
            self._status = EXIT_UNPREPARED
            self._ended.set()
            return
        # What lives now lives until the end: never walk it again in the middle of a burst.
        gc.freeze()
        self._say("prepared")

    def _prepare(self, boot: Boot, fds: list[int]) -> Worker:
        """The director, with the configurations before the present one replayed. ``fds``: conns,
        stats, this worker's mailbox, every worker's mailbox to write to, every worker's stats, the
        queue of each port.
        """
        conns_fd, stats_fd, mail_fd, *rest = fds
        first, *later = boot.history
        self.number = boot.worker
        shared = Shared.attach(conns_fd, stats_fd)
        writers, rest = rest[: boot.workers], rest[boot.workers :]
        stats, queues = rest[: boot.workers], rest[boot.workers :]
        fleet = [map_stats(fd) for fd in stats]
        for fd in stats:
            os.close(fd)
        hooks = [load_hook(line) for line in first.config.hooks]
        counters = Counters(shared.counters)
        director = Director(
            first.config,
            boot.macs,
            ConnTable(shared.conn_max, hash_secret(boot.secret), shared.conns),
            counters,
            seed=boot.seed,
            on_error=HookErrors(self._log),
            hooks=hooks,
            dest_stats=shared.dests,
            neigh_rows=shared.neighs,
            fleet=[each.dests for each in fleet],
            rates=fleet[0].rates,
            sharding=(
                Sharding(boot.workers, boot.worker, shard_keys(boot.secret))
                if boot.workers > 1
                else None
            ),
        )
        shared.close_fds()
        director.start(first.at_ms, first.numbers())
        for applied in later:
            director.apply(applied.config, applied.at_ms, applied.numbers())
        director.ipvs.birth.quiescent = boot.quiescent
        for queue in boot.active:
            director.activate(queue, first.at_ms)
        ports = [
            Port(netif, fd, counters) for netif, fd in zip(director.carried, queues, strict=True)
        ]
        standby = [i for i, netif in enumerate(director.carried) if netif.queue != i]
        mailbox = Mailbox(mail_fd, writers, counters) if boot.workers > 1 else None
        self._keep = (shared, mail_fd)
        return Worker(director, ports, self._lost, self._pace, mailbox, standby)

    def _go(self, message: Message, fds: list[int]) -> None:
        del fds
        assert self._worker is not None
        self._gone = True
        take_place(message["name"], message["cpu"])
        # The predecessor's conns may be to dests of the configuration that is being applied.
        self._pace.finish()
        now = monotonic_ms()
        adopted = self._worker.director.adopt(now)
        # The replayed configurations announced themselves long ago, as far as the director knows.
        self._worker.director.announce(now)
        self._worker.start()
        self._say("ready", kept=adopted.kept, dropped=adopted.dropped)

    def _config(self, message: Message, fds: list[int]) -> None:
        self._pace.add(self._applying(fds[0], message["serial"]))

    def _applying(self, fd: int, serial: int) -> Iterator[None]:
        assert self._worker is not None
        director = self._worker.director
        try:
            arrived = yield from decode_pieces(blob_lines(fd))
        finally:
            os.close(fd)
        tunlb = arrived.config.tunlb
        director.begin(arrived.config, arrived.at_ms, arrived.numbers)
        # The director frees it in pieces, if it is the last to have it.
        del arrived
        while director.step():
            self._worker.drain.flush()
            yield
        self._settings.apply(tunlb)
        self._say("applied", serial=serial)

    def _port(self, message: Message, fds: list[int]) -> None:
        assert self._worker is not None
        index = message["index"]
        self._generations[index] = message["generation"]
        self._worker.replace(index, fds[0])

    def _active(self, message: Message, fds: list[int]) -> None:
        del fds
        assert self._worker is not None
        self._worker.activate(message["index"])

    def _quiesce(self, message: Message, fds: list[int]) -> None:
        del message, fds
        assert self._worker is not None
        self._worker.director.ipvs.birth.quiescent = True
        # A spare has no conns to count, and the counters are those of the one that goes.
        if self._gone:
            self._worker.director.tick(monotonic_ms())
        self._say("quiesced")

    def _stop(self, message: Message, fds: list[int]) -> None:
        del message, fds
        self._ended.set()

    # -- what it says itself

    def _lost(self, index: int) -> None:
        assert self._worker is not None
        if self.number == 0:  # every worker lost its queue of one and the same device
            self._worker.director.counters.add(Event.NETIF_LOST, 1)
        self._say("port_lost", index=index, generation=self._generations[index])


def take_place(name: str, cpu: int | None) -> None:
    """Become the one that is called ``name``, on a core of its own if ``cpu`` says which."""
    # Not by /proc/self/comm: who changed their user does not own that any more.
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    if cpu is not None:
        # The core was taken away: better on any other than not at all.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, (cpu,))


def _payload(fd: int) -> bytes:
    try:
        return get_blob(fd)
    finally:
        os.close(fd)


def work(channel: Channel) -> int:
    """The life of a worker process; its exit status."""
    import uvloop

    status: int = uvloop.run(WorkerLife(channel).run())
    return status
