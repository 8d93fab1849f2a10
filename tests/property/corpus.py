"""Frames of every kind for two directors, ways to spoil them, and one way to feed them.

A *step* is (frame, edits, ms): the index of a good frame, how to spoil it, and the time that
passes before it is read. Steps are plain data, so that Hypothesis shrinks them and so that they
can be replayed in another interpreter (:mod:`tests.property.replay`).
"""

from __future__ import annotations

import ipaddress
import json
import struct
from dataclasses import dataclass, field
from typing import Any

from tests.flow.fragmenting import cut
from tests.property import gateway
from tunlb.testing import frames as f
from tunlb.testing import sctp as s
from tunlb.testing.flow import Rig, Sent, mac_of

Edit = tuple[str, int, int]
Step = tuple[int, list[Edit], int]

EDITS = ("flip", "set", "word", "cut", "grow", "splice", "swap", "source", "target", "seal")

VNET = 10

#: Addresses that mean something: ours, dests, clients, and those that no wire may carry.
ADDRESSES = (
    *(
        "10.0.0.254",
        "10.0.0.100",
        "10.0.0.200",
        "10.0.0.11",
        "10.0.0.50",
        "10.1.0.254",
        "192.0.2.7",
    ),
    *("0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1", "10.0.0.255", "169.254.0.1"),
)
ADDRESSES6 = (
    *("fd00::fe", "fd00::100", "fd00::200", "fd00::11", "fd00::50", "fd99::5"),
    *("::", "::1", "ff02::1", "fe80::1", "::ffff:10.0.0.50"),
)

LB, LB1 = mac_of(0).to_bytes(6, "big"), mac_of(1).to_bytes(6, "big")
GATEWAY, CLIENT = "02:00:00:00:00:01", "02:00:00:00:00:50"
DESTS = {"10.0.0.11": "02:00:00:00:00:11", "fd00::11": "02:00:00:00:06:11"}
FAR_DESTS = {"10.1.0.11": "02:00:00:00:01:11"}
STATIONS = {
    "10.0.0.1": GATEWAY,
    "fd00::1": GATEWAY,
    "10.0.0.50": CLIENT,
    "fd00::50": CLIENT,
    **DESTS,
}


def _service(
    name: str, proto: str, vaddr: str, vport: object, mode: str, daddr: str, dport: int | None
) -> str:
    laddr = "10.9.0.200" if vaddr.startswith("10.9") else "10.0.0.200"
    laddr = "fd00::200" if ":" in daddr else laddr
    laddrs = f',"laddrs":["{laddr}"]' if mode == "fnat" else ""
    port = f'"{vport}"' if isinstance(vport, str) else vport
    to = "" if dport is None else f',"dport":{dport}'
    return (
        f'{{"kind":"service","name":"{name}","proto":"{proto}","vaddr":"{vaddr}","vport":{port},'
        f'"fwdmode":"{mode}","scheduler":"rr"{laddrs}}}\n'
        f'{{"kind":"dest","service":"{name}","daddr":"{daddr}"{to}}}'
    )


def _neigh(port: str, stations: dict[str, str]) -> str:
    return "\n".join(
        f'{{"kind":"neigh","port":"{port}","addr":"{addr}","mac":"{mac}"}}'
        for addr, mac in stations.items()
    )


