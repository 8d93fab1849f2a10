"""`tunlb setup`: all that needs privilege, done once, so that `tunlb run` needs none."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

HELP: Final = "as root: make devices, links and routes, so that `tunlb run` needs no privilege"

EXIT_DEVICE: Final = 71  # EX_OSERR of sysexits.h
EXIT_PRIVILEGE: Final = 77  # EX_NOPERM of sysexits.h
CAP_NET_ADMIN: Final = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="the configuration (default: $TUNLB_CONFIG, then /etc/tunlb/tunlb.jsonl)",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="who shall run tunlb, by name or number (default: the configuration's `user`)",
    )


def run(arguments: argparse.Namespace) -> int:
    """0: done; 71: the system refused, nothing was changed; 77: not permitted; 78: configuration"""
    from tunlb.cli import EXIT_CONFIG
    from tunlb.conf import ConfigError, control_path, find, load

    try:
        config = load(find(arguments.config, os.environ))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG

    from tunlb.device import DeviceError
    from tunlb.links import prepare
    from tunlb.links.record import RecordError
    from tunlb.privileges import UnknownUser, lookup_user

    try:
        owner, _ = lookup_user(arguments.user or config.tunlb.user)
    except UnknownUser as error:
        print(f"tunlb setup: {error}", file=sys.stderr)
        return EXIT_CONFIG
    if not permitted("setup"):
        return EXIT_PRIVILEGE
    workers = config.tunlb.worker_count(len(os.sched_getaffinity(0)))
    try:
        done = prepare.setup(config, control_path(config, os.environ), owner, workers)
    except (DeviceError, RecordError) as error:
        print(f"tunlb setup: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(f"tunlb setup: {note}", file=sys.stderr)
        return EXIT_DEVICE
    for command in done.changed:
        print(command)
    if not done.changed:
        print("nothing to do: all is set up already")
    for warning in done.warnings:
        print(f"tunlb setup: warning: {warning}", file=sys.stderr)
    return 0


def permitted(verb: str) -> bool:
    """Whether we may administer a network at all; what is missing is printed."""
    from tunlb.privileges import status

    if status().effective >> CAP_NET_ADMIN & 1:
        return True
    print(f"tunlb {verb}: needs CAP_NET_ADMIN: run it as root", file=sys.stderr)
    return False
