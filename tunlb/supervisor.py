"""The supervisor: owns configuration, devices and the kernel's set-up; starts, reloads and stops
the worker.

It never touches a frame. What a worker needs from it crosses one boundary: a Config, open ports,
and two shared buffers (conn rows and counters, each in a memfd), so that the worker's state
outlives the worker.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import secrets
import signal
import threading
import time
from hashlib import blake2b
from pathlib import Path

import tunlb
from tunlb import links
from tunlb.conf import Config, ConfigError, IPAddress, diff, live, load
from tunlb.conf import Hook as HookConf
from tunlb.conf import Port as PortConf
from tunlb.counters import Counters
from tunlb.director import Director, owned
from tunlb.hook import Hook, Point
from tunlb.ipvs.conn import ConnTable, hash_secret
from tunlb.log import Logger, LogSettings
from tunlb.loop import Worker
from tunlb.netif import Netif
from tunlb.shared import Shared
from tunlb.tap import Device, DeviceError, Port, monotonic_ms, open_device

HOOK_LOG_INTERVAL_S = 1.0


class StartError(Exception):
    """tunlb cannot start as configured; the text says what to do."""


def load_hook(line: HookConf) -> Hook:
    """The hook object of a configuration line; StartError when it cannot be had."""
    module_name, _, class_name = line.call.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
        hook = cls()
    except Exception as error:
        raise StartError(
            f"hook {line.call}: {type(error).__name__}: {error} "
            "(the module must be importable: set PYTHONPATH; the class takes no arguments)"
        ) from error
    if not isinstance(hook, Hook):
        raise StartError(f"hook {line.call}: {class_name} is not a subclass of tunlb.hook.Hook")
    hook.point = Point[line.point.upper()]
    hook.priority = line.priority
    return hook


def service_addresses(config: Config) -> frozenset[IPAddress]:
    """Every VIP and laddr."""
    return frozenset(address for service in config.services for _, address in owned(service))


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


class Supervisor:
    """One run of tunlb with one configuration file."""

    def __init__(
        self,
        path: Path,
        config: Config,
        settings: LogSettings,
        log: Logger,
        *,
        force: bool = False,
    ) -> None:
        self.path = path
        self._settings = settings
        self.config = config
        self.log = log
        self.force = force or config.tunlb.force
        self.ports: list[Port] = []
        self._macs: dict[str, int] = {}
        self._undo: list[links.Change] = []
        # Threads set up the kernel's side: reloads, devices made anew, changes made by others.
        self._setup = threading.Lock()
        self._closed = False
        self._director: Director | None = None  # once it forwards
        self._stop = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._stopping = False
        self._loop_problems: set[str] = set()
        self._draining: list[tuple[float, frozenset[IPAddress]]] = []

    # -- start

    def prepare(self) -> Director:
        """Devices, links, routes and the director; everything that may fail or block, before the
        loop starts.
        """
        hooks = [load_hook(line) for line in self.config.hooks]
        conn_max = self.config.tunlb.conn_max
        memory = Shared.create(0, conn_max)
        counters = Counters(memory.counters)
        conns = ConnTable(conn_max, hash_secret(secrets.token_bytes(32)), memory.conns)
        devices = []
        for line in self.config.ports:
            devices.append(self._open(line))
            if line.type == "tap":
                self._macs[line.name] = self._mac(line)
        director = Director(
            self.config,
            self._macs,
            conns,
            counters,
            seed=self._seed(),
            on_error=HookErrors(self.log),
            hooks=hooks,
            dest_stats=memory.dests,
            neigh_rows=memory.neighs,
        )
        self.ports = [
            Port(netif, device.fd, counters, device.offloads)
            for netif, device in zip(director.netifs, devices, strict=True)
        ]
        self._install_routes(self.config)
        self._refuse_loops(self.config)
        return director

    def _open(self, line: PortConf) -> Device:
        device = open_device(line.name, tun=line.type == "tun", offload=line.offload)
        try:
            self._changed(links.configure_port(line))
        except BaseException:
            os.close(device.fd)
            raise
        return device

    def _changed(self, setup: links.Setup) -> None:
        # A link that flaps has its routes put back each time, and taken back once.
        fresh = [change for change in setup.undo if change not in self._undo]
        self._undo = [*fresh, *self._undo]
        for command in setup.changed:
            self.log.debug("configured", command=command)
        for warning in setup.warnings:
            self.log.warning("not_configured", message=warning)

    def _mac(self, line: PortConf) -> int:
        link = links.find_link(line.name)
        if link is None:
            raise DeviceError(f"{line.name} vanished while it was set up")
        if line.mac is None:
            return links.derive_mac(link.mac, line.name)
        if bytes(line.mac) == link.mac:
            raise DeviceError(
                f"{line.name}: the configured mac {line.mac} is the kernel side's",
                "choose another one",
            )
        return int.from_bytes(line.mac, "big")

    def _seed(self) -> int:
        """64 bits for consistent hashing: of the configured seed, which nodes share, or random."""
        text = self.config.tunlb.seed
        material = (
            secrets.token_bytes(8)
            if text is None
            else bytes.fromhex(text.zfill(len(text) + len(text) % 2))
        )
        return int.from_bytes(blake2b(material, digest_size=8, person=b"tunlb").digest(), "big")

    def _install_routes(self, config: Config) -> links.Setup | None:
        """Route into the TUN what no TAP's subnet holds: addresses of ``config``, of the running
        configuration, and of services that still drain.
        """
        tun = next((line for line in config.ports if line.type == "tun"), None)
        if tun is None:
            return None
        on_link = [
            interface.network
            for line in config.ports
            if line.type == "tap"
            for _, interfaces in line.subports()
            for interface in interfaces
        ]
        now = time.monotonic()
        self._draining = [(until, gone) for until, gone in self._draining if until > now]
        wanted = service_addresses(config) | service_addresses(self.config)
        wanted = wanted.union(*(gone for _, gone in self._draining))
        routed = {a for a in wanted if not any(a in network for network in on_link)}
        routed |= {interface.ip for interface in tun.addresses}
        with self._setup:
            if self._closed:
                return None
            setup = links.install_tun_routes(tun.name, routed, ())
            self._changed(setup)
            return setup

    def _drain_routes(self, old: Config, new: Config) -> None:
        """Keep the routes of what a reload removed until its conns are drained."""
        gone = service_addresses(old) - service_addresses(new)
        if gone:
            drain_s = max(service.drain_s for service in old.services)
            self._draining.append((time.monotonic() + drain_s, gone))
            asyncio.get_running_loop().call_later(drain_s + 1, self._recheck)

    def _refuse_loops(self, config: Config) -> None:
        """Loop protection, layer (d): ask the kernel where our packets would go."""
        problems = links.check_loops(config)
        for problem in problems:
            self.log.warning(
                "routing_problem", port=problem.port, address=problem.address, message=str(problem)
            )
        loops = [problem for problem in problems if problem.loop]
        if loops and not self.force:
            raise StartError(
                "refused, because our own packets would come back to us (--force overrides):\n"
                + "\n".join(f"  {problem}" for problem in loops)
            )
        self._loop_problems = {str(problem) for problem in problems}

    # -- run

    def listen(self) -> None:
        """Take signals from here on; one that comes during the start is answered after it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._terminate)

    async def run(self, director: Director) -> int:
        """Forward until told to stop; the exit status."""
        worker = Worker(director, self.ports, self._reopen, self.log)
        worker.start()
        self._director = director
        # What lives now lives until the end: never walk it again in the middle of a burst.
        gc.collect()
        gc.freeze()
        self._say_ready(director)
        tasks = [
            asyncio.ensure_future(self._reloader(director)),
            asyncio.ensure_future(links.watch(self._recheck)),
        ]
        try:
            await self._stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            worker.stop()
            # netlink blocks, and refuses to on a thread that runs a loop
            await asyncio.to_thread(self.close)
        self.log.info("stopped", **director.statistics(), counters=director.counters.snapshot())
        return 0

    def close(self) -> None:
        """Close the devices and take back what was changed in the kernel."""
        with self._setup:
            self._closed = True
            for port in self.ports:
                port.close()
            for failed in links.undo(self._undo):
                self.log.warning("not_undone", message=failed)
            self._undo = []

    def _say_ready(self, director: Director) -> None:
        build = tunlb.build()
        if build == "uncompiled":
            self.log.warning(
                "uncompiled",
                message="running uncompiled: correct, at about a quarter of the packet rate; "
                "install a C compiler and the Python headers, then reinstall",
            )
        self.log.info(
            "ready",
            version=tunlb.__version__,
            build=build,
            workers=1,
            config=str(self.path),
            ports=[
                {
                    "name": port.netif.name,
                    "mac": "" if port.netif.tun else port.netif.mac_bytes.hex(":"),
                    "offloads": list(port.offloads),
                }
                for port in self.ports
            ],
            services=len(self.config.services),
        )

    def _terminate(self) -> None:
        director = self._director
        grace = self.config.tunlb.stop_grace_s
        if self._stopping or grace <= 0 or director is None:
            self._stop.set()
            return
        self._stopping = True
        director.ipvs.quiescent = True
        self.log.info("stopping", grace_s=grace, conns=director.ipvs.conns.count)
        asyncio.get_running_loop().call_later(grace, self._stop.set)

    def _reopen(self, netif: Netif) -> Port:
        """Make a lost device anew, with the MAC address it had (blocks: runs in a thread)."""
        line = next(line for line in self.config.ports if line.name == netif.name)
        device = self._open(line)
        self._install_routes(self.config)
        port = Port(netif, device.fd, self.ports[netif.queue].counters, device.offloads)
        self.ports[netif.queue] = port
        return port

    # -- reload

    async def _reloader(self, director: Director) -> None:
        """Apply SIGHUPs one after the other; those that come meanwhile become one more."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            try:
                config = await asyncio.to_thread(load, self.path)
                difference = diff(self.config, config)
                config = live(self.config, config)
                await asyncio.to_thread(self._admit, config)
            except ConfigError as error:
                self._refuse_reload([str(problem) for problem in error.problems])
                continue
            # Netlink and the file system have errors of many types, and none may end this task:
            # the running configuration goes on and the next SIGHUP is heard.
            except Exception as error:
                self._refuse_reload([str(error) or type(error).__name__])
                continue
            director.apply(config, monotonic_ms())
            self._drain_routes(self.config, config)
            self.config = config
            self._settings.apply(config.tunlb)
            self.log.info(
                "reloaded",
                config=str(self.path),
                services=len(config.services),
                needs_restart=list(difference.restart_keys),
            )

    def _refuse_reload(self, problems: list[str]) -> None:
        self.log.error("reload_refused", config=str(self.path), problems=problems)

    def _admit(self, config: Config) -> None:
        self._install_routes(config)
        try:
            self._refuse_loops(config)
        except StartError:
            self._install_routes(self.config)
            raise

    def _recheck(self) -> None:
        """The kernel's links or routes changed: look for loops again, and say what is new."""
        task = asyncio.ensure_future(asyncio.to_thread(self._look_again, self.config))
        task.add_done_callback(self._rechecked)

    def _look_again(self, config: Config) -> list[links.LoopProblem]:
        for line in config.ports:
            link = links.find_link(line.name)
            # The kernel forgets a TUN's routes when its link goes down. One that is down stays so:
            # somebody wants it.
            if line.type == "tun" and link is not None and link.up:
                self._install_routes(config)
        return links.check_loops(config)

    def _rechecked(self, task: asyncio.Task[list[links.LoopProblem]]) -> None:
        if task.cancelled():
            return
        if task.exception() is not None:
            self.log.warning("routing_check_failed", error=str(task.exception()))
            return
        problems = {str(problem) for problem in task.result()}
        for message in sorted(problems - self._loop_problems):
            self.log.error("routing_problem", message=message)
        if self._loop_problems and not problems:
            self.log.info("routing_problem_gone")
        self._loop_problems = problems


def main(
    path: Path, config: Config, settings: LogSettings, log: Logger, *, force: bool = False
) -> int:
    """Run tunlb; raises DeviceError or StartError when it cannot start."""
    import uvloop

    async def run() -> int:
        supervisor = Supervisor(path, config, settings, log, force=force)
        supervisor.listen()
        try:
            director = await asyncio.to_thread(supervisor.prepare)
        except BaseException:
            await asyncio.to_thread(supervisor.close)
            raise
        return await supervisor.run(director)

    status: int = uvloop.run(run())
    return status
