"""The network that flow rows run in, for either family, and a conn with both of its sides.

Two ports: ``wan`` towards the clients, which live behind a router, and ``lan`` with the dests.
Every neighbour is static, so that a row sees only the frames that it is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tunlb.hook import Verdict
from tunlb.ipvs.conn import B_PROTO, B_STATE, ROW_SIZE, TEMPLATE_PROTO
from tunlb.ipvs.dest import Dest
from tunlb.ipvs.proto import icmp as icmp_states
from tunlb.ipvs.proto import sctp as sctp_states
from tunlb.ipvs.proto import tcp as tcp_states
from tunlb.ipvs.proto import udp as udp_states
from tunlb.testing import flow as testing
from tunlb.testing import frames
from tunlb.testing.checkers import Matcher, check, ether, ip, tcp, udp
from tunlb.testing.flow import Sent, mac_of
from tunlb.testing.frames import Flow, vnet
from tunlb.testing.parser import Frame, Tcp, Udp

ROUTER_MAC = "02:00:00:00:00:01"
CLIENT_MAC = "02:00:00:00:00:07"
DEST_MAC = "02:00:00:00:00:11"
DEST2_MAC = "02:00:00:00:00:12"
WAN_MAC = mac_of(0).to_bytes(6, "big").hex(":")
LAN_MAC = mac_of(1).to_bytes(6, "big").hex(":")

Line = dict[str, Any]


class Rig(testing.Rig):
    """A director whose announcements are over; its counters start at nothing."""

    def __init__(self, config_text: str, **keys: Any) -> None:
        super().__init__(config_text, **keys)
        self.advance(3000)
        self._base = self.director.counters.snapshot()


@dataclass(frozen=True)
class Net:
    """Who has which address in one family; ``remote`` is a client behind ``router``."""

    af: int
    length: int
    wan: str
    lan: str
    vip: str
    vip2: str
    router: str
    client: str
    remote: str
    laddr: str
    laddr2: str
    dest: str
    dest2: str
    nowhere: str


V4 = Net(
    4,
    24,
    wan="10.0.0.254",
    lan="10.1.0.254",
    vip="10.0.0.100",
    vip2="10.0.0.101",
    router="10.0.0.1",
    client="10.0.0.7",
    remote="198.51.100.7",
    laddr="10.1.0.200",
    laddr2="10.1.0.201",
    dest="10.1.0.11",
    dest2="10.1.0.12",
    nowhere="203.0.113.9",
)
V6 = Net(
    6,
    64,
    wan="fd00::fe",
    lan="fd01::fe",
    vip="fd00::100",
    vip2="fd00::101",
    router="fd00::1",
    client="fd00::7",
    remote="2001:db8::7",
    laddr="fd01::200",
    laddr2="fd01::201",
    dest="fd01::11",
    dest2="fd01::12",
    nowhere="2001:db8:9::9",
)


def text(*lines: Line) -> str:
    return "\n".join(json.dumps(line) for line in lines)


def port(name: str, *addresses: str, **keys: Any) -> Line:
    return {"kind": "port", "name": name, "addresses": addresses, **keys}


def neigh(name: str, addr: str, mac: str) -> Line:
    return {"kind": "neigh", "port": name, "addr": addr, "mac": mac}


def default_route(net: Net, **keys: Any) -> Line:
    dst = "0.0.0.0/0" if net.af == 4 else "::/0"
    return {"kind": "route", "dst": dst, "via": net.router, "port": "wan", **keys}


def ports(net: Net) -> list[Line]:
    return [port("wan", f"{net.wan}/{net.length}"), port("lan", f"{net.lan}/{net.length}")]


def neighbours(net: Net) -> list[Line]:
    return [
        neigh("wan", net.router, ROUTER_MAC),
        neigh("wan", net.client, CLIENT_MAC),
        neigh("lan", net.dest, DEST_MAC),
        neigh("lan", net.dest2, DEST2_MAC),
    ]


def network(net: Net) -> list[Line]:
    """Ports, the default route and every neighbour."""
    return [*ports(net), default_route(net), *neighbours(net)]


def service(net: Net, proto: str = "tcp", mode: str = "fnat", **keys: Any) -> Line:
    line = {"kind": "service", "name": "web", "proto": proto, "vaddr": net.vip, "vport": 80}
    line |= {"fwdmode": mode, "scheduler": "rr"}
    if mode == "fnat":
        line["laddrs"] = [net.laddr]
    return line | keys


def dest(net: Net, mode: str = "fnat", **keys: Any) -> Line:
    line: Line = {"kind": "dest", "service": "web", "daddr": net.dest}
    if mode != "dr":
        line["dport"] = 8080
    return line | keys


def balanced(net: Net, proto: str = "tcp", mode: str = "fnat", **keys: Any) -> str:
    """The usual configuration: one service with one dest; ``keys`` go to the service."""
    return text(*network(net), service(net, proto, mode, **keys), dest(net, mode))


def at(address: str, number: int) -> str:
    """An endpoint as :class:`Flow` takes it."""
    return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"


def states(rig: Rig) -> list[str]:
    """The state of every conn, in the order of the rows; templates are none."""
    conns = rig.director.ipvs.conns
    names = {6: tcp_states.STATES, 17: udp_states.STATES, 132: sctp_states.STATES}
    names |= {1: icmp_states.STATES, 58: icmp_states.STATES}
    found = []
    for row in conns.rows():
        base = row * ROW_SIZE
        if conns.mem[base + B_PROTO] == TEMPLATE_PROTO:
            continue
        found.append(names[conns.mem[base + B_PROTO]][conns.mem[base + B_STATE]])
    return found


def the_dest(rig: Rig, address: str = "") -> Dest:
    """The dest with this address, or the first."""
    for known in rig.director.ipvs.dests:
        if known is not None and (not address or frames.address_bytes(address) == _packed(known)):
            found: Dest = known
            return found
    raise LookupError(address)


def _packed(known: Dest) -> bytes:
    whole = known.daddr_hi.to_bytes(8, "big") + known.daddr.to_bytes(8, "big")
    return whole[12:] if known.af == 4 else whole


def one(result: tuple[Verdict, list[Sent]]) -> Sent:
    """The frame of a packet that was accepted and caused nothing else."""
    verdict, sent = result
    assert verdict == Verdict.ACCEPT
    assert len(sent) == 1, sent
    return sent[0]


def dropped(rig: Rig, port_name: str, frame: bytes, reason: str) -> None:
    """Feed a frame that must be dropped for ``reason``, leave nothing and count nothing else."""
    before = rig.counters()
    verdict, sent = rig.receive(port_name, frame)
    after = rig.counters()
    moved = {key: after[key] - before.get(key, 0) for key in after}
    assert {key: n for key, n in moved.items() if n} == {f"drop.{reason}": 1}
    assert (verdict, sent) == (Verdict.DROP, [])


class Conn:
    """One conn through the director: what each side sends, and how it has to come out.

    ``up`` sends from the client and ``down`` from the dest; both verify ports, addresses, MAC
    addresses, TTL and every checksum of what leaves, and count what the director has to count.
    The dest is of ``inner``, which is ``net`` itself but with NAT64; ``always`` holds for whatever
    leaves.
    """

    def __init__(
        self,
        rig: Rig,
        net: Net,
        proto: str = "tcp",
        mode: str = "fnat",
        *,
        caddr: str = "",
        cport: int = 40000,
        vaddr: str = "",
        vport: int = 80,
        daddr: str = "",
        dport: int = 8080,
        laddr: str = "",
        client_mac: str = ROUTER_MAC,
        inner: Net | None = None,
        always: Sequence[Matcher] = (),
    ) -> None:
        self.rig = rig
        self.net = net
        self.inner = inner or net
        self.always = always
        self.proto = proto
        self.mode = mode
        self.caddr, self.cport = caddr or net.remote, cport
        self.vaddr, self.vport = vaddr or net.vip, vport
        self.daddr, self.dport = daddr or self.inner.dest, vport if mode == "dr" else dport
        self.laddr, self.lport = self.caddr, cport
        if mode == "fnat":
            self.laddr, self.lport = laddr or self.inner.laddr, 0
        self.dest_mac = {self.inner.dest: DEST_MAC, self.inner.dest2: DEST2_MAC}[self.daddr]
        self.client_mac = client_mac
        self.outside = Flow(
            at(self.caddr, cport), at(self.vaddr, vport), client_mac=client_mac, server_mac=WAN_MAC
        )
        self.packets = [0, 0]
        self.bytes = [0, 0]

    @property
    def inside(self) -> Flow:
        """The flow as the dest sees it, once the lport is known."""
        return Flow(
            at(self.laddr, self.lport),
            at(self.daddr, self.dport),
            client_mac=LAN_MAC,
            server_mac=self.dest_mac,
        )

    def frame(
        self, flow: Flow, flags: str, payload: bytes, reply: bool = False, **fields: Any
    ) -> bytes:
        if self.proto == "tcp":
            return flow.segment(flags, payload, reply=reply, **fields)
        return flow.udp(payload, reply=reply, **fields)

    def up(
        self,
        flags: str = "A",
        payload: bytes = b"",
        *matchers: Matcher,
        offload: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Frame:
        """From the client to the dest; the frame that left."""
        frame = self.frame(self.outside, flags, payload, False, **fields)
        sent = one(self.rig.receive("wan", vnet(frame, **offload or {})))
        assert sent.port == "lan"
        kept = self.mode == "dr"
        seen = check(
            sent.frame,
            ether(src=LAN_MAC, dst=self.dest_mac, vlan=()),
            ip(
                saddr=self.laddr,
                daddr=self.vaddr if kept else self.daddr,
                ttl=self.outside.ttl - 1,
                version=self.inner.af,
            ),
            *self.always,
            *matchers,
        )
        ports_seen = seen.find(Tcp if self.proto == "tcp" else Udp)
        assert isinstance(ports_seen, Tcp | Udp)
        self.lport = self.lport or ports_seen.sport
        assert (ports_seen.sport, ports_seen.dport) == (self.lport, self.dport)
        assert seen.payload == payload
        self._count(0, frame)
        return seen

    def down(
        self,
        flags: str = "A",
        payload: bytes = b"",
        *matchers: Matcher,
        offload: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Frame:
        """From the dest to the client; the frame that left."""
        frame = self.frame(self.inside, flags, payload, True, **fields)
        sent = one(self.rig.receive("lan", vnet(frame, **offload or {})))
        assert sent.port == "wan"
        header = tcp if self.proto == "tcp" else udp
        seen = check(
            sent.frame,
            ether(src=WAN_MAC, dst=self.client_mac, vlan=()),
            ip(saddr=self.vaddr, daddr=self.caddr, ttl=63, version=self.net.af),
            header(sport=self.vport, dport=self.cport),
            *self.always,
            *matchers,
        )
        assert seen.payload == payload
        self._count(1, frame)
        return seen

    def establish(self) -> Self:
        """Up to ESTABLISHED, or both ways for UDP; DR sees the client alone."""
        self.up("S")
        if self.mode != "dr":
            self.down("SA")
        self.up("A")
        return self

    def _count(self, direction: int, frame: bytes) -> None:
        self.packets[direction] += 1
        self.bytes[direction] += len(frame) - 14

    def counted(self, **more: int) -> dict[str, int]:
        """Every counter that this conn moved, and ``more`` (``drop_X`` stands for ``drop.X``)."""
        moved = {
            "CONN_NEW": 1,
            "IPVS_IN_PACKETS": self.packets[0],
            "IPVS_IN_BYTES": self.bytes[0],
            "IPVS_OUT_PACKETS": self.packets[1],
            "IPVS_OUT_BYTES": self.bytes[1],
        }
        return _sum(moved, more)


def counted(*conns: Conn, **more: int) -> dict[str, int]:
    """The whole snapshot after several conns."""
    return _sum(*(conn.counted() for conn in conns), more)


def _sum(*snapshots: Mapping[str, int]) -> dict[str, int]:
    """Added up by name; a counter that did not move is not in a snapshot."""
    total: dict[str, int] = {}
    for snapshot in snapshots:
        for name, n in snapshot.items():
            key = name.replace("drop_", "drop.")
            total[key] = total.get(key, 0) + n
    return {name: n for name, n in total.items() if n}
