"""The kernel's side of a port, over netlink: its link, the routes into a TUN, and routing loops.

Everything here blocks (except `watch`): call it before the loop starts, or in a thread. pyroute2
does not run on a uvloop loop. A change is only asked for where something differs, so that a process
without CAP_NET_ADMIN gets through on what an administrator prepared, and otherwise is told what is
missing.
"""

from __future__ import annotations

from tunlb.links.change import Change, Setup, undo
from tunlb.links.link import Link, configure_port, derive_mac, find_link
from tunlb.links.loops import LoopProblem, check_loops
from tunlb.links.tun import install_tun_routes
from tunlb.links.watch import watch

__all__ = [
    "Change",
    "Link",
    "LoopProblem",
    "Setup",
    "check_loops",
    "configure_port",
    "derive_mac",
    "find_link",
    "install_tun_routes",
    "undo",
    "watch",
]