#: Every mode, both families and protocols, a port range and any port; two taps and a VLAN.
TAP_CONFIG = "\n".join(
    (
        '{"kind":"port","name":"lb0","type":"tap","addresses":["10.0.0.254/24","fd00::fe/64"],'
        '"vlans":[{"id":10,"addresses":["10.10.0.254/24"]}]}',
        '{"kind":"port","name":"lb1","type":"tap","addresses":["10.1.0.254/24"],"mtu":1400}',
        '{"kind":"route","dst":"0.0.0.0/0","via":"10.0.0.1","port":"lb0"}',
        '{"kind":"route","dst":"fd99::/16","via":"fd00::1","port":"lb0"}',
        _neigh("lb0", STATIONS),
        _neigh("lb1", FAR_DESTS),
        _neigh("lb0.10", {"10.10.0.5": CLIENT}),
        _service("fnat", "tcp", "10.0.0.100", 80, "fnat", "10.0.0.11", 8080),
        _service("nat", "tcp", "10.0.0.100", 81, "nat", "10.1.0.11", 8081),
        _service("dr", "tcp", "10.0.0.100", 82, "dr", "10.0.0.11", 82),
        _service("range", "tcp", "10.0.0.100", "90-99", "nat", "10.0.0.11", None),
        # Behind it stands the same dest, where a client's port can be in use for `range` already.
        _service("twin", "tcp", "10.0.0.102", 95, "nat", "10.0.0.11", 95),
        _service("udp", "udp", "10.0.0.100", 53, "fnat", "10.0.0.11", 5353),
        _service("any", "udp", "10.0.0.101", 0, "nat", "10.1.0.11", None),
        _service("fnat6", "tcp", "fd00::100", 80, "fnat", "fd00::11", 8080),
        _service("nat6", "udp", "fd00::100", 53, "nat", "fd00::11", 5353),
        _service("dr6", "tcp", "fd00::100", 82, "dr", "fd00::11", 82),
        _service("nat64", "tcp", "fd00::100", 64, "fnat", "10.0.0.11", 6400),
        _service("nat64u", "udp", "fd00::100", 64, "fnat", "10.0.0.11", 6400),
        _service("nat46u", "udp", "10.0.0.100", 46, "fnat", "fd00::11", 4600),
        _service("sctp", "sctp", "10.0.0.100", 9, "fnat", "10.0.0.11", 90),
        _service("sctp6", "sctp", "fd00::100", 9, "nat", "fd00::11", 90),
        _service("sctp64", "sctp", "fd00::100", 64, "fnat", "10.0.0.11", 90),
    )
)

TUN_CONFIG = "\n".join(
    (
        '{"kind":"port","name":"tun0","type":"tun","addresses":["10.9.0.254/24","fd00::fe/64"]}',
        '{"kind":"route","dst":"0.0.0.0/0","port":"tun0"}',
        '{"kind":"route","dst":"::/0","port":"tun0"}',
        _service("fnat", "tcp", "10.9.0.100", 80, "fnat", "10.0.0.11", 8080),
        _service("nat", "udp", "10.9.0.100", 53, "nat", "10.0.0.11", 5353),
        _service("fnat6", "tcp", "fd00::100", 80, "fnat", "fd00::11", 8080),
        _service("nat6", "udp", "fd00::100", 53, "nat", "fd00::11", 5353),
    )
)


@dataclass(frozen=True)
class Kind:
    """One director, and its good frames as (port, frame with its virtio-net header)."""

    config: str
    frames: list[tuple[str, bytes]]
    tun: bool = False


def _tap_flow(client: str, server: str, **fields: object) -> f.Flow:
    return f.Flow(client, server, client_mac=CLIENT, server_mac=LB, **fields)  # type: ignore[arg-type]


def _reply(dest: str, to: str, mac: str, lb: bytes = LB, *, tun: bool = False) -> f.Flow:
    """What a dest says: its frames are those of the flow's client."""
    return f.Flow(dest, to, client_mac=mac, server_mac=lb, tun=tun)


def _tcp(
    port: str, there: f.Flow, back: f.Flow | None, back_port: str = ""
) -> list[tuple[str, bytes]]:
    """A conversation: handshake, plain, partial and GSO data both ways, end."""
    tun = there.tun
    found = [(port, f.vnet(there.syn()))]
    for flow, where in ((back, back_port or port), (there, port)):
        if flow is None:
            found.append((where, f.vnet(there.ack())))
            continue
        gso = f.GSO_TCPV6 if "[" in flow.client else f.GSO_TCPV4
        if flow is back:
            found.append((where, f.vnet(flow.segment("SA", mss=1460))))
        found += [
            (where, f.vnet(flow.ack())),
            (where, f.vnet(flow.data(b"odd"), needs_csum=True, tun=tun)),
            (
                where,
                f.vnet(
                    flow.data(bytes(3000)), needs_csum=True, gso_type=gso, gso_size=1200, tun=tun
                ),
            ),
            (where, f.vnet(flow.data(b"good", options=b"\2\4\5\xb4"), data_valid=True)),
        ]
    found.append((port, f.vnet(there.fin())))
    if back is not None:
        found.append((back_port or port, f.vnet(back.fin())))
    found.append((port, f.vnet(there.rst())))
    return found


