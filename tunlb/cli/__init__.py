"""The command line. A verb is a module in this folder, found by its file and imported when needed.

A verb module has HELP (one line), add_arguments(parser) and run(arguments) -> exit code. It imports
heavy rooms inside run, because `tunlb --help` and the completion import every verb. A module whose
name begins with an underscore is no verb.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Final, Protocol, cast

import tunlb

EXIT_USAGE: Final = 2
EXIT_DEVICE: Final = 71  # EX_OSERR of sysexits.h
EXIT_PRIVILEGE: Final = 77  # EX_NOPERM of sysexits.h
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h
EXIT_INTERRUPTED: Final = 130


class Verb(Protocol):
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def verbs() -> list[str]:
    """The names of all verbs, sorted."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def build_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser with the verbs in `names`: one for a run, all of them for help and completion."""
    parser = argparse.ArgumentParser(
        prog="tunlb", description="A layer-4 load balancer in user space, on TUN/TAP."
    )
    parser.add_argument(
        "--version", action="version", version=f"tunlb {tunlb.__version__} ({tunlb.build()})"
    )
    commands = parser.add_subparsers(
        title="commands", dest="verb", metavar="COMMAND", required=True
    )
    for name in names:
        verb = _verb(name)
        verb.add_arguments(commands.add_parser(name, help=verb.HELP, description=verb.HELP))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; 2 = the command line is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = words[0] if words and not words[0].startswith("-") else None
    known = verbs()
    if chosen is not None and chosen not in known:
        return _unknown(chosen, known)
    try:
        arguments = build_parser([chosen] if chosen else known).parse_args(words)
    except SystemExit as done:  # argparse has printed what it had to say
        return done.code if isinstance(done.code, int) else EXIT_USAGE
    try:
        return _verb(arguments.verb).run(arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone: Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _verb(name: str) -> Verb:
    return cast(Verb, importlib.import_module(f"tunlb.cli.{name}"))


def _unknown(word: str, known: Sequence[str]) -> int:
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(known)}"
    print(f"tunlb: there is no command {word!r} ({hint})", file=sys.stderr)
    return EXIT_USAGE
