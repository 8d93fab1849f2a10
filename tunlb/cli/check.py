"""`tunlb check`: is a configuration valid, and if not, what is wrong with it?"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

HELP: Final = "check a configuration: print what is wrong with it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="the configuration (default: $TUNLB_CONFIG, then /etc/tunlb/tunlb.jsonl)",
    )


def run(arguments: argparse.Namespace) -> int:
    from tunlb.cli import EXIT_CONFIG
    from tunlb.conf import ConfigError, find, load

    path = find(arguments.file, os.environ)
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        count = len(error.problems)
        print(f"{path}: invalid: {_count(count, 'problem')}", file=sys.stderr)
        return EXIT_CONFIG
    dests = sum(len(service.dests) for service in config.services)
    parts = (
        _count(len(config.ports), "port"),
        _count(len(config.services), "service"),
        _count(dests, "dest"),
    )
    print(f"{path}: valid: {', '.join(parts)}")
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
