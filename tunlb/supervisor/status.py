"""What a supervisor says of itself to whoever asks: on an abstract socket, one message each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from tunlb.channel import Channel, ChannelError
from tunlb.keeper.address import socket_address

WAITING_MAX = 8  #: connections not yet answered; more are refused by the kernel
ANSWER_S = 1.0


def _address(control: str) -> bytes:
    return socket_address(f"{control}:status")


class StatusSocket:
    """Answers those who ask; on the running loop."""

    def __init__(self, control: str, status: Callable[[], dict[str, object]]) -> None:
        self._status = status
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(_address(control))
            self._listener.listen(WAITING_MAX)
            self._listener.setblocking(False)
        except OSError:
            self._listener.close()
            raise
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._readable)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()

    def _readable(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        channel = Channel(sock)
        channel.settimeout(0)
        # Anybody of this network namespace may connect.
        if channel.peer().uid in (0, os.geteuid()):
            with contextlib.suppress(ChannelError, OSError):
                channel.send(self._status())
        channel.close()


def ask(control: str) -> dict[str, Any] | None:
    """What the supervisor at ``control`` says; None when there is none that would tell us."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(sock)
    try:
        channel.settimeout(ANSWER_S)
        sock.connect(_address(control))
        if channel.peer().uid not in (0, os.geteuid()):
            return None
        return channel.receive()[0]
    except (ChannelError, OSError):
        return None
    finally:
        channel.close()
