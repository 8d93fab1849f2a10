"""Runs the lab without root, in a user namespace of its own, and says what is missing for it.

`python -m tunlb.lab.rootless COMMAND...` runs any command so. Inside, the caller is root of a new
user, network and mount namespace with an empty /run: it can make namespaces and devices there,
and touches nothing of the machine. Everything disappears with the last process in it.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

TUN_DEVICE = Path("/dev/net/tun")
EXIT_NOT_POSSIBLE = 77

_INSIDE = "TUNLB_ROOTLESS"
# Without --fork it becomes the command that it runs: signals and the exit status need no help.
_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount")
# `ip netns` keeps its names below /run, which belongs to the real root.
_PREPARE = 'mount -t tmpfs -o mode=0755 tunlb /run && ip link set lo up && exec "$@"'
_TOOLS: Mapping[str, str] = MappingProxyType(
    {"ip": "iproute2", "iperf3": "iperf3", "unshare": "util-linux"}
)
_SWITCHES: tuple[tuple[str, str, str], ...] = (
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def inside() -> bool:
    """Whether this process already runs in the namespaces that `command` makes."""
    return _INSIDE in os.environ


def command(argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` without root."""
    return [*_UNSHARE, "sh", "-c", _PREPARE, "tunlb-rootless", *argv]


def missing_tools(tools: Iterable[str] = tuple(_TOOLS)) -> list[str]:
    """One sentence for each program that the lab needs and that is not there."""
    return [
        f"the command `{tool}` is not there: install the package {_TOOLS[tool]}"
        for tool in tools
        if shutil.which(tool) is None
    ]


def missing_device() -> list[str]:
    """Why /dev/net/tun cannot be opened, and what to do; empty when it can."""
    try:
        os.close(os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            advice = (
                "load the driver (as root: modprobe tun), or give the container the device"
                " (docker run --device /dev/net/tun)"
            )
        else:
            advice = (
                f"run as root, or let everybody open it (as root: chmod 0666 {TUN_DEVICE}), or"
                " give the container the device (docker run --device /dev/net/tun)"
            )
        return [f"{TUN_DEVICE} cannot be opened ({error.strerror}): {advice}"]
    return []


def missing_namespaces(*, rootless: bool) -> list[str]:
    """Why network namespaces cannot be made, and what to do; empty when they can."""
    probe = command(["true"]) if rootless else ["unshare", "--net", "--mount", "true"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return [f"namespaces cannot be made: {error}"]
    if done.returncode == 0:
        return []
    said = done.stderr.strip() or f"status {done.returncode}"
    if not rootless:
        return [
            f"network namespaces are refused ({said}): this root lacks CAP_SYS_ADMIN; try"
            " --rootless, or a container with --privileged"
        ]
    cures = [
        f"as root: {cure}"
        for switch, bad, cure in _SWITCHES
        if _read(Path("/proc/sys") / switch) == bad
    ] or ["run as root, or in a container with --privileged (its seccomp profile may refuse them)"]
    return [f"user namespaces are refused ({said}): {'; or '.join(cures)}"]


def missing(*, rootless: bool, tools: Iterable[str] = tuple(_TOOLS)) -> list[str]:
    """Everything that keeps the lab from being built here; empty when nothing does."""
    return [*missing_tools(tools), *missing_device(), *missing_namespaces(rootless=rootless)]


def enter(argv: Sequence[str], *, wanted: bool, tools: Iterable[str] = tuple(_TOOLS)) -> int | None:
    """Sees to it that a command of the lab, which cannot do without `tools`, may make namespaces.

    Returns None when it may. Otherwise this process becomes `argv`, which repeats the command, in
    user namespaces (if `wanted`, or if it is not root, or a root that may not make network
    namespaces); where that is impossible, standard error says why and EXIT_NOT_POSSIBLE is
    returned.
    """
    if inside():
        return None
    rootless = wanted or os.geteuid() != 0 or bool(missing_namespaces(rootless=False))
    problems = missing(rootless=rootless, tools=tools)
    if problems:
        print("tunlb: the lab cannot be built here:", file=sys.stderr)
        for problem in problems:
            print(f"  - {problem}", file=sys.stderr)
        return EXIT_NOT_POSSIBLE
    if rootless:
        become(argv)
    return None


def become(argv: Sequence[str]) -> NoReturn:
    """Replaces this process by `argv`, run without root."""
    sys.stdout.flush()
    sys.stderr.flush()
    whole = command(argv)
    os.execvpe(whole[0], whole, {**os.environ, _INSIDE: "1"})


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


def main() -> int:
    argv = sys.argv[1:]
    if not argv:
        print("usage: python -m tunlb.lab.rootless COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    status = enter(argv, wanted=True)
    if status is not None:
        return status
    os.execvp(argv[0], argv)  # inside already


if __name__ == "__main__":
    sys.exit(main())
