"""Changes that others make to links, addresses, routes and rules."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

# Bits of sockaddr_nl.nl_groups: links, addresses, routes and rules, of both families.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000


async def watch(callback: Callable[[], None], *, settle_s: float = 0.2) -> None:
    """Call `callback` when links, addresses, routes or rules change, until cancelled.

    Once for a burst of changes, `settle_s` after its first: a script that changes many things is
    answered when it is mostly done, and one that never ends cannot put the answer off. Runs on any
    loop.
    """
    loop = asyncio.get_running_loop()
    due: asyncio.TimerHandle | None = None

    def settled() -> None:
        nonlocal due
        due = None
        callback()

    def changed() -> None:
        nonlocal due
        while True:
            try:
                sock.recv(65536)
            except BlockingIOError:
                break
            except OSError as error:
                # The queue overflowed: that too says that something changed.
                if error.errno != errno.ENOBUFS:
                    raise
        if due is None:
            due = loop.call_later(settle_s, settled)

    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.setblocking(False)
        sock.bind((0, _GROUPS))
        loop.add_reader(sock.fileno(), changed)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(sock.fileno())
            if due is not None:
                due.cancel()
