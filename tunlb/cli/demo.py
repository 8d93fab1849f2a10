"""`tunlb demo`: balance real traffic in a network of namespaces, then remove it."""

from __future__ import annotations

import argparse
import sys

HELP = "build a network of namespaces, balance real traffic in it, and show who served it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rootless",
        action="store_true",
        help="run in user namespaces even as root (without root this is what happens anyway)",
    )


def run(args: argparse.Namespace) -> int:
    """0: everything worked; 1: something failed; 77: it cannot run here, and why was said."""
    from tunlb.lab import rootless

    status = rootless.enter([sys.executable, "-m", "tunlb", "demo"], wanted=args.rootless)
    if status is not None:
        return status
    from tunlb.lab import demo

    return demo.run()
