"""The supervisor's run: signals, reloads, lost devices, and the end."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Iterable

import tunlb
from tunlb import links
from tunlb.boot import Boot, Calls, calls_of
from tunlb.channel import put_blob
from tunlb.conf import Config, ConfigError, IPAddress, diff, live, load
from tunlb.ipvs.sharding import shard_keys
from tunlb.keeper.client import KeeperError
from tunlb.log import Logger, LogSettings
from tunlb.netif import LADDR
from tunlb.privileges import lookup_user, mapped
from tunlb.steering import Steering, SteeringError
from tunlb.supervisor import start as starting
from tunlb.supervisor import upgrade
from tunlb.supervisor.errors import StartError
from tunlb.supervisor.fleet import Fleet, Means
from tunlb.supervisor.keeping import Keeping
from tunlb.supervisor.process import Message, Process
from tunlb.supervisor.saving import Saving
from tunlb.supervisor.start import Options, Start
from tunlb.supervisor.state import write_state
from tunlb.supervisor.status import StatusSocket
from tunlb.supervisor.trial import Trial
from tunlb.tap import DeviceError
from tunlb.wiring import owned

REOPEN_FIRST_S = 0.2
REOPEN_MAX_S = 30.0
LOG_VARIABLES = ("TUNLB_LOG_LEVEL", "TUNLB_LOG_FORMAT")


class Supervisor:
    """One run of tunlb with one configuration file."""

    def __init__(self, options: Options, settings: LogSettings, log: Logger) -> None:
        self.options = options
        self.log = log
        self._settings = settings
        self._phase = "starting"
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._reload_wanted = asyncio.Event()
        self._upgrade_wanted = asyncio.Event()
        # One after the other: reloads, devices made anew, looks at the routes, an upgrade.
        self._changing = asyncio.Lock()
        self._reopening: set[int] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self._steering: Steering | None = None
        self._no_steering = ""

    # -- start

    def listen(self) -> None:
        """Take signals from here on; one that comes during the start is answered after it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        loop.add_signal_handler(signal.SIGUSR2, self._upgrade_wanted.set)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._terminate)
        # Held back while one program became the next.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, upgrade.SIGNALS)

    async def run(self) -> int:
        """Start, and forward until told to stop; the exit status."""
        keeping = Keeping(calls_of(self.options.config).modules(), self.log)
        try:
            begun = await asyncio.to_thread(self._begin, keeping)
        except BaseException:
            await asyncio.to_thread(keeping.close)
            raise
        await self._forward(begun)
        self._say_ready()
        status = self._answer_who_asks()
        self._phase = "ready"
        for task in (self._reloader(), self._upgrader(), links.watch(self._recheck)):
            self._run(task)
        if any(line.backup_of is not None for line in self.state.config.ports):
            self._recheck()  # what was unplugged before we watched is no news to come
        self._saving.plan(self.state)
        await self._stop.wait()
        if self._failure is not None:
            # Our bug. Whoever starts us again takes over; nothing here is to be trusted with that.
            raise self._failure
        self._phase = "stopping"
        status.close()
        await self._end()
        self.log.info("stopped", **self.fleet.gauged(), counters=self.fleet.counted())
        return 0

    def _begin(self, keeping: Keeping) -> Start:
        """Everything that may fail or block, before the workers start."""
        keeper = starting.find_keeper(self.options.control)
        try:
            keeping.spawn()  # its imports run while we go on
            if keeper is None:
                return starting.begin(self.options, keeping, self.log)
            return starting.take_over(self.options, keeping, keeper, self.log)
        except BaseException as error:
            if keeper is not None:
                keeper.close()
            if isinstance(error, KeeperError):
                raise StartError(str(error)) from error
            raise

    async def _forward(self, begun: Start) -> None:
        """Workers that forward, and a keeper that a successor finds."""
        self.state = begun.state
        self.ports = begun.ports
        self.keeping = begun.keeping
        self._user = begun.user
        former = begun.former
        cpus = sorted(os.sched_getaffinity(0))
        means = Means(self.keeping, begun.user, cpus, self._boot, self.ports.queues)
        self.fleet = Fleet(begun.slots, means, self.log, self._heard, self.save, self._done)
        self._saving = Saving(begun.slots, self.log, self._done)
        try:
            self._steer()
            self.save()
            await asyncio.to_thread(self.keeping.fill)
            if former is not None:
                for pid, worker in former.pids.items():
                    self.fleet.take_over(worker, Process(pid, None, self._ignore))
            await self.fleet.prepare()
            await asyncio.to_thread(starting.release, begun, self.options.control)
            gaps = await self.fleet.go()
        except BaseException as error:
            await self._abandon(begun)
            if isinstance(error, KeeperError):
                raise StartError(str(error)) from error
            raise
        self.keeping.watch()
        self.save()
        if former is not None:
            self._say_taken_over(former, gaps)

    async def _abandon(self, begun: Start) -> None:
        former = begun.former
        if former is None:
            await self.fleet.stop()
        else:
            await self.fleet.abandon()
            former.keeper.close()
        await asyncio.to_thread(starting.give_up, begun)

    def _boot(self, worker: int) -> Boot:
        state = self.state
        return Boot(
            worker=worker,
            workers=state.workers,
            secret=state.secret,
            seed=state.seed,
            macs=state.macs,
            history=state.history,
            generations=tuple(self.ports.generations),
            active=state.active,
            quiescent=state.quiescent,
            environ={k: v for k, v in self.options.environ.items() if k in LOG_VARIABLES},
        )

    def save(self) -> None:
        """Leave with the keeper what a successor needs."""
        for slot in self.fleet.slots:
            if slot.process is not None and slot.process.gone:
                self.state.pids[slot.number] = slot.process.pid
        self.keeping.store({"state": put_blob(write_state(self.state))})

    def _answer_who_asks(self) -> StatusSocket:
        return StatusSocket(
            self.options.control,
            lambda: {
                "pid": os.getpid(),
                "version": tunlb.__version__,
                "phase": self._phase,
                "upgrade": upgrade.told(self.state.upgrade),
            },
        )

    # -- what is logged of a start

    def _say_ready(self) -> None:
        build = tunlb.build()
        if build == "uncompiled":
            self.log.warning(
                "uncompiled",
                message="running uncompiled: correct, at about a quarter of the packet rate; "
                "install a C compiler and the Python headers, then reinstall",
            )
        state = self.state
        self.log.info(
            "ready",
            version=tunlb.__version__,
            build=build,
            workers=state.workers,
            user=_workers_user(str(state.config.tunlb.user)),
            steering=self._steering is not None,
            config=str(self.options.path),
            ports=[
                {
                    "name": line.name,
                    "mac": mac_text(state.macs.get(line.name)),
                    "offloads": list(state.offloads.get(line.name, ())),
                }
                for line in state.config.ports
            ],
            services=len(state.config.services),
        )

    def _say_taken_over(self, former: starting.Former, gaps: list[float]) -> None:
        fields = {
            "from_version": former.version,
            "workers": self.state.workers,
            "conns": self.fleet.gauged()["conns"],
            "gap_ms": gaps,
            "needs_restart": list(former.difference.restart_keys),
        }
        order = self.state.upgrade
        if order.outcome == "wanted" and order.by_pid == os.getpid():
            order.outcome = "upgraded"
            order.text = f"{former.version} -> {tunlb.__version__}"
            self.save()
            self.log.info("upgraded", **fields)
        else:
            self.log.info("taken_over", **fields)

    # -- the end

    def _terminate(self) -> None:
        grace = self.options.config.tunlb.stop_grace_s
        if self._phase == "ready":
            grace = self.state.config.tunlb.stop_grace_s
        if self._phase != "ready" or grace <= 0:
            self._stop.set()
            return
        self._phase = "stopping"
        self._run(self._quiesce(grace))

    async def _quiesce(self, grace: float) -> None:
        self.state.quiescent = True
        await self.fleet.quiesce()
        self.log.info("stopping", grace_s=grace, conns=self.fleet.gauged()["conns"])
        self.save()
        await asyncio.sleep(grace)
        self._stop.set()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._saving.cancel()
        await self.fleet.stop()
        await self._saving.write(self.state)
        self.keeping.unwatch()
        # netlink blocks, and refuses to on a thread that runs a loop
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self.keeping.close()
        self.ports.close()

    def _run(self, task: Awaitable[None]) -> None:
        """In the background; an exception there that nobody expected ends the supervisor."""
        made = asyncio.ensure_future(task)
        self._tasks.add(made)
        made.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._stop.set()

    # -- what workers say

    def _ignore(self, process: Process, message: Message) -> None:
        pass

    def _heard(self, message: Message) -> None:
        """What a worker says is not trusted: it may be in wrong hands."""
        if message.get("kind") != "port_lost":
            return
        for index, generation in enumerate(self.ports.generations):
            known = message.get("index") == index and message.get("generation") == generation
            if known and index not in self._reopening:
                self._reopening.add(index)
                self._run(self._recover(index))

    async def _recover(self, index: int) -> None:
        """Make a lost device anew, and give every worker its queue."""
        name = self.ports.names[index]
        self.log.error(
            "port_lost",
            port=name,
            hint="the device was deleted; conns are kept, it is made anew as soon as possible",
        )
        delay = REOPEN_FIRST_S
        while True:
            try:
                async with self._changing:
                    fresh = await asyncio.to_thread(self.ports.reopen, index)
                    break
            except DeviceError as error:
                self.log.warning(
                    "port_reopen_failed", port=name, error=str(error), retry_s=round(delay, 1)
                )
            await asyncio.sleep(delay)
            delay = min(REOPEN_MAX_S, delay * 2)
        self.keeping.store(fresh)
        self.ports.generations[index] += 1
        self._reopening.discard(index)
        self.fleet.tell_port(index, self.ports.generations[index], list(fresh.values()))
        self._steer()
        self.save()
        self.log.info("port_recovered", port=name)

    # -- reload

    async def _reloader(self) -> None:
        """Apply SIGHUPs one after the other; those that come meanwhile become one more."""
        while True:
            await self._reload_wanted.wait()
            async with self._changing:
                self._reload_wanted.clear()
                await self._reload()

    async def _reload(self) -> None:
        path, state = self.options.path, self.state
        try:
            config = await asyncio.to_thread(load, path)
            difference = diff(state.config, config)
            config = live(state.config, config)
            await asyncio.to_thread(self.ports.admit, config)
            await self._try(calls_of(config).without(calls_of(state.config)))
            drain_s = self.ports.keep_routes(state.config, config)
            applied = starting.apply(state, config, self.fleet.slots)
        except ConfigError as error:
            self._refuse_reload(error.lines())
            return
        # Netlink and the file system have errors of many types, and none may end this task: the
        # running configuration goes on and the next SIGHUP is heard.
        except Exception as error:
            self._refuse_reload([str(error) or type(error).__name__])
            return
        if drain_s is not None:
            asyncio.get_running_loop().call_later(drain_s + 1, self._recheck)
        self._settings.apply(config.tunlb)
        self._steer()
        await self.fleet.configure(applied, state.serial)
        self.save()
        self._saving.plan(state)
        self.log.info(
            "reloaded",
            config=str(path),
            services=len(config.services),
            needs_restart=list(difference.restart_keys),
        )

    async def _try(self, calls: Calls) -> None:
        """Raises StartError, KeeperError when what a reload brings cannot be had."""
        if calls:
            trial = Trial(calls, self.keeping, self._user)
            try:
                await asyncio.to_thread(trial.wait)
            finally:
                trial.close()

    def _refuse_reload(self, problems: list[str]) -> None:
        self.log.error("reload_refused", config=str(self.options.path), problems=problems)

    def _recheck(self) -> None:
        """The kernel's links or routes changed, or addresses have drained."""
        if self._phase == "ready":
            self._run(self._look_again())

    async def _look_again(self) -> None:
        async with self._changing:
            await asyncio.to_thread(self.ports.look_again)
            elected = await asyncio.to_thread(self.ports.elect)
            for index in elected:
                self.fleet.tell_active(index)
            if elected:
                self.save()

    def _steer(self) -> None:
        """Tell the kernel which worker's queue a frame belongs to, where there are several."""
        state = self.state
        if state.workers == 1 or not state.config.tunlb.steering:
            return
        steering = self._steering or Steering(state.workers, shard_keys(state.secret))
        vips, laddrs = steered(applied.config for applied in state.history)
        try:
            steering.install(self.ports.heads(), vips, laddrs)
        except SteeringError as error:
            if str(error) != self._no_steering:
                self.log.warning("steering_unavailable", error=str(error))
            self._no_steering = str(error)
            return
        self._steering, self._no_steering = steering, ""

    # -- upgrade

    async def _upgrader(self) -> None:
        while True:
            await self._upgrade_wanted.wait()
            async with self._changing:
                self._upgrade_wanted.clear()
                if self._phase == "ready":
                    await self._replace_program()

    async def _replace_program(self) -> None:
        order = self.state.upgrade
        order.number += 1
        order.outcome, order.text = "wanted", ""
        order.from_version, order.by_pid = tunlb.__version__, os.getpid()
        self.save()
        names = ("state", "conns/0", "stats/0")
        fds = [self.keeping.stored[name] for name in names]
        problem = await asyncio.to_thread(upgrade.try_next, fds)
        if problem is None:
            self.log.info("upgrading", version=tunlb.__version__)
            problem = upgrade.become_next()
        order.outcome, order.text = "refused", problem
        self.save()
        self.log.error("upgrade_refused", error=problem)


