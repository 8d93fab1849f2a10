"""The director that the rooms are measured in, and frames of its conns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from types import MappingProxyType
from typing import Any

from tunlb.bench.micro import drive, scenes
from tunlb.bench.micro.net import (
    CLIENT_MAC,
    DPORT,
    INSIDE_MAC,
    NETS,
    OUTSIDE_MAC,
    SERVER_MAC,
    network,
)
from tunlb.ipvs.acl import SourceList
from tunlb.ipvs.conn import ConnTable, hash_secret
from tunlb.ipvs.datagrams import LIFE_MS
from tunlb.ipvs.sharding import Sharding
from tunlb.packet import Packet
from tunlb.pipeline.ingress import Ingress
from tunlb.pipeline.ip import Ip
from tunlb.shared import Shared
from tunlb.testing.flow import Rig, raise_on
from tunlb.testing.frames import Flow, eth, icmp, ip, vnet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.parser import Ip as IpHeader
from tunlb.testing.parser import Tcp as TcpHeader
from tunlb.testing.parser import parse

NOW = 1_000_000  # ms; the same for every packet, nothing expires while we count
MODES = MappingProxyType({"nat": 80, "fnat": 81, "dr": 82})  #: the vport of each mode's services
BIRTHS_MAX = 32768  #: conns that may be born in a turn: more than a turn needs
SCENE_BIRTHS_MAX = 4096  #: the same, of scenes
SOURCES = 10_000  #: prefixes of a list


def configuration(conn_max: int) -> list[dict[str, Any]]:
    """Every mode, family and protocol, one dest each."""
    lines = network(conn_max)
    for af, net in NETS.items():
        for mode, vport in MODES.items():
            for proto in ("tcp", "udp"):
                name = f"{mode}-{proto}{af}"
                service: dict[str, Any] = {"kind": "service", "name": name, "proto": proto}
                service |= {"vaddr": net.vip, "vport": vport, "fwdmode": mode, "scheduler": "rr"}
                dest: dict[str, Any] = {"kind": "dest", "service": name, "daddr": net.dest}
                if mode == "fnat":
                    service["laddrs"] = [net.laddr]
                if mode != "dr":
                    dest["dport"] = DPORT
                lines += [service, dest]
    return lines


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def make_rig(
    conn_max: int,
    memory: Shared | None = None,
    sharding: Sharding | None = None,
    lines: Callable[[int], list[dict[str, Any]]] = configuration,
) -> Rig:
    text = "".join(json.dumps(line) + "\n" for line in lines(conn_max))
    return Rig(text, now=NOW, conn_max=conn_max, memory=memory, sharding=sharding)


def shared(conn_max: int) -> Shared:
    """Memory as a worker has it, which lives as long as it is mapped."""
    memory = Shared.create(0, conn_max)
    memory.close_fds()
    return memory


def table(conn_max: int, count: int, hi: int = 0) -> ConnTable:
    """A conn table of its own in a worker's kind of memory, with ``count`` conns."""
    conns = ConnTable(conn_max, hash_secret(b"bench"), shared(conn_max).conns)
    drive.populate(conns, count, hi)
    return conns