def _udp(port: str, there: f.Flow, back: f.Flow, back_port: str = "") -> list[tuple[str, bytes]]:
    tun = there.tun
    gso: dict[str, Any] = {"gso_type": f.GSO_UDP_L4, "gso_size": 1000}
    found = []
    for flow, where in ((there, port), (back, back_port or port)):
        found += [
            (where, f.vnet(flow.udp(b"odd"))),
            (where, f.vnet(flow.udp(b"even"), needs_csum=True, tun=tun)),
            (where, f.vnet(flow.udp(bytes(2500)), needs_csum=True, tun=tun, **gso)),
        ]
    if "[" not in there.client:
        found.append((port, f.vnet(there.udp(b"bare", checksum=0))))
    return found


def _sctp(there: tuple[str, str, int], back: tuple[str, str, int], mac: str) -> list[bytes]:
    """An association; each side is (its address, where it sends to, that port), from port 7."""
    up = [s.init(), s.chunk(s.COOKIE_ECHO, b"x"), s.chunk(s.DATA, bytes(999), 3)]
    down = [s.init(kind=s.INIT_ACK), s.chunk(s.COOKIE_ACK) + s.chunk(s.SACK, bytes(12))]
    found = []
    for at, chunk in enumerate((*up, s.chunk(s.SHUTDOWN, bytes(4)))):
        body = s.sctp(7, there[2], chunk, vtag=at)
        found.append(f.vnet(f.eth(LB, CLIENT, payload=f.ip(there[0], there[1], body))))
    for chunk in (*down, s.chunk(s.ABORT)):
        body = s.sctp(90, back[2], chunk, vtag=9)
        found.append(f.vnet(f.eth(LB, mac, payload=f.ip(back[0], back[1], body))))
    return found


def _crossed() -> list[tuple[str, bytes]]:
    """Conns between the families, SCTP, and errors about both."""
    dest, dest6 = DESTS["10.0.0.11"], DESTS["fd00::11"]
    found = [
        *_tcp(
            "lb0",
            _tap_flow("[fd00::50]:7", "[fd00::100]:64"),
            _reply("10.0.0.11:6400", "10.0.0.200:1025", dest),
        ),
        *_udp(
            "lb0",
            _tap_flow("[fd99::5]:7", "[fd00::100]:64"),
            _reply("10.0.0.11:6400", "10.0.0.200:1025", dest),
        ),
        *_udp(
            "lb0",
            _tap_flow("10.0.0.50:7", "10.0.0.100:46"),
            _reply("[fd00::11]:4600", "[fd00::200]:1025", dest6),
        ),
    ]
    streams = [
        *_sctp(("10.0.0.50", "10.0.0.100", 9), ("10.0.0.11", "10.0.0.200", 1025), dest),
        *_sctp(("fd00::50", "fd00::100", 9), ("fd00::11", "fd00::50", 7), dest6),
        *_sctp(("fd00::50", "fd00::100", 64), ("10.0.0.11", "10.0.0.200", 1026), dest),
    ]
    said = f.ipv4("10.0.0.200", "10.0.0.11", f.tcp(1025, 6400, b"x" * 20))
    said4 = f.ipv4("10.0.0.200", "10.0.0.11", f.udp(1025, 6400, b"x" * 20))
    said6 = f.ipv6("fd00::200", "fd00::11", f.udp(1025, 4600, b"x" * 20))
    heard = f.ipv6("fd00::100", "fd00::50", f.tcp(64, 7, b"x" * 20))
    quoted = f.ipv4("10.0.0.200", "10.0.0.11", s.sctp(1025, 90, s.chunk(s.DATA, bytes(20))))
    bare = [
        *(error("10.0.0.11", "10.0.0.200", 3, code, said, 1280) for code in range(16)),
        error("10.0.0.11", "10.0.0.200", 12, 0, said, 8 << 24),
        error("10.0.0.11", "10.0.0.200", 3, 3, said4[:28]),
        error("10.0.0.11", "10.0.0.200", 11, 0, quoted),
        error("10.0.0.11", "10.0.0.200", 3, 2, quoted[:28]),
        *(error("fd00::11", "fd00::200", 1, code, said6) for code in range(6)),
        error("fd00::11", "fd00::200", 2, 0, said6, 1300),
        error("fd00::50", "fd00::100", 4, 0, heard, 24),
        error("fd00::50", "fd00::100", 3, 0, heard[:48]),
        f.ipv6(
            *("fd00::50", "fd00::100", f.tcp(7, 64, b"x")),
            extensions=((0, bytes(7)), (51, b"\4" + bytes(22))),
        ),
    ]
    streams += [f.vnet(f.eth(LB, CLIENT, payload=packet)) for packet in bare]
    return found + [("lb0", frame) for frame in streams]


