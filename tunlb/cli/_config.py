"""The option `-c FILE`, and the file that it names."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunlb.conf import Config


def add_option(parser: argparse.ArgumentParser, what: str = "the configuration") -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help=f"{what} (default: $TUNLB_CONFIG, then /etc/tunlb/tunlb.jsonl)",
    )


def read(flag: str | None) -> tuple[Path, Config] | None:
    """The file and what is in it; None when it is invalid, and all its problems are printed."""
    from tunlb.conf import ConfigError, find, load

    path = find(flag, os.environ)
    try:
        return path, load(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return None
