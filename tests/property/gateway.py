"""Frames for a director that is a gateway: snat, a cache with bypass, pings as a service."""

from __future__ import annotations

import json

from tunlb.testing import frames as f
from tunlb.testing.flow import mac_of

WAN, LAN = mac_of(0).to_bytes(6, "big"), mac_of(1).to_bytes(6, "big")
ROUTER, HOST, CACHE = "02:00:00:00:00:01", "02:00:00:00:00:50", "02:00:00:00:00:11"
MACS = {"wan": (WAN, ROUTER), "lan": (LAN, HOST)}
FAR = ("192.0.2.7", "fd99::5")
HOSTS = ("10.0.0.50", "fd00::50")
LADDRS = ("10.1.0.200", "fd01::200")
PING_LADDRS = ("10.0.0.200", "fd00::200")


def _match(name: str, proto: str, mode: str, match: object, **keys: object) -> str:
    line = {"kind": "service", "name": name, "proto": proto, "fwdmode": mode, "match": match}
    return json.dumps(line | keys)


def _config() -> str:
    lines = [
        '{"kind":"port","name":"wan","addresses":["10.1.0.254/24","fd01::fe/64"],"mtu":1400}',
        '{"kind":"port","name":"lan","addresses":["10.0.0.254/24","fd00::fe/64"]}',
        '{"kind":"route","dst":"0.0.0.0/0","via":"10.1.0.1","port":"wan"}',
        '{"kind":"route","dst":"::/0","via":"fd01::1","port":"wan"}',
    ]
    stations = (
        *(("wan", "10.1.0.1", ROUTER), ("wan", "fd01::1", ROUTER)),
        *(("lan", "10.0.0.50", HOST), ("lan", "fd00::50", HOST)),
        *(("lan", "10.0.0.11", CACHE), ("lan", "fd00::11", CACHE)),
    )
    for port, addr, mac in stations:
        lines.append(json.dumps({"kind": "neigh", "port": port, "addr": addr, "mac": mac}))
    for version, anywhere, vip, cache in (
        (4, "0.0.0.0/0", "10.0.0.100", "10.0.0.11"),
        (6, "::/0", "fd00::100", "fd00::11"),
    ):
        host, laddr = HOSTS[version == 6], LADDRS[version == 6]
        web = {"src": [host], "dport": "80-81"}
        ping = {"kind": "service", "name": f"ping{version}", "proto": "icmp", "vaddr": vip}
        lines += [
            json.dumps(ping | {"laddrs": [PING_LADDRS[version == 6]], "scheduler": "rr"}),
            json.dumps({"kind": "dest", "service": f"ping{version}", "daddr": cache}),
            _match(f"web{version}", "tcp", "nat", web, bypass=True),
            json.dumps({"kind": "dest", "service": f"web{version}", "daddr": cache, "max_conn": 2}),
            *(
                _match(f"{proto}{version}", proto, "snat", match, laddrs=[laddr])
                for proto in ("tcp", "udp", "icmp")
                for match in ({"iport": "lan", "oport": "wan", "dst": [anywhere]},)
            ),
        ]
    return "\n".join(lines)


def _frames() -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []

    def add(port: str, saddr: str, daddr: str, body: f.Payload, **offload: object) -> bytes:
        packet = f.ip(saddr, daddr, body)
        frame = f.eth(*MACS[port], payload=packet)
        found.append((port, f.vnet(frame, **offload)))  # type: ignore[arg-type]
        return packet

    for v6, (host, far, laddr) in enumerate(zip(HOSTS, FAR, LADDRS, strict=True)):
        cache, vip = (("10.0.0.11", "10.0.0.100"), ("fd00::11", "fd00::100"))[v6]
        gso = {"needs_csum": True, "gso_type": f.GSO_TCPV6 if v6 else f.GSO_TCPV4}
        ask, answer, big, late = ((8, 0, (3, 4), (11, 0)), (128, 129, (2, 0), (3, 0)))[v6]
        # Out and back, by a host port that is kept.
        for flags in ("S", "A", "PA", "FA"):
            add("lan", host, far, f.tcp(40000, 443, flags=flags))
            add("wan", far, laddr, f.tcp(443, 40000, flags="SA" if flags == "S" else "A"))
        add("lan", host, far, f.tcp(40000, 443, bytes(3000)), gso_size=1200, **gso)
        add("lan", host, far, f.udp(40000, 53, b"odd"), needs_csum=True)
        add("wan", far, laddr, f.udp(53, 40000, b"even"))
        add("lan", host, far, f.icmp(ask, 0, 40000 << 16 | 1, b"odd"))
        add("wan", far, laddr, f.icmp(answer, 0, 40000 << 16 | 1, b"odd"))
        # A cache, full after two.
        for cport in (1, 2, 3):
            add("lan", host, far, f.tcp(cport, 80, flags="S"))
        add("lan", cache, host, f.tcp(80, 1, flags="SA"))
        add("wan", far, host, f.tcp(80, 3, flags="SA"))
        # Pings of the VIP.
        for number in (0, 1, 65535):
            add("wan", far, vip, f.icmp(ask, 0, number << 16 | 1, b"x"))
        add("lan", cache, PING_LADDRS[v6], f.icmp(answer, 0, 1025 << 16 | 1, b"x"))
        # Errors about each.
        for kind, code in (big, late):
            for about in (
                f.ip(laddr, far, f.tcp(40000, 443, bytes(9))),
                f.ip(laddr, far, f.udp(40000, 53, bytes(9))),
                f.ip(laddr, far, f.icmp(ask, 0, 40000 << 16 | 1, b"odd")),
            ):
                add("wan", far, laddr, f.icmp(kind, code, 1280, about))
                add("wan", far, laddr, f.icmp(kind, code, 1280, about[: (40 if v6 else 20) + 8]))
            add("lan", host, far, f.icmp(kind, code, 1280, f.ip(far, host, f.tcp(80, 1, b"x" * 9))))
            add("lan", host, far, f.icmp(kind, code, 1280, f.ip(far, host, f.tcp(80, 3, b"x" * 9))))
            quoted = f.ip(far, host, f.icmp(answer, 0, 40000 << 16 | 1, b"odd"))
            add("lan", host, far, f.icmp(kind, code, 1280, quoted))
        # What nobody asked for, and what stays.
        add("lan", host, far, f.icmp(answer, 0, 7 << 16 | 1, b"x"))
        add("wan", far, laddr, f.udp(54, 40000, b"x"))
        add("lan", host, vip, f.udp(5, 6, b"x"))
        add("lan", host, "10.0.0.255" if not v6 else "fe80::9", f.udp(5, 6, b"x"))
    return found


CONFIG = _config()
FRAMES = _frames()
