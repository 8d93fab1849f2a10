"""A client and a dest that speak through a SYN proxy, each with its own idea of the conn."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Net,
    Rig,
    balanced,
    dest,
    network,
    service,
    text,
)
from tunlb.hook import Verdict
from tunlb.testing import frames
from tunlb.testing.checkers import check, ether, ip, tcp
from tunlb.testing.flow import Sent
from tunlb.testing.parser import Tcp

MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Options:
    """Of a SYN; None and False: not there. ``stamps`` is (TSval, TSecr)."""

    mss: int | None = 1460
    wscale: int | None = None
    sack: bool = False
    stamps: tuple[int, int] | None = None

    def packed(self) -> bytes:
        found = b"" if self.mss is None else struct.pack("!BBH", 2, 4, self.mss)
        if self.sack:
            found += b"\4\2"
        found += stamps_option(self.stamps)
        if self.wscale is not None:
            found += bytes((1, 3, 3, self.wscale))
        return found + b"\1" * (-len(found) % 4)


FULL = Options(wscale=9, sack=True, stamps=(7000, 0))


def stamps_option(stamps: tuple[int, int] | None) -> bytes:
    return b"" if stamps is None else struct.pack("!BBII", 8, 10, *stamps)


def read_options(data: bytes) -> Options:
    mss, wscale, sack, stamps = None, None, False, None
    at = 0
    while at < len(data) and data[at] != 0:
        if data[at] == 1:
            at += 1
            continue
        body = data[at + 2 : at + data[at + 1]]
        if data[at] == 2:
            mss = int.from_bytes(body, "big")
        elif data[at] == 3:
            wscale = body[0]
        elif data[at] == 4:
            sack = True
        elif data[at] == 8:
            stamps = struct.unpack("!II", body)
        at += data[at + 1]
    return Options(mss, wscale, sack, stamps)


def proxied(net: Net, mode: str = "fnat", **keys: Any) -> str:
    return balanced(net, "tcp", mode, synproxy=True, **keys)


def proxied_among(net: Net, *more: Any, mode: str = "fnat", **keys: Any) -> str:
    line = service(net, "tcp", mode, synproxy=True, **keys)
    return text(*network(net), line, dest(net, mode), *more)


@dataclass
class Call:
    """One connection attempt. Numbers are what each side itself counts."""

    rig: Rig
    net: Net
    mode: str = "fnat"
    cport: int = 40000
    isn: int = 0xFFFFFFF0
    dest_isn: int = 0x10
    offer: Options = FULL
    accepts: Options = Options(wscale=7, sack=True, stamps=(900_000, 0))
    window: int = 500  #: of the client's ACKs
    inside: int = 0  #: the family of the dest, where it is another one
    cookie: int = 0
    clock: int = 0
    lport: int = 0
    synack: Options = field(default_factory=Options)

    def client_frame(self, flags: str, payload: bytes = b"", **fields: Any) -> bytes:
        transport = frames.tcp(self.cport, 80, payload, flags=flags, **fields)
        packet = frames.ip(self.net.remote, self.net.vip, transport, ttl=64)
        return frames.vnet(frames.eth(WAN_MAC, ROUTER_MAC, payload=packet))

    def dest_frame(self, flags: str, payload: bytes = b"", **fields: Any) -> bytes:
        transport = frames.tcp(8080, self.lport, payload, flags=flags, **fields)
        daddr = self.net.laddr if self.mode == "fnat" else self.net.remote
        packet = frames.ip(self.net.dest, daddr, transport, ttl=64)
        return frames.vnet(frames.eth(LAN_MAC, DEST_MAC, payload=packet))

    def from_client(self, *args: Any, **fields: Any) -> list[Sent]:
        verdict, sent = self.rig.receive("wan", self.client_frame(*args, **fields))
        self.verdict = verdict
        return sent

    def from_dest(self, *args: Any, **fields: Any) -> list[Sent]:
        verdict, sent = self.rig.receive("lan", self.dest_frame(*args, **fields))
        self.verdict = verdict
        return sent

    def to_client(self, sent: Sent, ttl: int = 64) -> tuple[Tcp, bytes]:
        """Its header and payload, with addresses and every checksum verified."""
        assert sent.port == "wan"
        found = check(
            sent.frame,
            ether(src=WAN_MAC, dst=ROUTER_MAC, vlan=()),
            ip(saddr=self.net.vip, daddr=self.net.remote, ttl=ttl, version=self.net.af),
            tcp(sport=80, dport=self.cport),
        )
        return _tcp(found), found.payload

    def to_dest(self, sent: Sent, ttl: int = 64) -> tuple[Tcp, bytes]:
        assert sent.port == "lan"
        saddr = self.net.laddr if self.mode == "fnat" else self.net.remote
        found = check(
            sent.frame,
            ether(src=LAN_MAC, dst=DEST_MAC, vlan=()),
            ip(saddr=saddr, daddr=self.net.dest, ttl=ttl, version=self.inside or self.net.af),
            tcp(dport=8080),
        )
        header = _tcp(found)
        self.lport = self.lport or header.sport
        assert header.sport == self.lport
        return header, found.payload

    # -- the steps

    def first(self) -> Tcp:
        """The client's SYN and our answer."""
        [sent] = self.from_client("S", seq=self.isn, options=self.offer.packed())
        assert self.verdict == Verdict.STOLEN
        return self.hear(sent)

    def hear(self, sent: Sent) -> Tcp:
        """The answer to a SYN."""
        header, payload = self.to_client(sent)
        assert (header.flags, payload) == ("SA", b"")
        assert header.ack == (self.isn + 1) & MASK
        self.cookie = header.seq
        self.synack = read_options(header.options)
        if self.synack.stamps is not None:
            self.clock = self.synack.stamps[0]
        return header

    def ack_fields(self, taken: int = 0) -> dict[str, Any]:
        """Of the client's segment after ``taken`` bytes of its data."""
        fields: dict[str, Any] = {
            "seq": self.isn + 1 + taken,
            "ack": self.cookie + 1,
            "window": self.window,
        }
        if self.synack.stamps is not None and self.offer.stamps is not None:
            fields["options"] = b"\1\1" + stamps_option((self.offer.stamps[0] + 5, self.clock))
        return fields

    def second(self, payload: bytes = b"") -> Tcp:
        """The client's ACK and our SYN."""
        [sent] = self.from_client("PA" if payload else "A", payload, **self.ack_fields())
        assert self.verdict == Verdict.STOLEN
        header, data = self.to_dest(sent)
        assert (header.flags, data) == ("S", b"")
        assert header.seq == self.isn & MASK
        return header

    def answer(self) -> list[Sent]:
        """The dest's SYN-ACK; what left because of it."""
        stamps = self.accepts.stamps
        if stamps is not None and self.offer.stamps is not None:
            stamps = (stamps[0], self.offer.stamps[0] + 5)
        options = Options(
            self.accepts.mss,
            self.accepts.wscale if self.offer.wscale is not None else None,
            self.accepts.sack and self.offer.sack,
            stamps if self.offer.stamps is not None else None,
        )
        sent = self.from_dest(
            "SA", seq=self.dest_isn, ack=self.isn + 1, window=64000, options=options.packed()
        )
        assert self.verdict == Verdict.STOLEN
        return sent

    def third(self) -> Tcp:
        """The dest's SYN-ACK and the client's ACK, as it gets it."""
        [sent] = self.answer()
        header, data = self.to_dest(sent, ttl=63)
        assert (header.flags, data) == ("A", b"")
        assert header.seq == (self.isn + 1) & MASK
        assert header.ack == (self.dest_isn + 1) & MASK
        return header

    def open(self) -> Call:
        self.first()
        self.second()
        self.third()
        return self


def _tcp(found: Any) -> Tcp:
    header = found.find(Tcp)
    assert isinstance(header, Tcp)
    return header
