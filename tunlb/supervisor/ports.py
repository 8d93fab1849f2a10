"""Devices and the kernel's side of them: opened, configured, routed, looked after, taken back.

All that blocks (netlink, opening a device) is here and is called in threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from tunlb import links
from tunlb.channel import close_all
from tunlb.conf import Config, IPAddress
from tunlb.conf import Port as PortConf
from tunlb.conf.errors import first_lines
from tunlb.conf.host import host_interfaces, host_members, local_vips
from tunlb.log import Logger
from tunlb.supervisor.errors import StartError
from tunlb.supervisor.keeping import Keeping
from tunlb.supervisor.state import State
from tunlb.tap import DeviceError, monotonic_ms, open_queues


def queue_name(device: str, worker: int) -> str:
    """The name by which the keeper has a queue."""
    return f"queue/{device}/{worker}"


def device_names(config: Config) -> list[str]:
    """Every device, in the order in which workers number them: ports, then the hosts beside them
    (see wiring.hosts_of).
    """
    return [line.name for line in config.ports] + [line.host for line in config.ports if line.host]


class Ports:
    """The devices of the configuration: one queue for each worker.

    Descriptors are owned by ``keeping``. ``generations`` count how often each device was made, in
    the order of ``names``.
    """

    def __init__(self, state: State, keeping: Keeping, log: Logger, *, force: bool) -> None:
        self.state = state
        self.keeping = keeping
        self.log = log
        self.force = force
        self.names = device_names(state.config)
        self.generations = [0] * len(self.names)
        # Threads set up the kernel's side: reloads, devices made anew, changes made by others.
        self._setup = threading.Lock()
        self._closed = False
        self._known_problems: set[str] = set()

    @property
    def lines(self) -> Sequence[PortConf]:
        return self.state.config.ports

    # -- start and end

    def open(self) -> None:
        """Make or attach all devices. Raises DeviceError."""
        for line in self.lines:
            self.keeping.own(self._open(line))
            if line.type == "tap":
                self.state.macs[line.name] = self._mac(line)
            if line.host is not None:
                self.keeping.own(self._open_host(line))

    def look_over(self) -> None:
        """Devices that a former supervisor opened: is the kernel's side still as it should be?

        One that is gone has its workers say so, and is then made anew.
        """
        for line in self.lines:
            if links.find_link(line.name) is not None:
                self._changed(links.configure_port(line))
        self.configure_hosts(self.state.config)

    def reopen(self, index: int) -> dict[str, int]:
        """Make a lost device anew: its queues by name. Its MAC address on our side stays."""
        if index >= len(self.lines):
            line = next(line for line in self.lines if line.host == self.names[index])
            return self._open_host(line)
        fresh = self._open(self.lines[index])
        try:
            self.install_routes(self.state.config)
        except BaseException:
            close_all(fresh.values())
            raise
        return fresh

    def queues(self, worker: int) -> list[int]:
        """A worker's queue of every port."""
        return [self.keeping.stored[queue_name(name, worker)] for name in self.names]

    def heads(self) -> list[tuple[int, bool]]:
        """Of each port: any queue, and whether it is a TUN."""
        return [
            (self.keeping.stored[queue_name(line.name, 0)], line.type == "tun")
            for line in self.lines
        ]

    def elect(self) -> list[int]:
        """Of each bond whose active device cannot reach anybody, or whose own port can again: the
        device that is the active one from now on.
        """
        elected = []
        for index, line in enumerate(self.lines):
            backups = [i for i, each in enumerate(self.lines) if each.backup_of == line.name]
            if not backups:
                continue
            members = [index, *backups]
            active = next((i for i in backups if i in self.state.active), index)
            carrying = [i for i in members if links.carries(self.lines[i])]
            wanted = carrying[0] if carrying else active
            if wanted == active:
                continue
            elected.append(wanted)
            others = [i for i in self.state.active if i not in members]
            self.state.active = tuple(others if wanted == index else [*others, wanted])
            self.log.warning(
                "port_failover",
                port=line.name,
                active=self.lines[wanted].name,
                former=self.lines[active].name,
            )
        return elected

    def close(self) -> None:
        """Take back what was changed in the kernel."""
        with self._setup:
            self._closed = True
            for failed in links.undo(self.state.undo):
                self.log.warning("not_undone", message=failed)
            self.state.undo = ()

    def _open(self, line: PortConf) -> dict[str, int]:
        devices = open_queues(
            line.name, self.state.workers, tun=line.type == "tun", offload=line.offload
        )
        try:
            self._changed(links.configure_port(line))
        except BaseException:
            close_all(device.fd for device in devices)
            raise
        self.state.offloads[line.name] = devices[0].offloads
        return {queue_name(line.name, i): device.fd for i, device in enumerate(devices)}

    def _open_host(self, line: PortConf) -> dict[str, int]:
        assert line.host is not None
        devices = open_queues(line.host, self.state.workers, offload=line.offload)
        try:
            wanted = self._wanted(self.state.config, line)
            members = host_members(self.state.config, line)
            mac = self.state.macs[line.name]
            self._changed(links.configure_host(line, mac, wanted, members))
        except BaseException:
            close_all(device.fd for device in devices)
            raise
        return {queue_name(line.host, i): device.fd for i, device in enumerate(devices)}

    # -- hosts beside ports

    def configure_hosts(self, config: Config, *, trim: bool = False) -> None:
        """Have the hosts have what ``config`` says, and the VIPs that drain; ``trim``: only take
        away what has drained. One that is gone is made anew when a worker says so.
        """
        for line in config.ports:
            with self._setup:
                link = None if line.host is None else links.find_link(line.host)
                if link is None or self._closed:
                    continue
                if not trim:
                    links.refuse_bridge(link)
                wanted = self._wanted(config, line)
                # First: with one of several in a subnet the kernel may take away the others, too.
                self._take_away(link, wanted)
                if not trim:
                    mac = self.state.macs[line.name]
                    members = host_members(config, line)
                    self._changed(links.configure_host(line, mac, wanted, members))

    def _wanted(self, config: Config, line: PortConf) -> list[tuple[IPAddress, int]]:
        now = monotonic_ms()
        draining = frozenset(a for until, gone in self.state.draining if until > now for a in gone)
        served = (local_vips(applied.config) for applied in self.state.history)
        draining &= frozenset().union(*served)
        return list(host_interfaces(config, line, draining | local_vips(self.state.config)))

    def _take_away(self, link: links.Link, wanted: list[tuple[IPAddress, int]]) -> None:
        gone = links.left_over(self.state.undo, link.index, wanted)
        for failed in links.undo(gone):
            self.log.warning("not_undone", message=failed)
        for change in gone:
            self.log.debug("configured", command=change.command)
        self.state.undo = tuple(change for change in self.state.undo if change not in gone)

    def _changed(self, setup: links.Setup) -> None:
        # A link that flaps has its routes put back each time, and taken back once.
        self.state.undo = links.merge_undo(self.state.undo, setup.undo)
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

    # -- routes

    def install_routes(self, config: Config) -> None:
        """Route into the TUN what no TAP's subnet holds: addresses of ``config``, of the running
        configuration, and of services that still drain.
        """
        now = monotonic_ms()
        draining = tuple((until, gone) for until, gone in self.state.draining if until > now)
        self.state.draining = draining
        also = links.service_addresses(self.state.config).union(*(gone for _, gone in draining))
        routed = links.tun_addresses(config, also)
        if routed is None:
            return
        with self._setup:
            if not self._closed:
                self._changed(links.install_tun_routes(routed.name, routed.addresses, ()))

    def keep_routes(self, old: Config, new: Config) -> float | None:
        """Keep the routes of what a reload removes until its conns are drained: for how many
        seconds, None when nothing was removed.
        """
        gone = links.service_addresses(old) - links.service_addresses(new)
        gone |= local_vips(old) - local_vips(new)
        if not gone:
            return None
        drain_s = max(service.drain_s for service in old.services)
        until = monotonic_ms() + round(drain_s * 1000)
        self.state.draining = (*self.state.draining, (until, tuple(gone)))
        return drain_s

    def admit(self, config: Config) -> None:
        """Set up what a reload needs; raises StartError, with nothing changed, if it would loop."""
        self.install_routes(config)
        try:
            self.configure_hosts(config)
            self.refuse_loops(config)
        except (StartError, DeviceError):
            self.install_routes(self.state.config)
            with contextlib.suppress(DeviceError):
                self.configure_hosts(self.state.config)
            raise

    def refuse_loops(self, config: Config) -> None:
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
                + "\n".join(f"  {line}" for line in first_lines(loops))
            )
        self._known_problems = {str(problem) for problem in problems}

    def look_again(self) -> None:
        """The kernel's links or routes changed: look for loops again, and say what is new."""
        config = self.state.config
        try:
            for line in config.ports:
                link = links.find_link(line.name)
                # The kernel forgets a TUN's routes when its link goes down. One that is down stays
                # so: somebody wants it.
                if line.type == "tun" and link is not None and link.up:
                    self.install_routes(config)
            self.configure_hosts(config, trim=True)
            problems = {str(problem) for problem in links.check_loops(config)}
        # Netlink has errors of many types, and a look that fails is only a look less.
        except Exception as error:
            self.log.warning("routing_check_failed", error=str(error))
            return
        for message in sorted(problems - self._known_problems):
            self.log.error("routing_problem", message=message)
        if self._known_problems and not problems:
            self.log.info("routing_problem_gone")
        self._known_problems = problems