def error(saddr: str, daddr: str, kind: int, code: int, about: bytes, info: int = 0) -> bytes:
    """An ICMP error that quotes the packet ``about``."""
    return f.ip(saddr, daddr, f.icmp(kind, code, info, about))


def _tap_frames() -> list[tuple[str, bytes]]:
    dest, dest6, far = DESTS["10.0.0.11"], DESTS["fd00::11"], FAR_DESTS["10.1.0.11"]
    client = "10.0.0.50:40000"
    found = [
        *_tcp(
            "lb0",
            _tap_flow(client, "10.0.0.100:80"),
            _reply("10.0.0.11:8080", "10.0.0.200:1025", dest),
        ),
        *_tcp(
            "lb0",
            _tap_flow(client, "10.0.0.100:81"),
            _reply("10.1.0.11:8081", client, far, LB1),
            "lb1",
        ),
        *_tcp("lb0", _tap_flow(client, "10.0.0.100:82"), None),
        *_tcp(
            "lb0",
            _tap_flow("192.0.2.7:7", "10.0.0.100:95"),
            _reply("10.0.0.11:95", "192.0.2.7:7", dest),
        ),
        *_tcp(
            "lb0",
            _tap_flow("[fd00::50]:7", "[fd00::100]:80"),
            _reply("[fd00::11]:8080", "[fd00::200]:1025", dest6),
        ),
        *_tcp("lb0", _tap_flow("[fd99::5]:7", "[fd00::100]:82"), None),
        *_udp(
            "lb0",
            _tap_flow(client, "10.0.0.100:53"),
            _reply("10.0.0.11:5353", "10.0.0.200:1025", dest),
        ),
        *_udp(
            "lb0", _tap_flow(client, "10.0.0.101:7"), _reply("10.1.0.11:7", client, far, LB1), "lb1"
        ),
        *_udp(
            "lb0",
            _tap_flow("[fd99::5]:7", "[fd00::100]:53"),
            _reply("[fd00::11]:5353", "[fd99::5]:7", dest6),
        ),
    ]
    said = f.ipv4("10.0.0.200", "10.0.0.11", f.tcp(1025, 8080, b"x" * 20))
    answered = f.ipv4("10.0.0.100", "10.0.0.50", f.udp(53, 40000, b"answer"))
    answered6 = f.ipv6("fd00::100", "fd99::5", f.udp(53, 7, b"answer"))
    bare = [
        error("10.0.0.11", "10.0.0.200", 3, 4, said, 1280),
        error("10.0.0.11", "10.0.0.200", 3, 1, said[:28]),
        error("192.0.2.1", "10.0.0.100", 11, 0, answered),
        error("fd99::1", "fd00::100", 2, 0, answered6, 1280),
        f.ipv4("10.0.0.50", "10.0.0.254", f.echo(1, 1, bytes(99))),
        f.ipv4("10.0.0.50", "10.0.0.100", f.echo(1, 2), options=b"\x94\4\0\0"),
        f.ipv6("fd00::50", "fd00::100", f.echo(1, 1, v6=True)),
        f.ipv4("10.0.0.50", "10.1.0.11", f.udp(1, 2, bytes(1390))),
        f.ipv4("10.0.0.50", "198.51.100.1", f.tcp(1, 2, flags="S"), ttl=1),
        f.ipv4("10.0.0.50", "10.0.0.77", f.udp(5, 6, b"nobody there")),
        f.ipv4("10.0.0.50", "10.0.0.100", f.tcp(40001, 80, b"late"), ttl=9),
        f.ipv4("10.0.0.50", "10.0.0.100", f.udp(5, 80, b"x"), mf=True),
        f.ipv4("10.0.0.50", "10.0.0.100", bytes(40), proto=47),
        f.ipv6(
            "fd00::50", "fd99::1", f.udp(1, 2, b"x"), extensions=((0, bytes(7)), (60, bytes(7)))
        ),
        f.ipv6(
            "fd00::50",
            "fd00::100",
            f.tcp(9, 80, flags="S"),
            extensions=((44, b"\0\0\1" + bytes(4)),),
        ),
        f.ipv6("fd00::50", "fd00::100", f.nd_ns("fd00::100", CLIENT), ttl=255),
        f.ipv6("fd00::50", "fd00::fe", f.nd_na("fd00::50", CLIENT), ttl=255),
        f.ipv4("10.0.0.50", "224.0.0.1", f.udp(1, 2)),
    ]
    found += [("lb0", f.vnet(f.eth(LB, CLIENT, payload=packet))) for packet in bare]
    found.append(("lb0", f.vnet(_tap_flow("192.0.2.7:7", "10.0.0.102:95").syn())))
    own = f.vnet(f.eth(LB, LB, payload=bare[4]))
    tagged = f.eth(LB, CLIENT, payload=f.ipv4("10.10.0.5", "10.0.0.50", f.udp(1, 2, b"x")), vlan=10)
    tagged_vip = _tap_flow("10.10.0.5:1", "10.0.0.100:80", vlan=10)
    found += [
        ("lb0", own),
        ("lb0", f.vnet(tagged)),
        ("lb0", f.vnet(tagged_vip.syn(), needs_csum=True)),
        ("lb0", f.vnet(f.eth(LB, CLIENT, payload=bare[4], vlan=(5, 10)))),
        ("lb0", f.vnet(f.arp(1, CLIENT, "10.0.0.50", tpa="10.0.0.100"))),
        ("lb0", f.vnet(f.arp(2, "02:00:00:00:00:77", "10.0.0.77", LB, "10.0.0.254"))),
        ("lb0", f.vnet(f.arp(1, CLIENT, "10.10.0.5", tpa="10.10.0.254", vlan=10))),
        ("lb1", f.vnet(f.arp(1, FAR_DESTS["10.1.0.11"], "10.1.0.11", tpa="10.1.0.254"))),
    ]
    return found


