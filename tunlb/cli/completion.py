"""`tunlb completion`: the script that lets a shell complete tunlb's commands, options and files."""

from __future__ import annotations

import argparse
from typing import Any, Final

HELP: Final = "print a shell's completion script, e.g. for /etc/bash_completion.d/tunlb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to complete in")


def run(arguments: argparse.Namespace) -> int:
    import shtab

    from tunlb.cli import build_parser, verbs

    parser = build_parser(verbs())
    _complete_files(parser, shtab.FILE)
    print(shtab.complete(parser, shell=arguments.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Whatever is shown as FILE completes to file names, so that no verb needs to import shtab."""
    for action in parser._actions:  # argparse has no public way to list them
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, files)
        elif action.metavar == "FILE":
            action.complete = files  # type: ignore[attr-defined]
