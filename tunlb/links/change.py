"""Changes to the kernel's set-up: applied together, explained when refused, taken back, stored."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tunlb.tap import DeviceError

SYSCTLS = Path("/proc/sys/net")

_GONE = frozenset(
    {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL, errno.ENETDOWN}
)


class Change(NamedTuple):
    """One thing to change, what is wrong without it, and the command that does the same.

    `call` is the method of IPRoute, or "sysctl" (`arguments`: path, value). What is not `needed`
    may stay as it is.
    """

    what: str
    command: str
    call: str
    verb: str
    arguments: Mapping[str, Any]
    needed: bool = True
    undo: tuple[Change, ...] = ()


class Setup(NamedTuple):
    """What was changed (as commands), what we had no permission for, and the way back."""

    changed: tuple[str, ...]
    warnings: tuple[str, ...]
    undo: tuple[Change, ...]


Journal: TypeAlias = Callable[[tuple[Change, ...]], None]
"""Is told the way back before anything is changed, so that who writes it down can be killed."""


def apply(
    ipr: IPRoute, name: str, changes: Iterable[Change], journal: Journal | None = None
) -> Setup:
    """Make the changes, or none of them and raise DeviceError."""
    changes = tuple(changes)
    owed = tuple(back for change in reversed(changes) for back in change.undo)
    if journal is not None and owed:
        journal(owed)
    changed: list[str] = []
    back: list[Change] = []
    refused: list[Change] = []
    failure: DeviceError | None = None
    for change in changes:
        err = _call(ipr, change)
        if err == 0:
            changed.append(change.command)
            back[:0] = change.undo
        elif err in (errno.EPERM, errno.EROFS) or (err == errno.EACCES and _is_sysctl(change)):
            refused.append(change)
        elif err != errno.EEXIST:
            hint = "see ip -d link"
            if err == errno.EACCES:
                hint = f"IPv6 is disabled there: sysctl -w net.ipv6.conf.{name}.disable_ipv6=0"
            failure = DeviceError(f"{name}: `{change.command}`: {os.strerror(err)}", hint)
            break
    needed = [change for change in refused if change.needed]
    if failure is None and needed:
        failure = DeviceError(
            f"{name} is not prepared ({', '.join(change.what for change in needed)}), "
            "and there is no permission to change it",
            "needs CAP_NET_ADMIN, or an administrator who runs tunlb setup, or: "
            + " && ".join(change.command for change in needed),
        )
    if failure is not None:
        take_back(ipr, back)
        raise failure
    warnings = tuple(f"{name}: {c.what}; better: {c.command}" for c in refused)
    return Setup(tuple(changed), warnings, tuple(back))


def undo(changes: Iterable[Change]) -> list[str]:
    """Take a Setup back; what is gone already is fine. Returns the commands that failed."""
    with IPRoute() as ipr:
        _, failed = take_back(ipr, changes)
    return [f"{change.command}: {why}" for change, why in failed]


def take_back(
    ipr: IPRoute, changes: Iterable[Change]
) -> tuple[list[Change], list[tuple[Change, str]]]:
    """(what had an effect, what failed and why); what is gone already is in neither."""
    done: list[Change] = []
    failed: list[tuple[Change, str]] = []
    for change in changes:
        err = _call(ipr, change)
        if err == 0:
            done.append(change)
        elif err not in _GONE:
            failed.append((change, os.strerror(err)))
    return done, failed


def merge_undo(old: Iterable[Change], fresh: Iterable[Change]) -> tuple[Change, ...]:
    """The way back from `old` changes and, made after them, `fresh` ones: the latest comes first.

    Where both changed the same thing, it goes back to what it was before the first of them.
    """
    old = tuple(old)
    known = {_target(change) for change in old}
    return (*(change for change in fresh if _target(change) not in known), *old)


def _target(change: Change) -> Hashable:
    """What a change changes: of a sysctl or a link's attribute all but the value."""
    if _is_sysctl(change):
        return "sysctl", str(change.arguments["path"])
    if change.call == "link":
        return change.arguments["index"], frozenset(change.arguments)
    return change.call, change.verb, frozenset(change.arguments.items())


def _is_sysctl(change: Change) -> bool:
    return change.call == "sysctl"


def _call(ipr: IPRoute, change: Change) -> int:
    """0 or the errno."""
    try:
        if _is_sysctl(change):
            (SYSCTLS / change.arguments["path"]).write_text(change.arguments["value"])
        else:
            getattr(ipr, change.call)(change.verb, **change.arguments)
    except NetlinkError as error:
        return int(error.code)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A Change as JSON has it: what is read may ask for nothing that we never ask for."""

    what: str
    command: str
    call: Literal["link", "addr", "route", "rule", "sysctl"]
    verb: Literal["set", "add", "del"]
    arguments: dict[str, str | int]
    needed: bool = True
    undo: tuple[_Stored, ...] = ()


def dump_changes(changes: Iterable[Change]) -> list[Any]:
    """Changes as plain JSON types, for `load_changes`."""
    return [msgspec.to_builtins(_store(change)) for change in changes]


def load_changes(stored: object) -> tuple[Change, ...]:
    """What `dump_changes` made; ValueError for anything that it does not make."""
    try:
        return tuple(_change(item) for item in msgspec.convert(stored, list[_Stored]))
    except msgspec.ValidationError as error:
        raise ValueError(f"not a list of changes: {error}") from error


def _store(change: Change) -> _Stored:
    return _Stored(
        what=change.what,
        command=change.command,
        call=change.call,  # type: ignore[arg-type]  # one of ours
        verb=change.verb,  # type: ignore[arg-type]
        arguments=dict(change.arguments),
        needed=change.needed,
        undo=tuple(_store(back) for back in change.undo),
    )


def _change(stored: _Stored) -> Change:
    arguments = stored.arguments
    if stored.call == "sysctl":
        sound = set(arguments) == {"path", "value"} and _below_sysctls(str(arguments["path"]))
    else:
        sound = stored.call != "link" or "index" in arguments
    if not sound:
        raise ValueError(f"not a list of changes: {stored.call} of {arguments}")
    fields = {name: getattr(stored, name) for name in Change._fields}
    return Change(**fields | {"undo": tuple(_change(back) for back in stored.undo)})


def _below_sysctls(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/")
