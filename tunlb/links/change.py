"""Changes to the kernel's set-up: applied together, explained when refused, taken back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


def apply(ipr: IPRoute, name: str, changes: Iterable[Change]) -> Setup:
    """Make the changes, or none of them and raise DeviceError."""
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
            "needs CAP_NET_ADMIN, or an administrator who runs: "
            + " && ".join(change.command for change in needed),
        )
    if failure is not None:
        for change in back:
            _call(ipr, change)
        raise failure
    warnings = tuple(f"{name}: {c.what}; better: {c.command}" for c in refused)
    return Setup(tuple(changed), warnings, tuple(back))


def undo(changes: Iterable[Change]) -> list[str]:
    """Take a Setup back; what is gone already is fine. Returns the commands that failed."""
    failed: list[str] = []
    with IPRoute() as ipr:
        for change in changes:
            err = _call(ipr, change)
            if err and err not in _GONE:
                failed.append(f"{change.command}: {os.strerror(err)}")
    return failed


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
