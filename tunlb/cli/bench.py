"""`tunlb bench`: real traffic through namespaces (`traffic`), or the pipeline's rooms (`micro`)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Final

HELP = "measure tunlb beside the limit of the device and what people use instead"

EXIT_USAGE: Final = 2
_LEAST_S: Final = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(suite="traffic", rounds=5, seconds=2.0, subjects="", loads="", name="bench")
    _traffic(parser)
    suites = parser.add_subparsers(title="suites", metavar="SUITE")
    # What is not given keeps the value that the verb itself has, or was given before the suite.
    traffic = suites.add_parser(
        "traffic",
        help="real traffic through namespaces (what `tunlb bench` does)",
        argument_default=argparse.SUPPRESS,
    )
    _traffic(traffic)
    micro = suites.add_parser("micro", help="the pipeline by room, in instructions and in ns")
    micro.set_defaults(suite="micro")
    from tunlb.bench.micro import run

    run.add_arguments(micro)


def _traffic(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=int, help="turns of each subject under each load (5)")
    add("--seconds", type=float, help="length of a load (2)")
    add("--subjects", metavar="NAMES", help="only these, separated by commas")
    add("--loads", metavar="NAMES", help="only these, separated by commas")
    add("--list", action="store_true", help="list subjects and loads, and what is missing for each")
    add("--pin", action="store_true", help="subject on the last CPU, client and server on the rest")
    add("--out", type=Path, metavar="DIR", help="a new folder for raw data and report")
    add("--report", type=Path, metavar="RAW", help="measure nothing: report of raw.jsonl of a run")
    add("--goals", action="store_true", help="exit with 1 when a goal is missed or not measured")
    add("--name", help="of the namespaces tunlb-NAME-*, for two runs at a time (bench)")
    add(
        "--rootless",
        action="store_true",
        help="run in user namespaces even as root (without root this is what happens anyway)",
    )


def run(args: argparse.Namespace) -> int:
    """0: done; 1: something failed, or a goal was missed with --goals; 2: usage; 77: namespaces
    cannot be made here, and why was said."""
    if args.suite == "micro":
        from tunlb.bench.micro import run as micro

        return micro.main(args)
    problem = _wrong(args)
    if problem:
        print(f"tunlb bench: {problem}", file=sys.stderr)
        return EXIT_USAGE
    from tunlb.bench.samples import BenchError
    from tunlb.lab.host import LabError

    try:
        return _traffic_run(args)
    except (BenchError, LabError) as error:
        notes = getattr(error, "__notes__", ())
        print(f"tunlb bench: {error}", *notes, sep="\n", file=sys.stderr)
        return 1


def _wrong(args: argparse.Namespace) -> str | None:
    """What is wrong with the command line."""
    if args.rounds < 1:
        return "--rounds is 1 or more"
    if args.seconds < _LEAST_S:
        return f"--seconds is {_LEAST_S:g} or more: less than that measures the start only"
    from tunlb.bench.loads import LOADS
    from tunlb.bench.subjects import SUBJECTS

    for option, known in (("subjects", SUBJECTS), ("loads", LOADS)):
        names = [each.name for each in known]
        unknown = [name for name in _split(getattr(args, option)) if name not in names]
        if unknown:
            return f"--{option}: there is no {', '.join(unknown)}; there are {', '.join(names)}"
    return None


def _split(names: str) -> tuple[str, ...]:
    return tuple(name for name in names.split(",") if name)


def new_folder() -> Path:
    """Of the time that it is; in a source tree where git does not see it."""
    now = time.strftime("%Y%m%d-%H%M%S")
    tree = Path("bench/reflector.c").exists()
    return Path("bench/results", now) if tree else Path(f"tunlb-bench-{now}")


def _traffic_run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from tunlb.bench import plan, run
    from tunlb.lab import rootless
    from tunlb.lab.net import check_suffix

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    if args.report is not None:
        return run.conclude(args.report, args.out or args.report.parent, args.goals, console)
    if args.list:
        plan.listing(console)
        return 0
    check_suffix(args.name)
    again = [sys.executable, *sys.orig_argv[1:]]
    status = rootless.enter(again, wanted=args.rootless, tools=("ip", "unshare"))
    if status is not None:
        return status
    options = run.Options(
        subjects=_split(args.subjects),
        loads=_split(args.loads),
        rounds=args.rounds,
        seconds=args.seconds,
        pin=args.pin,
        goals=args.goals,
        name=args.name,
        out=args.out or new_folder(),
        command=("tunlb", *sys.argv[1:]),
    )
    return run.traffic(options, console)