def steered(configs: Iterable[Config]) -> tuple[set[IPAddress], set[IPAddress]]:
    """What is ours but no laddr of fnat, and these: of all configurations that may still drain."""
    ours: set[IPAddress] = set()
    laddrs: set[IPAddress] = set()
    for config in configs:
        for port in config.ports:
            ours.update(interface.ip for _, found in port.subports() for interface in found)
            if port.host is not None:
                ours.update(interface.ip for interface in port.host_addresses)
        for service in config.services:
            for kind, address in owned(service):
                (laddrs if kind == LADDR else ours).add(address)
    return ours, laddrs


def _workers_user(configured: str) -> str:
    """Whom workers run as: who started us, where nobody may become another."""
    own = os.geteuid()
    if own == 0 and mapped(lookup_user(configured)[0]):
        return configured
    return str(own)


def mac_text(mac: int | None) -> str:
    return "" if mac is None else mac.to_bytes(6, "big").hex(":")


def main(options: Options, settings: LogSettings, log: Logger) -> int:
    """Run tunlb; raises DeviceError or StartError when it cannot start."""
    import uvloop

    async def run() -> int:
        supervisor = Supervisor(options, settings, log)
        supervisor.listen()
        return await supervisor.run()

    # Some ten descriptors a worker, which is more than the usual limit with many of them.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    status: int = uvloop.run(run())
    return status