def _tun_frames() -> list[tuple[str, bytes]]:
    def flow(client: str, server: str) -> f.Flow:
        return f.Flow(client, server, tun=True)

    client, client6 = "192.0.2.7:40000", "[fd99::5]:40000"
    found = [
        *_tcp("tun0", flow(client, "10.9.0.100:80"), flow("10.0.0.11:8080", "10.9.0.200:1025")),
        *_tcp("tun0", flow(client6, "[fd00::100]:80"), flow("[fd00::11]:8080", "[fd00::200]:1025")),
        *_udp("tun0", flow(client, "10.9.0.100:53"), flow("10.0.0.11:5353", client)),
        *_udp("tun0", flow(client6, "[fd00::100]:53"), flow("[fd00::11]:5353", client6)),
    ]
    bare = [
        f.ipv4("192.0.2.7", "10.9.0.100", f.echo(1, 1)),
        f.ipv6("fd99::5", "fd00::100", f.echo(1, 1, v6=True)),
        error(
            "192.0.2.1",
            "10.9.0.100",
            3,
            1,
            f.ipv4("10.9.0.100", "192.0.2.7", f.tcp(80, 40000, b"12345678")),
        ),
        f.ipv4("192.0.2.7", "198.51.100.1", f.udp(1, 2), ttl=1),
        f.ipv4("192.0.2.7", "198.51.100.1", f.udp(1, 2)),
    ]
    return found + [("tun0", f.vnet(packet, tun=True)) for packet in bare]


def _tunnel_config() -> str:
    """Every wrapping, of either family in either, and a clamped MSS."""
    lines = [line for line in TAP_CONFIG.splitlines() if '"service"' not in line]
    for name, proto, vaddr, daddr, keys in (
        ("ipip", "tcp", "10.0.0.100", "10.0.0.11", '{"type":"ipip"},"mss_clamp":true'),
        ("gre", "udp", "10.0.0.100", "fd00::11", '{"type":"gre","csum":true}'),
        ("gue", "tcp", "fd00::100", "10.0.0.11", '{"type":"gue","csum":true}'),
        ("gue6", "udp", "fd00::100", "fd00::11", '{"type":"gue"}'),
    ):
        text = _service(name, proto, vaddr, 80, "tunnel", daddr, None)
        lines.append(text.replace('"scheduler"', f'"tunnel":{keys},"scheduler"', 1))
    return "\n".join(lines)


