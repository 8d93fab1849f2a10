"""`tunlb run`: forward, in the foreground, until SIGTERM."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

HELP: Final = "run the load balancer in the foreground; SIGHUP reloads, SIGTERM stops"

EXIT_DEVICE: Final = 71  # EX_OSERR of sysexits.h


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="the configuration (default: $TUNLB_CONFIG, then /etc/tunlb/tunlb.jsonl)",
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error", "critical"))
    parser.add_argument(
        "--force", action="store_true", help="start although the routing-loop self-check refuses"
    )


def run(arguments: argparse.Namespace) -> int:
    from tunlb.cli import EXIT_CONFIG
    from tunlb.conf import ConfigError, find, load

    path = find(arguments.config, os.environ)
    try:
        config = load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG

    from tunlb import supervisor
    from tunlb.log import LogSettings, make_logger
    from tunlb.tap import DeviceError

    environ = dict(os.environ)
    if arguments.log_level is not None:
        environ["TUNLB_LOG_LEVEL"] = arguments.log_level
    settings = LogSettings(config.tunlb, environ)
    log = make_logger(settings, environ)
    try:
        return supervisor.main(path, config, settings, log, force=arguments.force)
    except supervisor.StartError as error:
        print(f"tunlb: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except DeviceError as error:
        print(f"tunlb: {error}", file=sys.stderr)
        return EXIT_DEVICE
