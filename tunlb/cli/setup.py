"""`tunlb setup`: all that needs privilege, done once, so that `tunlb run` needs none."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from tunlb.cli import _config

HELP: Final = "as root: make devices, links and routes, so that `tunlb run` needs no privilege"

CAP_NET_ADMIN: Final = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _config.add_option(parser)
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="who shall run tunlb, by name or number (default: the configuration's `user`)",
    )


def run(arguments: argparse.Namespace) -> int:
    """0: done; 71: the system refused, nothing was changed; 77: not permitted; 78: configuration"""
    from tunlb.cli import EXIT_CONFIG, EXIT_DEVICE, EXIT_PRIVILEGE

    found = _config.read(arguments.config)
    if found is None:
        return EXIT_CONFIG
    _, config = found

    from tunlb.conf import control_path
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
