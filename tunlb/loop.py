"""The worker: one event loop that moves frames, lets the director's time pass and looks after its
devices.

The director knows no clock and no descriptor; this is where it gets both. Everything that may block
(netlink, opening a device) is somebody else's and runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tunlb.counters import Event
from tunlb.director import Director
from tunlb.log import Logger
from tunlb.netif import Netif
from tunlb.tap import DeviceError, Drain, Port, monotonic_ms

TICK_S = 0.1
REOPEN_FIRST_S = 0.2
REOPEN_MAX_S = 30.0

Reopen = Callable[[Netif], Port]


class Worker:
    """Runs a director on ports, indexed by ``Netif.queue``.

    ``reopen`` makes a lost device anew and may block; it raises DeviceError while that is not
    possible.
    """

    def __init__(
        self, director: Director, ports: Sequence[Port], reopen: Reopen, log: Logger
    ) -> None:
        self.director = director
        self.drain = Drain(director, ports, self._lost)
        self._reopen = reopen
        self._log = log
        self._reopening: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to forward; call it on the running loop."""
        self._loop = asyncio.get_running_loop()
        self.director.start(monotonic_ms())
        for port in self.drain.ports:
            self._watch(port)
        self._tick()

    def stop(self) -> None:
        """Forward nothing more; ports are left open for their owner."""
        if self._ticker is not None:
            self._ticker.cancel()
        for task in self._reopening:
            task.cancel()
        for port in self.drain.ports:
            if port.fd >= 0:
                self._loop.remove_reader(port.fd)

    def _watch(self, port: Port) -> None:
        self._loop.add_reader(port.fd, self.drain.readable, port)

    def _tick(self) -> None:
        self.director.tick(monotonic_ms())
        self.drain.flush()
        # A write finds a deleted device before any read does when nothing arrives.
        for port in self.drain.ports:
            if port.lost and port.fd >= 0:
                self._lost(port)
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _lost(self, port: Port) -> None:
        """The device is gone for good: say so, and keep trying to make it anew."""
        self._loop.remove_reader(port.fd)
        port.close()
        self.director.counters.add(Event.NETIF_LOST, 1)
        self._log.error(
            "port_lost",
            port=port.netif.name,
            hint="the device was deleted; conns are kept, it is made anew as soon as possible",
        )
        task = asyncio.ensure_future(self._recover(port.netif))
        self._reopening.add(task)
        task.add_done_callback(self._reopening.discard)

    async def _recover(self, netif: Netif) -> None:
        delay = REOPEN_FIRST_S
        while True:
            try:
                port = await asyncio.to_thread(self._reopen, netif)
                break
            except DeviceError as error:
                self._log.warning(
                    "port_reopen_failed", port=netif.name, error=str(error), retry_s=round(delay, 1)
                )
                await asyncio.sleep(delay)
                delay = min(REOPEN_MAX_S, delay * 2)
        self.drain.ports[netif.queue] = port
        self._watch(port)
        self.director.announce(monotonic_ms())
        self._log.info("port_recovered", port=netif.name)
