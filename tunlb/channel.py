"""Messages between our processes: one JSON object and some descriptors at a time.

A channel is an AF_UNIX SOCK_SEQPACKET socket: messages stay whole and in order, and a process that
ends, however it ends, is the end of the channel for the other one.
"""

from __future__ import annotations

import array
import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

MESSAGE_MAX: Final = 65536  # bytes of JSON; well below the default of net.core.wmem_default
FDS_MAX: Final = 250  # descriptors sent in one message; the kernel refuses more than 253

_SCM_MAX_FD: Final = 253
_INT_SIZE: Final = array.array("i").itemsize
_PEER: Final = struct.Struct("iII")  # struct ucred
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class ChannelError(Exception):
    """What came is not a message of ours, or its descriptors did not all fit in here."""


class ChannelClosed(ChannelError):
    """The other end is gone; no message will come or be taken any more."""


class Peer(NamedTuple):
    """Who made the other end (SO_PEERCRED); pid 0: a process of another pid namespace."""

    pid: int
    uid: int
    gid: int


class Channel:
    """One end. It blocks until `settimeout` says otherwise."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def settimeout(self, seconds: float | None) -> None:
        """How long `send` and `receive` wait before TimeoutError; 0: BlockingIOError at once."""
        self._sock.settimeout(seconds)

    def peer(self) -> Peer:
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        return Peer(*_PEER.unpack(raw))

    def send(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        """Sends all of it or nothing; ``fds`` stay open here.

        Raises ValueError when it is too large (see `put_blob`), ChannelClosed, and OSError, which
        includes BlockingIOError and TimeoutError.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MESSAGE_MAX or len(fds) > FDS_MAX:
            raise ValueError(
                f"a message of {len(data)} bytes and {len(fds)} descriptors: at most"
                f" {MESSAGE_MAX} and {FDS_MAX} fit"
            )
        rights = array.array("i", fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        try:
            self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except ConnectionError as error:
            raise ChannelClosed(f"the other end is gone: {error.strerror}") from None

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """The next message and its descriptors, which are the caller's and close at an exec.

        Raises ChannelClosed at the end, ChannelError for what is no message (its descriptors are
        closed), and OSError, which includes BlockingIOError and TimeoutError.
        """
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                MESSAGE_MAX, socket.CMSG_SPACE(_SCM_MAX_FD * _INT_SIZE), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError as error:
            raise ChannelClosed(f"the other end is gone: {error.strerror}") from None
        fds = _descriptors(ancillary)
        try:
            if flags & socket.MSG_TRUNC:
                raise ChannelError(f"a message of more than {MESSAGE_MAX} bytes")
            if flags & socket.MSG_CTRUNC:
                raise ChannelError(
                    "descriptors were lost: this process has as many files open as it may;"
                    " raise the limit (ulimit -n, LimitNOFILE=)"
                )
            # our messages are never empty
            if not data:
                raise ChannelClosed("the other end is gone")
            return _decode(data), fds
        except ChannelError:
            close_all(fds)
            raise

    def close(self) -> None:
        self._sock.close()


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % _INT_SIZE])
    return fds.tolist()


def _decode(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    # ValueError: neither UTF-8 nor JSON; RecursionError: brackets without an end
    except (ValueError, RecursionError) as error:
        raise ChannelError(f"what came is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise ChannelError(f"what came is not an object but {type(message).__name__}")
    return message


def pair() -> tuple[Channel, Channel]:
    """Both ends of a new channel; they close at an exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def put_blob(data: bytes) -> int:
    """A descriptor of ``data`` in memory that nobody can change any more, to be sent with a
    message that it is too large for.
    """
    fd = os.memfd_create("tunlb-blob", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def blob_lines(fd: int) -> Iterator[bytes]:
    """Its lines one after the other, none of them read before it is wanted; ``fd`` stays open and
    is needed for the first one only.
    """
    # Private, because a mapping that could become writable is refused for sealed memory.
    with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as memory:
        while line := memory.readline():
            yield line


def get_blob(fd: int) -> bytes:
    """What `put_blob` put there; ``fd`` stays open, and whoever else holds it can read it too."""
    pieces = []
    offset = 0
    while piece := os.pread(fd, os.fstat(fd).st_size - offset, offset):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)