def _tunnel_frames() -> list[tuple[str, bytes]]:
    """Conversations, and errors about what they become."""
    found = []
    for client, server in (("10.0.0.50:40000", "10.0.0.100:80"), ("[fd99::5]:7", "[fd00::100]:80")):
        flow = _tap_flow(client, server)
        found += _tcp("lb0", flow, None)
        found += _udp("lb0", flow, flow)
        gso = f.GSO_TCPV6 if "[" in client else f.GSO_TCPV4
        large = {"needs_csum": True, "gso_type": gso, "gso_size": 1000}
        found.append(("lb0", f.vnet(flow.data(bytes(3500)), **large)))  # type: ignore[arg-type]
    inner = f.ipv4("10.0.0.50", "10.0.0.100", f.tcp(40000, 80, b"x" * 1400), ttl=63)
    inner6 = f.ipv6("fd99::5", "fd00::100", f.tcp(7, 80, b"x" * 1300), ttl=63)
    gue = struct.pack("!BBH", 0, 41, 0) + inner6
    for kind, info, outer in (
        ((3, 4), 1300, f.ipv4("10.0.0.254", "10.0.0.11", inner, proto=4)),
        ((3, 1), 0, f.ipv4("10.0.0.254", "10.0.0.11", inner, proto=4)),
        ((3, 4), 1320, f.ipv4("10.0.0.254", "10.0.0.11", f.udp(50000, 6080, gue))),
        ((11, 0), 0, f.ipv4("10.0.0.254", "10.0.0.11", f.udp(50000, 6080, gue))),
    ):
        packet = error("10.0.0.1", "10.0.0.254", *kind, outer[:400], info)
        found.append(("lb0", f.vnet(f.eth(LB, GATEWAY, payload=packet))))
    for head, inside in ((f.ipv4, "10.0.0.100"), (f.ipv6, "fd00::100")):
        client = "10.0.0.50" if head is f.ipv4 else "fd99::5"
        whole = head(client, inside, f.udp(40000, 80, bytes(range(256)) * 12))
        found += [("lb0", f.vnet(f.eth(LB, GATEWAY, payload=part))) for part in cut(whole, 1480)]
        found += [("lb0", f.vnet(f.eth(LB, GATEWAY, payload=part))) for part in cut(whole, 1200, 9)]
    flow = _tap_flow("10.0.0.50:40000", "10.0.0.100:80")
    loose: dict[str, Any] = {"df": False, "options": b"\x07\x07\x04\0\0\0\0\x01"}
    found.append(("lb0", f.vnet(flow.udp(bytes(1460), ip=loose), needs_csum=True)))
    found.append(
        (
            "lb0",
            f.vnet(
                flow.segment("PA", bytes(5000), ip=loose),
                needs_csum=True,
                gso_type=f.GSO_TCPV4,
                gso_size=1460,
            ),
        )
    )
    answer = f.ipv4("10.0.0.100", "10.0.0.50", f.tcp(80, 40000, bytes(1400)))
    packet = error("192.0.2.1", "10.0.0.100", 3, 4, answer[:500], 1280)
    found.append(("lb0", f.vnet(f.eth(LB, GATEWAY, payload=packet))))
    return found


TAP = Kind(TAP_CONFIG, _tap_frames() + _crossed())
TUN = Kind(TUN_CONFIG, _tun_frames(), tun=True)
TUNNEL = Kind(_tunnel_config(), _tunnel_frames())
GATEWAY_KIND = Kind(gateway.CONFIG, gateway.FRAMES)


def _held() -> str:
    """The TUN's services, each with templates, a limit and conns that end soon, TCP's by RSTs."""
    lines = [json.loads(line) for line in TUN_CONFIG.splitlines()]
    for line in lines:
        if line["kind"] == "service":
            timeouts = {"tcp_established_s": 2, "udp_normal_s": 2, "udp_oneway_s": 2}
            line |= {"persistence_s": 5, "max_conn": 6, "timeouts": timeouts}
            line["reset_on_expire"] = line["proto"] == "tcp"
    return "\n".join(json.dumps(line) for line in lines)


