"""`tunlb teardown`: takes back exactly what `tunlb setup` changed."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from tunlb.cli import _config

HELP: Final = "as root: take back exactly what `tunlb setup` changed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _config.add_option(parser, "the configuration of the setup")


def run(arguments: argparse.Namespace) -> int:
    """0: nothing of setup is left; 1: something is, and why was said; 77, 78 as setup"""
    from tunlb.cli import EXIT_CONFIG, EXIT_PRIVILEGE

    found = _config.read(arguments.config)
    if found is None:
        return EXIT_CONFIG
    _, config = found

    from tunlb.cli.setup import permitted
    from tunlb.conf import control_path
    from tunlb.links import prepare
    from tunlb.links.record import RecordError, record_path

    if not permitted("teardown"):
        return EXIT_PRIVILEGE
    control = control_path(config, os.environ)
    try:
        removed = prepare.teardown(config, control)
    except (prepare.InUse, RecordError) as error:
        print(f"tunlb teardown: {error}", file=sys.stderr)
        return 1
    if removed is None:
        print(f"nothing to do: there is no {record_path(control)}")
        return 0
    for command in removed.undone:
        print(command)
    for text in removed.failed:
        print(f"tunlb teardown: not taken back, try again later: {text}", file=sys.stderr)
    return 1 if removed.failed else 0
