"""The network that rooms are measured in: two ports, a client, a dest, in both families."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tunlb.testing.flow import mac_of
from tunlb.wire.ether import mac_text

CLIENT_MAC, SERVER_MAC = "02:00:00:00:01:02", "02:00:00:00:02:02"
OUTSIDE_MAC, INSIDE_MAC = mac_text(mac_of(0)), mac_text(mac_of(1))
DPORT = 8080
REMOTE = "10.16.0.9"  #: somebody behind the client, which routes


@dataclass(frozen=True)
class Net:
    """Where who is, in one family."""

    client: str
    vip: str
    dest: str
    laddr: str
    outside: str
    inside: str


NETS = MappingProxyType(
    {
        4: Net(
            "10.9.1.2", "10.9.1.100", "10.9.2.2", "10.9.2.100", "10.9.1.254/24", "10.9.2.254/24"
        ),
        6: Net(
            *("fd00:9:1::2", "fd00:9:1::100", "fd00:9:2::2", "fd00:9:2::100"),
            *("fd00:9:1::fe/64", "fd00:9:2::fe/64"),
        ),
    }
)


def network(conn_max: int) -> list[dict[str, Any]]:
    """Neighbours are static: no frame waits."""
    lines: list[dict[str, Any]] = [
        {"kind": "tunlb", "version": 1, "workers": 1, "conn_max": conn_max},
        {"kind": "port", "name": "out", "addresses": [net.outside for net in NETS.values()]},
        {"kind": "port", "name": "in", "addresses": [net.inside for net in NETS.values()]},
        {"kind": "route", "dst": "10.16.0.0/16", "port": "out", "via": NETS[4].client},
    ]
    for net in NETS.values():
        lines.append({"kind": "neigh", "port": "out", "addr": net.client, "mac": CLIENT_MAC})
        lines.append({"kind": "neigh", "port": "in", "addr": net.dest, "mac": SERVER_MAC})
    return lines
