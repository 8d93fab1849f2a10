"""The kernel's side of a port, over netlink: its link, the routes into a TUN, and routing loops.

Everything here blocks (except `watch`): call it before the loop starts, or in a thread. pyroute2
does not run on a uvloop loop. A change is only asked for where something differs, so that a process
without CAP_NET_ADMIN gets through on what an administrator prepared, and otherwise is told what is
missing.
"""

from __future__ import annotations

from tunlb.links.change import (
    Change,
    Journal,
    Setup,
    dump_changes,
    load_changes,
    merge_undo,
    undo,
)
from tunlb.links.host import configure_host, left_over, refuse_bridge
from tunlb.links.link import Link, TunTap, carries, configure_port, derive_mac, find_link
from tunlb.links.loops import LoopProblem, check_loops
from tunlb.links.tun import (
    TunAddresses,
    install_tun_routes,
    service_addresses,
    tun_addresses,
)
from tunlb.links.watch import watch

__all__ = [
    "Change",
    "Journal",
    "Link",
    "LoopProblem",
    "Setup",
    "TunAddresses",
    "TunTap",
    "carries",
    "check_loops",
    "configure_host",
    "configure_port",
    "derive_mac",
    "dump_changes",
    "find_link",
    "install_tun_routes",
    "left_over",
    "load_changes",
    "merge_undo",
    "refuse_bridge",
    "service_addresses",
    "tun_addresses",
    "undo",
    "watch",
]
