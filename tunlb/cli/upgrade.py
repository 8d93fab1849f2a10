"""`tunlb upgrade`: have a running tunlb replace itself by the program as it is now on disk."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import Final

from tunlb.cli import _config

HELP: Final = "replace a running tunlb by the program as it is now installed, losing no connection"

WAIT_S: Final = 120.0
POLL_S: Final = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _config.add_option(parser, "the configuration that it runs with")


def run(arguments: argparse.Namespace) -> int:
    from tunlb.cli import EXIT_CONFIG
    from tunlb.conf import control_path
    from tunlb.supervisor import ask

    found = _config.read(arguments.config)
    if found is None:
        return EXIT_CONFIG
    _, config = found
    control = control_path(config, os.environ)
    before = ask(control)
    if before is None:
        print(
            f"tunlb: none that may be asked runs with the control {control} in this network "
            "namespace (start it: tunlb run)",
            file=sys.stderr,
        )
        return 1
    pid = int(before["pid"])
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        print(f"tunlb: cannot signal pid {pid}: {error.strerror}", file=sys.stderr)
        return 1
    return _await(control, pid, int(before["upgrade"]["number"]))


def _await(control: str, pid: int, number: int) -> int:
    from tunlb.supervisor import ask

    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        time.sleep(POLL_S)
        now = ask(control)
        if now is not None and now["upgrade"]["number"] > number:
            order = now["upgrade"]
            if order["outcome"] == "upgraded" and now["phase"] == "ready":
                print(f"tunlb (pid {pid}) was upgraded: {order['text']}")
                return 0
            if order["outcome"] == "refused":
                print(f"tunlb (pid {pid}) goes on as it is: {order['text']}", file=sys.stderr)
                return 1
        if not os.path.exists(f"/proc/{pid}"):
            print(
                f"tunlb (pid {pid}) ended; its workers may go on, and `tunlb run` takes them over: "
                "see its log",
                file=sys.stderr,
            )
            return 1
    print(f"tunlb (pid {pid}) did not say in {WAIT_S:g} s what became of it", file=sys.stderr)
    return 1
