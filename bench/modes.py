"""Small packets by each forwarding mode, in turns: how many a second reach the server's device.

A flood of 18-byte datagrams goes to the VIP, faster than anybody forwards. The server drops
them as they come, so that neither taking a tunnel's packet out of its outer header nor a socket is
the limit: what is counted is what tunlb forwarded. Ratios are those of one round, to full NAT.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from tunlb.bench import tools
from tunlb.lab import TOPOLOGIES, Host, Lab

MODES = ("fnat", "nat", "dr", "ipip", "gre", "gue")
VPORT = 9999
RULES = f"""
table inet bench {{
    chain prerouting {{
        type filter hook prerouting priority raw
        udp dport {{ {VPORT}, 6080 }} drop
        meta l4proto {{ 4, 47 }} drop
    }}
}}
"""


def configuration(mode: str) -> str:
    topology = TOPOLOGIES["dr"]
    service: dict[str, object] = {"kind": "service", "name": mode, "proto": "udp"}
    service |= {"vaddr": topology.vips.v4, "vport": VPORT, "scheduler": "rr"}
    if mode == "fnat":
        service |= {"fwdmode": "fnat", "laddrs": ["10.0.0.200"]}
    elif mode in ("nat", "dr"):
        service |= {"fwdmode": mode}
    else:
        service |= {"fwdmode": "tunnel", "tunnel": {"type": mode}}
    dest = {"kind": "dest", "service": mode, "daddr": topology.servers[0][1].v4}
    ports = [{"kind": "port", **port} for port in topology.ports]
    return "".join(json.dumps(line) + "\n" for line in (*ports, service, dest))


def received(server: Host) -> int:
    return int(server.run(["cat", "/sys/class/net/eth0/statistics/rx_packets"]).stdout)


def measure(lab: Lab, mode: str, flood: list[str], seconds: float) -> float:
    """Packets a second."""
    server = lab.host("s1")
    tunlb = lab.start_tunlb(configuration(mode))
    try:
        lab.client.run([*flood, "-t", "0.3"])  # neighbours are known, conns are there
        before = received(server)
        lab.client.run([*flood, "-t", f"{seconds:g}"])
        time.sleep(0.05)
        return (received(server) - before) / seconds
    finally:
        tunlb.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    args = parser.parse_args()
    helpers = tools.build(["udpflood"])
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    console = Console()
    with Lab(TOPOLOGIES["dr"], f"modes-{os.getpid()}") as lab:
        nft = lab.host("s1").argv(["nft", "-f", "-"])
        subprocess.run(nft, input=RULES, text=True, check=True)
        flood = [str(helpers.path("udpflood")), "send", lab.topology.vips.v4, str(VPORT)]
        for turn in range(args.rounds):
            for mode in MODES:
                rates[mode].append(measure(lab, mode, flood, args.seconds))
            told = ", ".join(f"{mode} {rates[mode][-1] / 1000:.0f}" for mode in MODES)
            console.print(f"round {turn + 1} of {args.rounds}: {told} kpps")
    table = Table("mode", "kpps", "min-max", "x fnat", title="18-byte datagrams, medians")
    for mode, found in rates.items():
        ratios = sorted(rate / full for rate, full in zip(found, rates["fnat"], strict=True))
        table.add_row(
            mode,
            f"{statistics.median(found) / 1000:.0f}",
            f"{min(found) / 1000:.0f}-{max(found) / 1000:.0f}",
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
        )
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
