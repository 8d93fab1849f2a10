"""`tunlb lab`: networks of namespaces to try tunlb in."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunlb.lab.net import Lab

HELP = "list, build or remove a network of namespaces to try tunlb in"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "up", "down"),
        default="list",
        help="list what there is (the default), build a lab, or remove one",
    )
    parser.add_argument("name", nargs="?", help="the lab's name, as `tunlb lab` lists it")
    parser.add_argument(
        "--rootless",
        action="store_true",
        help="build it in user namespaces even as root; it then lives as long as the shell in it",
    )


def run(args: argparse.Namespace) -> int:
    """0: done; 1: it failed; 2: usage; 77: a lab cannot be built here, and why was said."""
    from tunlb.lab.host import LabError

    if args.action != "list" and args.name is None:
        print(f"tunlb lab {args.action}: which one? `tunlb lab` lists them", file=sys.stderr)
        return 2
    try:
        if args.action == "list":
            return _list()
        return _up(args.name, args.rootless) if args.action == "up" else _down(args.name)
    except LabError as error:
        print(f"tunlb lab: {error}", file=sys.stderr)
        return 1


def _list() -> int:
    from tunlb.lab.net import running
    from tunlb.lab.topology import TOPOLOGIES

    print("labs that `tunlb lab up NAME` builds:")
    for topology in TOPOLOGIES.values():
        print(f"  {topology.name:<10} {topology.summary}")
    labs = running()
    print("up now:" if labs else "up now: none")
    for lab in labs:
        state = f"since {lab.created}" if lab.complete else "incomplete: a set-up that ended early"
        print(
            f"  {lab.suffix:<20} {state}, {len(lab.namespaces)} namespaces,"
            f" {len(lab.pids)} processes"
        )
    return 0


def _up(name: str, wanted_rootless: bool) -> int:
    from tunlb.lab import rootless
    from tunlb.lab.host import LabError
    from tunlb.lab.net import Lab, running
    from tunlb.lab.topology import TOPOLOGIES

    if name not in TOPOLOGIES:
        raise LabError(f"there is no lab {name!r}; there are {', '.join(TOPOLOGIES)}")
    again = [sys.executable, "-m", "tunlb", "lab", "up", name]
    status = rootless.enter(again, wanted=wanted_rootless)
    if status is not None:
        return status
    if any(state.suffix == name and state.complete for state in running()):
        raise LabError(f"{name} is up already; remove it with: tunlb lab down {name}")
    lab = Lab(TOPOLOGIES[name], name)
    lab.up()
    if not rootless.inside():
        print(usage(lab, shell=False))
        return 0
    with contextlib.ExitStack() as stack:
        stack.callback(lab.down)
        print(usage(lab, shell=True), flush=True)
        return subprocess.call([os.environ.get("SHELL", "/bin/sh")])


def _down(name: str) -> int:
    from tunlb.lab import rootless
    from tunlb.lab.host import LabError
    from tunlb.lab.net import remove

    if os.geteuid() != 0 and not rootless.inside():
        raise LabError(
            f"removing {name} needs root; a lab that was built without root ends with its shell"
        )
    removed = remove(name)
    print(f"removed {', '.join(removed)}" if removed else f"{name} is not up: nothing to remove")
    return 0


def usage(lab: Lab, *, shell: bool) -> str:
    """What to paste, for somebody who sees the lab for the first time."""
    from tunlb.lab import clients

    topology = lab.topology
    web = topology.service("web")
    client = shlex.join(lab.client.argv([]))
    tunlb = shlex.join(lab.tunlb_argv(lab.dir / "tunlb.jsonl"))
    lines = [f"{topology.name} is up: {topology.summary}", ""]
    lines += [f"  {host.ns}" for host in lab.hosts.values()]
    lines += ["", "Start tunlb (Ctrl-C stops it):", f"  {tunlb}{' &' if shell else ''}"]
    if topology.after_ready:
        lines += ["and, once it is ready:"]
        lines += [
            f"  ip {line[:2]} -n {lab.director.ns} {line[3:]}" for line in topology.after_ready
        ]
    lines += ["", "Fetch a page, ask whom the server saw, and measure, through the VIP:"]
    for vip in topology.vips:
        lines.append(f"  {client} curl -g {shlex.quote(clients.url(vip, web.vport))}")
    lines += [
        f"  {client} curl {clients.url(topology.vips.v4, web.vport, '/peer')}",
        f"  {client} iperf3 -t 3 -c {topology.vips.v4}",
        f"  {client} iperf3 -t 3 -u -b 200M -c {topology.vips.v4}",
        "",
    ]
    lines.append("Leave with: exit" if shell else f"Remove it: tunlb lab down {lab.suffix}")
    return "\n".join(lines)
