"""`tunlb run`: forward, in the foreground, until SIGTERM."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from tunlb.cli import _config

HELP: Final = (
    "run the load balancer in the foreground; SIGHUP reloads, SIGUSR2 replaces the program, "
    "SIGTERM stops"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _config.add_option(parser)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error", "critical"))
    parser.add_argument(
        "--force", action="store_true", help="start although the routing-loop self-check refuses"
    )
    # What a running tunlb asks of the program that is to replace it.
    parser.add_argument("--fits", metavar="FDS", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    from tunlb.cli import EXIT_CONFIG, EXIT_DEVICE

    found = _config.read(arguments.config)
    if found is None:
        return EXIT_CONFIG
    path, config = found

    from tunlb import supervisor
    from tunlb.conf import control_path
    from tunlb.log import LogSettings, make_logger
    from tunlb.tap import DeviceError

    environ = dict(os.environ)
    if arguments.log_level is not None:
        environ["TUNLB_LOG_LEVEL"] = arguments.log_level
    try:
        if arguments.fits is not None:
            state_fd, conns_fd, stats_fd = map(int, arguments.fits.split(","))
            supervisor.fits(config, state_fd, conns_fd, stats_fd)
            return 0
        settings = LogSettings(config.tunlb, environ)
        options = supervisor.Options(
            path=path,
            config=config,
            control=control_path(config, environ),
            environ=environ,
            force=arguments.force or config.tunlb.force,
        )
        return supervisor.main(options, settings, make_logger(settings, environ))
    except supervisor.StartError as error:
        print(f"tunlb: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except DeviceError as error:
        print(f"tunlb: {error}", file=sys.stderr)
        return EXIT_DEVICE
