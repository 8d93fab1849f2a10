"""Services that use a feature each, and conns of them: what the rooms need to know is data here.

All scenes lie in one configuration, each with a vport of its own. A step of a conn is what one side
sends: ``>`` the client or ``<`` the dest, then TCP flags; what the other side then gets is not
checked here, the flow tests do that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tunlb.bench.micro.net import (
    CLIENT_MAC,
    DPORT,
    INSIDE_MAC,
    NETS,
    OUTSIDE_MAC,
    REMOTE,
    SERVER_MAC,
    network,
)
from tunlb.hook import Verdict
from tunlb.packet import IPPROTO_UDP
from tunlb.testing import sctp
from tunlb.testing.flow import Rig
from tunlb.testing.frames import Transport, eth, icmp, ip, tcp, udp, vnet
from tunlb.testing.parser import Ip as IpHeader
from tunlb.testing.parser import Tcp as TcpHeader
from tunlb.testing.parser import parse

IPPROTO_FRAGMENT = 44
OPEN = (">S", "<SA", ">A")
DATA = bytes(64)
# The timestamps of RFC 7323, as nearly every client has them.
STAMPS = b"\1\1\x08\x0a" + bytes.fromhex("1111111122222222")
MSS = b"\2\4\5\xb4"  # 1460
FIRST_PORT = 40_000  #: of clients
DEST_ISN = 9000  #: where a SYN proxy comes between
OWN = "10.9.3.254/24"  #: of the port with a host beside it
OWN_VIP = "10.9.3.100"


@dataclass(frozen=True)
class Scene:
    """``service`` are keys of the service's line beside the usual ones. ``inner`` is the dest's
    family, 0: the client's. ``match``: no vaddr, and the client is behind the inner port. ``step``
    is how many bytes we put into the client's stream, which the dest acknowledges.
    """

    mode: str = "nat"
    proto: str = "tcp"
    af: int = 4
    inner: int = 0
    service: Mapping[str, Any] = field(default_factory=dict)
    match: Mapping[str, Any] | None = None
    steps: tuple[str, ...] = OPEN
    step: int = 0


SCENES: Mapping[str, Scene] = MappingProxyType(
    {
        **{
            f"tunnel-{kind}": Scene(
                "tunnel", service={"tunnel": {"type": kind}}, steps=(">S", ">A")
            )
            for kind in ("ipip", "gre", "gue")
        },
        "snat": Scene("snat", match={"src": ["10.9.2.0/24"], "dport": 443}),
        "bypass": Scene("bypass", match={"src": ["10.9.2.0/24"], "dport": 80}),
        "local": Scene("local", steps=(">S", ">A")),
        "nat64": Scene("fnat", af=6, inner=4),
        "proxy-v2": Scene(service={"client_ip": "proxy-v2"}, steps=(*OPEN, "<A"), step=28),
        "toa": Scene("fnat", service={"client_ip": "toa"}),
        "sctp": Scene(proto="sctp", steps=(">INIT", "<INIT_ACK", ">COOKIE_ECHO", "<COOKIE_ACK")),
        "echo": Scene(proto="icmp", steps=(">ping", "<ping")),
        "synproxy": Scene(service={"synproxy": True}, steps=(">S", ">A", "<SA")),
        "persistence": Scene(service={"persistence_s": 300}),
        "conn-rate": Scene(service={"conn_rate": 1_000_000}),
        "fragment": Scene(proto="udp", af=6, steps=(">",)),
    }
)


def vport(name: str) -> int:
    """What a packet of the scene's clients is addressed to."""
    scene = SCENES[name]
    if scene.match is not None:
        return int(scene.match["dport"])
    return 0 if scene.proto == "icmp" else 100 + list(SCENES).index(name)


def configuration(conn_max: int) -> list[dict[str, Any]]:
    lines = network(conn_max)
    lines.append({"kind": "port", "name": "own", "addresses": [OWN], "host": "own-h"})
    for name, scene in SCENES.items():
        lines += service_lines(name, scene)
    return lines


def service_lines(name: str, scene: Scene) -> Iterator[dict[str, Any]]:
    line: dict[str, Any] = {"kind": "service", "name": name, "proto": scene.proto}
    line |= {"fwdmode": scene.mode, **scene.service}
    inner = NETS[scene.inner or scene.af]
    if scene.mode == "fnat":
        line["laddrs"] = [inner.laddr]
    if scene.match is not None:
        line["match"] = scene.match
        if scene.mode == "snat":
            line["laddrs"] = ["10.9.1.200"]
        yield line
        return
    line |= {"vaddr": vaddr(scene), "scheduler": "rr"}
    dest: dict[str, Any] = {"kind": "dest", "service": name, "daddr": inner.dest}
    if scene.proto != "icmp":
        line["vport"] = vport(name)
        if scene.mode not in ("tunnel", "local"):
            dest["dport"] = DPORT
    if scene.mode == "local":
        dest["daddr"] = OWN_VIP
    yield line
    yield dest


def vaddr(scene: Scene) -> str:
    return OWN_VIP if scene.mode == "local" else NETS[scene.af].vip


