"""What a process may do, and giving it up for good: capabilities(7), no_new_privs, user and groups.

Giving up never fails because there was less to give up: a process that was started without
privileges, or as root of a user namespace that knows no other user, ends up with as little as the
kernel lets it. What remains can be read with `status`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple

# linux/prctl.h
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_CAPABILITY_VERSION_3: Final = 0x20080522  # linux/capability.h
_CAPABILITY_BITS: Final = 64
_NO_ID: Final = 0xFFFFFFFF  # -1 to the kernel, which takes it for "as it is"


class Capability(IntEnum):
    """Those that tunlb names, numbered as in linux/capability.h."""

    DAC_READ_SEARCH = 2
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8


class UnknownUser(Exception):
    """There is no such user on this machine."""


class Status(NamedTuple):
    """Of a process, from /proc/PID/status: capability sets as masks; ids real to filesystem."""

    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """32 capabilities of each set."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def status(pid: int | str = "self") -> Status:
    """What the process ``pid`` may do; FileNotFoundError when there is none."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)

    def mask(name: str) -> int:
        return int(fields[name], 16)

    def ids(name: str) -> tuple[int, ...]:
        return tuple(map(int, fields[name].split()))

    return Status(
        mask("CapInh"),
        mask("CapPrm"),
        mask("CapEff"),
        mask("CapBnd"),
        mask("CapAmb"),
        fields["NoNewPrivs"].strip() == "1",
        ids("Uid"),
        ids("Gid"),
        ids("Groups"),
    )


def lookup_user(text: str) -> tuple[int, int]:
    """The uid of a user, given by name or number, and the gid of their group.

    A number needs no entry in the user database: its group has the same number.
    """
    try:
        if not (text.isascii() and text.isdigit()):
            entry = pwd.getpwnam(text)
            return entry.pw_uid, entry.pw_gid
        uid = int(text)
        if uid < _NO_ID:
            return uid, _group(uid)
    # ValueError: a NUL in the name, or a number of thousands of digits
    except (KeyError, ValueError):
        pass
    raise UnknownUser(
        f"there is no user {text!r} on this machine: name one of /etc/passwd, or a number"
    )


def mapped(uid: int) -> bool:
    """Whether this process's user namespace knows a user: nobody can become another one."""
    with open("/proc/self/uid_map", encoding="ascii") as rows:
        spans = [tuple(map(int, row.split())) for row in rows]
    return any(first <= uid < first + count for first, _, count in spans)


def _group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def keep(capabilities: Iterable[Capability]) -> None:
    """Gives up every capability but these, for this process and all that it will ever start.

    None is gained: of ``capabilities``, those stay that the process has.
    """
    kernel = _Kernel()
    kept = sum(1 << capability for capability in set(capabilities))
    kernel.limit_bounding(kept)
    kernel.clear_ambient()
    kernel.set_capabilities(kept & kernel.permitted())


def drop(uid: int, gid: int) -> None:
    """Becomes ``uid`` and ``gid`` without other groups, without capabilities, for good.

    A process that may not change its user (it is not root, or the user namespace does not map
    ``uid``) stays who it is and loses the rest. The bounding set can only be emptied with
    CAP_SETPCAP; where it stays, no_new_privs alone keeps an exec from gaining anything.
    """
    if not (0 <= uid < _NO_ID and 0 <= gid < _NO_ID):
        raise ValueError(f"nobody has uid {uid} and gid {gid}")
    kernel = _Kernel()
    kernel.limit_bounding(0)
    kernel.clear_ambient()
    with _if_permitted():
        os.setgroups(())
    with _if_permitted():
        os.setresgid(gid, gid, gid)
    with _if_permitted():
        os.setresuid(uid, uid, uid)
    kernel.set_capabilities(0)
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)


@contextmanager
def _if_permitted() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # EINVAL: the id has no meaning in this user namespace, or the kernel knows no such thing
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise


class _Kernel:
    """The calls that the standard library lacks; they raise OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        # prctl(2) reads all five as long, and some options insist on zeros
        self._libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4

    def limit_bounding(self, kept: int) -> None:
        for capability in range(_CAPABILITY_BITS):
            try:
                present = self.prctl(_PR_CAPBSET_READ, capability)
            except OSError:
                return  # this kernel knows no more
            if present and not kept >> capability & 1:
                with _if_permitted():
                    self.prctl(_PR_CAPBSET_DROP, capability)

    def clear_ambient(self) -> None:
        with _if_permitted():
            self.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)

    def permitted(self) -> int:
        sets = (_Sets * 2)()
        self._check("capget", self._libc.capget(ctypes.byref(_this_process()), sets))
        mask: int = sets[0].permitted | sets[1].permitted << 32
        return mask

    def set_capabilities(self, mask: int) -> None:
        """Permitted and effective become ``mask``; inheritable is emptied."""
        low, high = mask & 0xFFFFFFFF, mask >> 32
        sets = (_Sets * 2)(_Sets(low, low, 0), _Sets(high, high, 0))
        self._check("capset", self._libc.capset(ctypes.byref(_this_process()), sets))

    def prctl(self, option: int, *arguments: int) -> int:
        zeros = (0,) * (4 - len(arguments))
        return self._check(f"prctl({option})", self._libc.prctl(option, *arguments, *zeros))

    @staticmethod
    def _check(what: str, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")
        return result


def _this_process() -> _Header:
    return _Header(_CAPABILITY_VERSION_3, 0)
