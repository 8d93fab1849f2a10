"""What `tunlb setup` owes: the record beside the control socket, by which teardown takes it back.

Heads up: teardown does as root what the record says. So it is read only if nobody else could have
written it, and only changes that we make ourselves are taken from it.

It is written before something is changed, with the way back, so that a set-up that is killed leaves
nothing that teardown does not know of. Taking back what never happened does no harm.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from tunlb.links.change import Change, dump_changes, load_changes

FORMAT: Final = 1
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE: Final = Path("/proc/thread-self/ns/net")
NAMESPACES: Final = (("/proc", "[0-9]*/ns/net"), ("/run/netns", "*"))
SO_NETNS_COOKIE: Final = 71  # Linux 5.14


class RecordError(Exception):
    """The record cannot be used, or not be written; the text says what to do."""


class MadeDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that setup made. `index` 0: it was about to, and may not have come to it."""

    name: str
    index: int = 0


class Record(NamedTuple):
    """`directories` that were made for it, innermost first; `undo` in the order to do it."""

    directories: tuple[str, ...] = ()
    devices: tuple[MadeDevice, ...] = ()
    undo: tuple[Change, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.devices and not self.undo

    def with_device(self, name: str, index: int = 0) -> Record:
        others = (device for device in self.devices if device.name != name)
        return self._replace(devices=(*others, MadeDevice(name, index)))

    def since(self, before: Record) -> Record:
        """What was added after `before`."""
        return Record(
            devices=tuple(device for device in self.devices if device not in before.devices),
            undo=tuple(change for change in self.undo if change not in before.undo),
        )


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    boot: str
    cookie: int
    namespace: int
    directories: tuple[str, ...]
    devices: tuple[MadeDevice, ...]
    undo: list[Any]


def record_path(control: str) -> Path:
    """The record's file, beside the control socket `control`."""
    return Path(f"{control}.setup.json")


@contextlib.contextmanager
def locked(control: str) -> Iterator[None]:
    """One setup or teardown at a time for a control socket in a network namespace."""
    digest = blake2b(os.fsencode(control), digest_size=16).hexdigest()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        try:
            # an abstract name: it ends with this process, however that ends
            lock.bind(f"\0tunlb-setup:{digest}")
        except OSError as error:
            raise RecordError(
                f"another tunlb setup or teardown is at work for {control}: wait for its end"
            ) from error
        yield


class Store:
    """The record and its file. `record` is what the file says, or is empty where there is none."""

    def __init__(self, control: str) -> None:
        self.path = record_path(control)
        self._new = self.path.with_name(f"{self.path.name}.new")
        self.record = self._load() or Record()

    def save(self, record: Record) -> None:
        """Replace the file at once, and make its directory; without a content, remove both."""
        if record == self.record:
            return
        if record.empty:
            self._remove()
            return
        try:
            if not record.directories:
                record = record._replace(directories=_make_directories(self.path.parent))
            self._write(record)
        except OSError as error:
            raise RecordError(
                f"cannot write {self.path}: {error.strerror}: "
                "run it as root, or set `control` to a path in a directory that can be written"
            ) from error
        self.record = record

    def _write(self, record: Record) -> None:
        cookie, namespace = _network_namespace()
        content = _File(
            format=FORMAT,
            boot=BOOT_ID.read_text().strip(),
            cookie=cookie,
            namespace=namespace,
            directories=record.directories,
            devices=record.devices,
            undo=dump_changes(record.undo),
        )
        self._new.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._new, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask is
            file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._new.replace(self.path)

    def _remove(self) -> None:
        try:
            for path in (self._new, self.path):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot remove {self.path}: {error.strerror}") from error
        # A directory in which something else lies by now stays.
        with contextlib.suppress(OSError):
            for directory in self.record.directories:
                os.rmdir(directory)
        self.record = Record()

    def _load(self) -> Record | None:
        try:
            data = _read_trusted(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"cannot read {self.path}: {error.strerror}") from error
        try:
            found = msgspec.json.decode(data, type=_File)
            record = Record(found.directories, found.devices, load_changes(found.undo))
        except (msgspec.DecodeError, ValueError) as error:
            raise RecordError(
                f"{self.path} is no record of this version of tunlb ({error}): "
                "use the version that wrote it, or remove it and take back by hand what it names"
            ) from error
        if found.boot != BOOT_ID.read_text().strip():
            return None  # nothing that it speaks of outlived that boot
        cookie, namespace = _network_namespace()
        if found.cookie == cookie and found.namespace == namespace:
            return record
        # An inode is given again, but not while its namespace lives.
        if found.namespace != namespace and _lives(found.namespace):
            raise RecordError(
                f"{self.path} is of another network namespace: "
                "give each its own `control` in its configuration"
            )
        return None  # all that it speaks of went with its namespace


def _read_trusted(path: Path) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o022:
            raise RecordError(f"{path} could have been written by others: look at it, remove it")
        if found.st_uid not in (0, os.geteuid()):
            raise RecordError(f"{path} belongs to user {found.st_uid}: look at it, remove it")
        return file.read()


def _make_directories(path: Path) -> tuple[str, ...]:
    """Make a directory and its missing parents, for all to enter; which, innermost first."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for directory in reversed(missing):
        directory.mkdir()
        directory.chmod(0o755)  # whatever the umask is
    return tuple(str(directory) for directory in missing)


def _network_namespace() -> tuple[int, int]:
    """(cookie, inode) of ours: the cookie is never given again; 0 where the kernel has none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            cookie = struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
        except OSError:
            cookie = 0
    return cookie, NAMESPACE.stat().st_ino


def _lives(namespace: int) -> bool:
    """Whether a process that we see is in the namespace of this inode, or `ip netns` keeps it."""
    for root, pattern in NAMESPACES:
        for path in Path(root).glob(pattern):
            with contextlib.suppress(OSError):
                if path.stat().st_ino == namespace:
                    return True
    return False