class Talk:
    """A conn of a scene, as both of its sides see it. ``c`` and ``s`` are the sequence numbers that
    come next, as the client counts.
    """

    def __init__(self, rig: Rig, name: str, sport: int = 0) -> None:
        self.rig = rig
        self.scene = SCENES[name]
        net = NETS[self.scene.af]
        self.macs = OUTSIDE_MAC, CLIENT_MAC
        self.up, self.down = "out", "in"
        source, target = net.client, vaddr(self.scene)
        if self.scene.match is not None:
            self.up, self.down = "in", "out"
            self.macs = INSIDE_MAC, SERVER_MAC
            source, target = net.dest, REMOTE
        # Two nat conns of one client to the same dest need different ports.
        sport = sport or FIRST_PORT + list(SCENES).index(name)
        self.ends = source, sport, target, vport(name)
        self.behind = self.ends  # the same on the other side, once something came there
        self.c, self.s = 1000, 5000
        self.clock = STAMPS[-4:]  # what we told the client of ours
        self.synproxied = "synproxy" in self.scene.service

    def open(self) -> Talk:
        """All steps of the scene."""
        for step in self.scene.steps:
            self.take(step)
        return self

    def take(self, step: str) -> None:
        """One step, and what becomes of it."""
        port, raw = self.frame(step)
        verdict, sent = self.rig.receive(port, raw)
        if verdict == Verdict.DROP or not sent:
            raise RuntimeError(f"{step} of {self.scene}: {verdict!r}, {self.rig.counters()}")
        if step[0] == ">" and "<" in "".join(self.scene.steps):
            self._look(port, sent[0].port, sent[0].frame)

    def _look(self, port: str, out: str, frame: bytes) -> None:
        """Whom the dest has to answer, or which number the SYN proxy gave to the client."""
        headers = parse(frame).headers
        network = next(header for header in headers if isinstance(header, IpHeader))
        transport = next((h for h in headers if isinstance(h, TcpHeader | sctp.Sctp)), None)
        if transport is None:
            self.behind = network.saddr, self.ends[1], network.daddr, self.ends[3]
        elif out == port and isinstance(transport, TcpHeader):
            self.s = transport.seq + 1
            at = transport.options.index(STAMPS[2:4]) + 2
            self.clock = transport.options[at : at + 4]
        else:
            self.behind = network.saddr, transport.sport, network.daddr, transport.dport

    def frame(self, step: str, data: bytes = b"", **offload: Any) -> tuple[str, bytes]:
        """What a step sends, virtio-net header first, and the port that it comes by."""
        saddr, sport, daddr, dport = self.ends
        dst, src = self.macs
        port = self.up
        if step[0] == "<":
            daddr, dport, saddr, sport = self.behind
            port = self.down
            inside = port == "in"
            dst, src = (INSIDE_MAC, SERVER_MAC) if inside else (OUTSIDE_MAC, CLIENT_MAC)
        body = self.transport(step, sport, dport, data)
        return port, vnet(eth(dst, src, payload=ip(saddr, daddr, body)), **offload)

    def transport(self, step: str, sport: int, dport: int, data: bytes) -> Transport:
        proto, flags = self.scene.proto, step[1:]
        if proto == "udp":
            return udp(sport, dport, data)
        if proto == "sctp":
            return sctp.sctp(sport, dport, chunk(flags, data), vtag=0 if flags == "INIT" else 9)
        if proto == "icmp":
            return icmp(8 if step[0] == ">" else 0, 0, (sport or dport) << 16 | 1, data)
        options = (MSS if "S" in flags else b"") + STAMPS[:-4] + self.clock
        seq, ack = self.c, self.s
        if step[0] == "<":
            seq, ack = (DEST_ISN if self.synproxied else self.s), self.c
            if "S" not in flags:
                ack += self.scene.step
                seq += self.synproxied
        made = tcp(
            *(sport, dport, data),
            flags=flags,
            seq=seq,
            ack=ack if "A" in flags else 0,
            options=options,
        )
        if step[0] == ">":
            self.c += "S" in flags
        elif not self.synproxied:
            self.s += "S" in flags
        return made

    def fragment(self, offset: int, data: bytes) -> tuple[str, bytes]:
        """A fragment of an IPv6 datagram, which is not the last; with offset 0 it is the first."""
        saddr, sport, daddr, dport = self.ends
        if offset == 0:
            data = struct.pack("!HHHH", sport, dport, 65535, 1) + data
        header = struct.pack("!BBHI", IPPROTO_UDP, 0, offset | 1, 0x10000)
        packet = ip(saddr, daddr, header + data, proto=IPPROTO_FRAGMENT)
        dst, src = self.macs
        return self.up, vnet(eth(dst, src, payload=packet))


def chunk(name: str, data: bytes) -> bytes:
    """An SCTP chunk, by its type's name in RFC 9260."""
    if name.startswith("INIT"):
        return sctp.init(kind=getattr(sctp, name))
    return sctp.chunk(getattr(sctp, name), bytes(12) + data)