class Bed:
    """Everything is made when it is first asked for."""

    def __init__(self) -> None:
        self._crowds: dict[int, Rig] = {}
        #: so far apart that no datagram is known any more
        self.datagram_times = itertools.count(NOW, 2 * LIFE_MS)

    @cached_property
    def rig(self) -> Rig:
        """Holds established conns."""
        return make_rig(1024)

    def crowd(self, count: int) -> Rig:
        """``count`` established NAT conns, in memory as a worker has it."""
        if count not in self._crowds:
            conn_max = 1 << (count - 1).bit_length()
            rig = make_rig(conn_max, shared(conn_max))
            for frames in spread(rig, count):
                if drive.fill(rig.director, frames, NOW, count):
                    raise RuntimeError(f"not forwarded: {rig.counters()}")
            self._crowds[count] = rig
        return self._crowds[count]

    @cached_property
    def nursery(self) -> Rig:
        """Holds conns only while their birth or end is measured."""
        return make_rig(BIRTHS_MAX)

    @cached_property
    def stage(self) -> Rig:
        """Holds the conns of scenes."""
        return make_rig(64, lines=scenes.configuration)

    @cached_property
    def scene_nursery(self) -> Rig:
        """As ``nursery``, for scenes."""
        return make_rig(SCENE_BIRTHS_MAX, lines=scenes.configuration)

    @cached_property
    def talks(self) -> dict[str, scenes.Talk]:
        """Conns of scenes that were opened on the stage."""
        return {}

    def talk(self, name: str) -> scenes.Talk:
        if name not in self.talks:
            self.talks[name] = scenes.Talk(self.stage, name).open()
        return self.talks[name]

    def scene(self, name: str, step: str, data: bytes = scenes.DATA, **offload: int) -> drive.Frame:
        """A frame of the scene's conn, which is open."""
        port, raw = self.talk(name).frame(step, data, **offload)
        return drive.Frame(raw, self.stage.director.packet, self.stage.netif(port))

    @cached_property
    def sources(self) -> SourceList:
        """SOURCES prefixes, as many of each length; 10.9.1.0/24, the client's, is among them."""
        found = SourceList()
        lengths = range(17, 33)
        for i in range(1, SOURCES):
            length = lengths[i % len(lengths)]
            found.add(0, 0xFFFF_2000_0000 + (i << (32 - length)) % (1 << 29), 96 + length, 4)
        found.add(0, 0xFFFF_0A09_0100, 96 + 24, 4)
        for _ in found.seal():
            pass
        return found

    def walk(
        self, mode: str, af: int, proto: str, *, reply: bool = False, partial: bool = False
    ) -> drive.Frame:
        """A frame of an established conn, with 64 bytes of data; from the dest with ``reply``."""
        client = flow(mode, af, 40_000)
        if proto == "udp":
            raw = vnet(client.udp(bytes(64)), needs_csum=partial)
            self.take("out", raw)
            return self.frame(raw, "out")
        forwarded = self.take("out", vnet(client.syn()))
        self.take("out", vnet(client.ack()))
        if reply:
            ends = ends_of(forwarded)
            back = Flow(*ends, client_mac=INSIDE_MAC, server_mac=SERVER_MAC)
            raw = vnet(back.segment("PA", bytes(64), reply=True), needs_csum=partial)
        else:
            raw = vnet(client.data(bytes(64)), needs_csum=partial)
        port = "in" if reply else "out"
        self.take(port, raw)
        return self.frame(raw, port)

    def take(self, port: str, raw: bytes) -> bytes:
        """What leaves when this frame comes; nothing is an error."""
        sent = self.rig.receive(port, raw)[1]
        if not sent:
            raise RuntimeError(f"not forwarded: {self.rig.counters()}")
        return sent[0].frame

    def frame(self, raw: bytes, port: str) -> drive.Frame:
        return drive.Frame(raw, self.rig.director.packet, self.rig.netif(port))

    def related(self, af: int) -> drive.Frame:
        """A router behind us finds the packet of a client too big."""
        net = NETS[af]
        self.walk("nat", af, "tcp")
        kind = (3, 4, 1280) if af == 4 else (2, 0, 1280)
        quoted = ip(net.client, net.dest, segment(40_000, DPORT, bytes(64)))
        error = ip(net.dest, net.client, icmp(*kind, quoted))
        raw = vnet(eth(INSIDE_MAC, SERVER_MAC, payload=error))
        self.take("in", raw)
        return self.frame(raw, "in")

    def parsed(self, frame: drive.Frame) -> Packet:
        """The packet of a frame as hooks see it, in a Packet of its own."""
        own = Packet()
        raw = drive.Frame(bytes(frame.mem), own, frame.iif)
        raw.load()
        Ingress(self.swallowing, self.rig.director.neighs).receive(own, NOW)
        return own

    @cached_property
    def swallowing(self) -> Ip:
        """An IP room that ends every packet's walk at PRE_ROUTING."""
        director = self.rig.director
        ip = director.ip
        room = Ip(director.counters, ip.addresses, ip.routes, director.neighs, raise_on)
        room.pre_routing.register(drive.Swallow())
        return room


def flow(mode: str, af: int, sport: int) -> Flow:
    """What a client sends to the service of ``mode``, on the outside wire."""
    net = NETS[af]
    ends = at(net.client, sport), at(net.vip, MODES[mode])
    return Flow(*ends, client_mac=CLIENT_MAC, server_mac=OUTSIDE_MAC)


def ends_of(forwarded: bytes) -> tuple[str, str]:
    """Source and destination of a TCP packet, virtio-net header first, with their ports."""
    headers = parse(forwarded).headers
    network = next(header for header in headers if isinstance(header, IpHeader))
    transport = next(header for header in headers if isinstance(header, TcpHeader))
    return at(network.saddr, transport.sport), at(network.daddr, transport.dport)


def spread(rig: Rig, count: int) -> Iterator[list[drive.Frame]]:
    """Frames that open ``count`` conns from many clients, then frames that go on in them."""
    clients = -(-count >> drive.PORT_BITS)
    for kind in ("syn", "ack"):
        frames = []
        for i in range(clients):
            ends = at(f"10.16.{i >> 8}.{i & 255}", drive.FIRST_PORT), at(NETS[4].vip, MODES["nat"])
            client = Flow(*ends, client_mac=CLIENT_MAC, server_mac=OUTSIDE_MAC)
            raw = vnet(client.syn() if kind == "syn" else client.ack())
            frames.append(drive.Frame(raw, rig.director.packet, rig.netif("out")))
        yield frames