HELD = Kind(_held(), TUN.frames, tun=True)

KINDS = {"tap": TAP, "tun": TUN, "tunnel": TUNNEL, "gateway": GATEWAY_KIND, "held": HELD}


def spoil(kind: Kind, frame: bytes, edits: list[Edit]) -> bytes:
    """The frame after the edits; any integers make sense of any edit."""
    data = bytearray(frame)
    for name, at, value in edits:
        if not data:
            break
        where = at % len(data)
        if name == "flip":
            data[where] ^= 1 << value % 8
        elif name == "set":
            data[where] = value % 256
        elif name == "word":
            struct.pack_into("!H", data, where & ~1, value % 65536) if where + 1 < len(
                data
            ) else None
        elif name == "cut":
            del data[where:]
        elif name == "grow":
            data += bytes([value % 256]) * (at % 64)
        elif name == "splice":
            other = kind.frames[value % len(kind.frames)][1]
            data[where:] = other[where:]
        elif name == "swap":
            other = kind.frames[value % len(kind.frames)][1]
            data[:VNET] = other[:VNET]
        elif name in ("source", "target"):
            readdress(data, kind.tun, name == "target", at)
        else:
            seal(data, kind.tun)
    return bytes(data)


def readdress(data: bytearray, tun: bool, target: bool, which: int) -> None:
    """Put another address into the IP header, and make the checksums right for it."""
    l3 = VNET + (0 if tun else f.l3_offset(bytes(data[VNET:])))
    version = data[l3] >> 4 if len(data) > l3 else 0
    if version == 4 and len(data) >= l3 + 20:
        at, found = l3 + 12 + 4 * target, ADDRESSES[which % len(ADDRESSES)]
    elif version == 6 and len(data) >= l3 + 40:
        at, found = l3 + 8 + 16 * target, ADDRESSES6[which % len(ADDRESSES6)]
    else:
        return
    packed = f.address_bytes(found)
    change = f.ones_sum(packed) - f.ones_sum(bytes(data[at : at + len(packed)]))
    data[at : at + len(packed)] = packed
    seal(data, tun)
    l4 = l3 + (40 if version == 6 else (data[l3] & 15) * 4)
    field = l4 + {f.TCP: 16, f.UDP: 6, f.ICMPV6: 2}.get(
        data[l3 + (6 if version == 6 else 9)], len(data)
    )
    if field + 2 > len(data):
        return
    (value,) = struct.unpack_from("!H", data, field)
    sign = 1 if data[0] & f.NEEDS_CSUM else -1
    struct.pack_into("!H", data, field, (value + sign * change) % 0xFFFF)


def seal(data: bytearray, tun: bool) -> None:
    """Make the IPv4 header checksum right again, so that a spoilt packet gets past it."""
    l3 = VNET + (0 if tun else f.l3_offset(bytes(data[VNET:])))
    if len(data) < l3 + 20 or data[l3] >> 4 != 4:
        return
    length = (data[l3] & 15) * 4
    if length < 20 or len(data) < l3 + length:
        return
    data[l3 + 10 : l3 + 12] = bytes(2)
    struct.pack_into("!H", data, l3 + 10, f.checksum(bytes(data[l3 : l3 + length])))


@dataclass
class Feed:
    """A director and the frames that go into it."""

    kind: Kind
    rig: Rig = field(init=False)

    def __post_init__(self) -> None:
        self.rig = Rig(self.kind.config, conn_max=16)

    def read(self, step: Step) -> tuple[str, bytes, int, list[Sent], list[Sent]]:
        """(port, frame, verdict, what the frame sent, what the time before it sent)."""
        index, edits, ms = step
        port, frame = self.kind.frames[index % len(self.kind.frames)]
        data = spoil(self.kind, frame, edits)
        ticked = self.rig.advance(ms, step=max(250, ms // 8))
        verdict, sent = self.rig.receive(port, data)
        return port, data, verdict, sent, ticked


def is_ours(rig: Rig, address: str) -> bool:
    value = int(ipaddress.ip_address(address))
    if ":" in address:
        return rig.director.ip.addresses.is_local(value >> 64, value & 0xFFFFFFFFFFFFFFFF)
    return rig.director.ip.addresses.is_local(0, 0xFFFF_0000_0000 | value)
