"""One TCP conn of a service with `client_ip`, whose two ends count as they like."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Net,
    Rig,
    at,
    balanced,
    one,
)
from tunlb.ipvs.conn import H_FLAGS, SEQUENCE
from tunlb.testing.checkers import check, ether, ip
from tunlb.testing.frames import Flow, address_bytes, vnet
from tunlb.testing.parser import Frame, Tcp

STAMPS = b"\1\1\x08\x0a" + bytes.fromhex("1111111122222222")
MSS = b"\2\4\5\xb4"  # 1460
CPORT = 40000


def sack(*blocks: tuple[int, int]) -> bytes:
    edges = b"".join(struct.pack("!II", *(e & 0xFFFFFFFF for e in block)) for block in blocks)
    return b"\1\1\5" + bytes([2 + len(edges)]) + edges


def proxy(net: Net, how: str, proto: str = "tcp") -> bytes:
    """The header as the specification has it, written out here once more."""
    src, dst = net.remote, net.vip
    if how == "proxy-v1":
        return f"PROXY TCP{net.af} {src} {dst} {CPORT} 80\r\n".encode()
    body = address_bytes(src) + address_bytes(dst) + struct.pack("!HH", CPORT, 80)
    kind = (0x10 if net.af == 4 else 0x20) | (1 if proto == "tcp" else 2)
    return b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21" + struct.pack(
        "!BH", kind, len(body)
    ) + body  # fmt: skip


def toa(net: Net) -> bytes:
    body = struct.pack("!H", CPORT) + address_bytes(net.remote)
    return bytes([254, 2 + len(body)]) + body


@dataclass
class Talk:
    """``up`` and ``down`` send a segment of either side and check all that is not TCP about what
    leaves, checksums first; they return what the other side gets. ``c`` and ``s`` are the initial
    sequence numbers of both.
    """

    rig: Rig
    net: Net
    mode: str = "fnat"
    c: int = 1000
    s: int = 5000
    lport: int = 0
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    @property
    def laddr(self) -> str:
        return self.net.laddr if self.mode == "fnat" else self.net.remote

    def up(
        self,
        flags: str,
        payload: bytes = b"",
        *,
        seq: int = 1,
        ack: int = 1,
        offload: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Frame:
        """From the client; ``seq`` and ``ack`` count from the initial numbers."""
        sent = one(self.rig.receive("wan", self.frame(flags, payload, seq, ack, offload, fields)))
        assert sent.port == "lan"
        return self.seen(sent.frame)

    def frame(
        self,
        flags: str,
        payload: bytes,
        seq: int = 1,
        ack: int = 1,
        offload: Mapping[str, Any] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> bytes:
        flow = Flow(
            at(self.net.remote, CPORT),
            at(self.net.vip, 80),
            client_mac=ROUTER_MAC,
            server_mac=WAN_MAC,
        )
        if "S" in flags:
            seq, ack = 0, 1 if "A" in flags else -self.s
        made = flow.segment(flags, payload, seq=self.c + seq, ack=self.s + ack, **fields or {})
        self.counts[0] += 1
        self.counts[1] += len(made) - 14
        return vnet(made, **offload or {})

    def seen(self, frame: bytes) -> Frame:
        """A frame at the dest."""
        found = check(
            frame,
            ether(src=LAN_MAC, dst=DEST_MAC, vlan=()),
            ip(saddr=self.laddr, daddr=self.net.dest, ttl=63, version=self.net.af),
        )
        tcp = found.find(Tcp)
        assert isinstance(tcp, Tcp)
        assert tcp.dport == 8080
        assert tcp.sport == (self.lport or tcp.sport)
        self.lport = tcp.sport
        return found

    def down(
        self, flags: str, payload: bytes = b"", *, seq: int = 1, ack: int = 1, **fields: Any
    ) -> Frame:
        """From the dest; ``ack`` counts from the client's initial number, as the dest counts."""
        sent = one(self.rig.receive("lan", self.answer(flags, payload, seq, ack, fields)))
        return self.heard(sent.frame)

    def answer(
        self,
        flags: str,
        payload: bytes = b"",
        seq: int = 1,
        ack: int = 1,
        fields: Mapping[str, Any] | None = None,
    ) -> bytes:
        flow = Flow(
            at(self.laddr, self.lport),
            at(self.net.dest, 8080),
            client_mac=LAN_MAC,
            server_mac=DEST_MAC,
        )
        seq = 0 if "S" in flags else seq
        made = flow.segment(
            flags, payload, reply=True, seq=self.s + seq, ack=self.c + ack, **fields or {}
        )
        self.counts[2] += 1
        self.counts[3] += len(made) - 14
        return vnet(made)

    def heard(self, frame: bytes) -> Frame:
        """A frame at the client."""
        found = check(
            frame,
            ether(src=WAN_MAC, dst=ROUTER_MAC, vlan=()),
            ip(saddr=self.net.vip, daddr=self.net.remote, ttl=63, version=self.net.af),
        )
        tcp = found.find(Tcp)
        assert isinstance(tcp, Tcp)
        assert (tcp.sport, tcp.dport) == (80, CPORT)
        return found

    def open(self) -> Talk:
        """SYN and SYN-ACK."""
        self.up("S", options=MSS + STAMPS)
        self.down("SA", options=MSS + STAMPS)
        return self

    @property
    def special(self) -> bool:
        """Does the conn still pay for `client_ip`?"""
        conns = self.rig.director.ipvs.conns
        [row] = conns.rows()
        return bool(conns.mem.cast("H")[row * 64 + H_FLAGS] & SEQUENCE)

    def counted(self, **more: int) -> dict[str, int]:
        names = ("IPVS_IN_PACKETS", "IPVS_IN_BYTES", "IPVS_OUT_PACKETS", "IPVS_OUT_BYTES")
        found = {"CONN_NEW": 1, **dict(zip(names, self.counts, strict=True)), **more}
        return {name.replace("drop_", "drop."): n for name, n in found.items() if n}


def talk(net: Net, how: str, mode: str = "fnat", *, config: str = "", **keys: Any) -> Talk:
    """A conn of a service with this `client_ip`, before its first packet."""
    rig = Rig(config or balanced(net, mode=mode, client_ip=how))
    return Talk(rig, net, mode, **keys)


def numbers(frame: Frame, talk_: Talk) -> tuple[int, int]:
    """Sequence and acknowledgement, counted from the initial numbers: at the dest, ours first."""
    tcp = frame.find(Tcp)
    assert isinstance(tcp, Tcp)
    if tcp.dport == 8080:
        return (tcp.seq - talk_.c) & 0xFFFFFFFF, (tcp.ack - talk_.s) & 0xFFFFFFFF
    return (tcp.seq - talk_.s) & 0xFFFFFFFF, (tcp.ack - talk_.c) & 0xFFFFFFFF


def tcp_of(frame: Frame) -> Tcp:
    tcp = frame.find(Tcp)
    assert isinstance(tcp, Tcp)
    return tcp
