"""Messages with descriptors between processes; both ends are here."""

from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from tunlb.channel import (
    FDS_MAX,
    MESSAGE_MAX,
    Channel,
    ChannelClosed,
    ChannelError,
    blob_lines,
    close_all,
    get_blob,
    pair,
    put_blob,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    """The far end is a socket that sends what it likes."""
    far, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(near)
    yield far, channel
    far.close()
    channel.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({}, id="empty"),
        pytest.param({"request": "fork", "cpu": None, "names": ["a", "b"]}, id="nested"),
        pytest.param({"path": "/etc/t\xfcnlb \U0001f980"}, id="not ASCII"),
        pytest.param({"path": os.fsdecode(b"/etc/\xff")}, id="a path that is not UTF-8"),
        pytest.param({"text": "x" * (MESSAGE_MAX - len('{"text":""}'))}, id="largest"),
    ],
)
def test_a_message_arrives(ends: tuple[Channel, Channel], message: dict[str, object]) -> None:
    ours, theirs = ends
    ours.send(message)
    assert theirs.receive() == (message, [])


def test_messages_stay_apart_and_in_order(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    for number in range(5):
        ours.send({"number": number})
    assert [theirs.receive()[0]["number"] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_descriptors_arrive_in_order_and_close_at_an_exec(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    blobs = [put_blob(bytes([number])) for number in range(FDS_MAX)]
    ours.send({}, blobs)
    close_all(blobs)
    _, received = theirs.receive()
    assert [get_blob(fd) for fd in received] == [bytes([number]) for number in range(FDS_MAX)]
    assert not any(os.get_inheritable(fd) for fd in received)
    close_all(received)


def test_the_ends_close_at_an_exec(ends: tuple[Channel, Channel]) -> None:
    assert not any(os.get_inheritable(end.fileno()) for end in ends)


@pytest.mark.parametrize(
    ("message", "count"),
    [
        pytest.param({"text": "x" * MESSAGE_MAX}, 0, id="bytes"),
        pytest.param({}, FDS_MAX + 1, id="descriptors"),
    ],
)
def test_what_is_too_large_is_not_sent(
    ends: tuple[Channel, Channel], message: dict[str, object], count: int
) -> None:
    ours, theirs = ends
    with pytest.raises(ValueError, match=f"at most {MESSAGE_MAX} and {FDS_MAX} fit"):
        ours.send(message, [0] * count)
    theirs.settimeout(0)
    with pytest.raises(BlockingIOError):
        theirs.receive()


def test_the_end_comes_after_the_messages(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send({"last": True})
    ours.close()
    assert theirs.receive()[0] == {"last": True}
    with pytest.raises(ChannelClosed):
        theirs.receive()


def test_the_end_comes_even_if_a_message_was_not_read(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.send({"not": "read"})
    ours.close()
    with pytest.raises(ChannelClosed):
        theirs.receive()


def test_nobody_to_send_to(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(ChannelClosed):
        ours.send({})


@pytest.mark.parametrize(
    ("seconds", "error"), [(0, BlockingIOError), (0.001, TimeoutError)], ids=["at once", "later"]
)
def test_time_runs_out(
    ends: tuple[Channel, Channel], seconds: float, error: type[Exception]
) -> None:
    ours, _ = ends
    ours.settimeout(seconds)
    with pytest.raises(error):
        ours.receive()
    with pytest.raises(error):
        fill(ours)


def fill(channel: Channel) -> None:
    """Sends more than anybody may have waiting for a reader."""
    for _ in range(100):
        channel.send({"text": "x" * 60000})


GARBAGE = {
    "half an object": b'{"request"',
    "not UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "a string": b'"{}"',
    "a number": b"7",
    "NUL": b"\0",
    "brackets without an end": b"[" * 60000,
    "digits without an end": b"9" * 60000,
    "too long": b" " * MESSAGE_MAX + b"{}",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_and_its_descriptors_are_closed(
    raw: tuple[socket.socket, Channel], data: bytes
) -> None:
    far, channel = raw
    before = open_fds()
    socket.send_fds(far, [data], [0, 1])
    with pytest.raises(ChannelError) as refused:
        channel.receive()
    assert not isinstance(refused.value, ChannelClosed)
    assert open_fds() == before


def test_an_empty_message_is_the_end(raw: tuple[socket.socket, Channel]) -> None:
    far, channel = raw
    before = open_fds()
    socket.send_fds(far, [b""], [0])
    with pytest.raises(ChannelClosed):
        channel.receive()
    assert open_fds() == before


def test_more_descriptors_than_we_send_are_no_error(raw: tuple[socket.socket, Channel]) -> None:
    far, channel = raw
    before = open_fds()
    rights = array.array("i", [0] * 253)
    far.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    _, fds = channel.receive()
    assert len(fds) == 253
    close_all(fds)
    assert open_fds() == before


def test_descriptors_that_do_not_fit_are_told(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send({}, [0, 0, 0])
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(ChannelError, match="as many files open as it may"):
            theirs.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == before


def test_peer(ends: tuple[Channel, Channel]) -> None:
    assert ends[0].peer() == (os.getpid(), os.geteuid(), os.getegid())


@pytest.mark.parametrize("size", [0, 1, MESSAGE_MAX, 3 << 20])
def test_a_blob_of_any_size(size: int) -> None:
    data = os.urandom(size)
    fd = put_blob(data)
    try:
        assert get_blob(fd) == data
        assert get_blob(fd) == data, "it can be read again"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "data", [b"one", b"one\n", b"one\ntwo\n\nfour", b"x" * 10000 + b"\ny"], ids=repr
)
def test_the_lines_of_a_blob(data: bytes) -> None:
    """Who reads them may lag behind who reads the same blob elsewhere."""
    fd = put_blob(data)
    try:
        first, second = blob_lines(fd), blob_lines(fd)
        assert next(first) == next(second)
        assert [*second] == [*first] == data.splitlines(keepends=True)[1:]
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "change",
    [lambda fd: os.pwrite(fd, b"x", 0), lambda fd: os.ftruncate(fd, 1)],
    ids=["write", "truncate"],
)
def test_nobody_changes_a_blob(change) -> None:
    fd = put_blob(b"as it was")
    try:
        with pytest.raises(PermissionError):
            change(fd)
        assert get_blob(fd) == b"as it was"
    finally:
        os.close(fd)
