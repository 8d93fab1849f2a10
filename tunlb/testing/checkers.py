"""Checks frames: what was asked for, and always every checksum and length.

::

    check(frame, ipv4(saddr="10.0.0.1", ttl=63), tcp(sport=80, flags="SA"), payload(b"data"))

A matcher takes the fields of one header by name (:mod:`tunlb.testing.parser`); an expectation is a
value, or a function of the value. The failure lists all that is wrong at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from tunlb.testing.parser import Arp, Ether, Frame, Header, Icmp, Ip, Tcp, Udp, Vnet, parse
from tunlb.testing.sctp import Sctp


@dataclass(frozen=True)
class Matcher:
    """Expectations about one header; ``name`` is how messages call it."""

    name: str
    match: Callable[[Frame], list[str]]


def _fields(name: str, kind: type[Header], expected: dict[str, object]) -> Matcher:
    known = {item.name for item in fields(kind)}
    if unknown := expected.keys() - known:
        raise TypeError(f"{name} has no {sorted(unknown)}; it has {sorted(known)}")

    def match(frame: Frame) -> list[str]:
        header = frame.find(kind)
        if header is None:
            return [f"no {name} header"]
        return _differences(name, header, expected)

    return Matcher(name, match)


def _differences(name: str, header: Header, expected: dict[str, object]) -> list[str]:
    wrong = []
    for key, want in expected.items():
        got = getattr(header, key)
        if callable(want):
            if not want(got):
                wrong.append(f"{name}.{key}: {got!r} was not accepted")
        elif got != want:
            wrong.append(f"{name}.{key}: expected {want!r}, got {got!r}")
    return wrong


def vnet(**expected: object) -> Matcher:
    """Fields of :class:`Vnet`."""
    return _fields("vnet", Vnet, expected)


def ether(**expected: object) -> Matcher:
    """Fields of :class:`Ether`."""
    return _fields("ether", Ether, expected)


def ipv4(**expected: object) -> Matcher:
    """Fields of :class:`Ip`, and that it is IPv4."""
    return _fields("ipv4", Ip, {"version": 4, **expected})


def ipv6(**expected: object) -> Matcher:
    """Fields of :class:`Ip`, and that it is IPv6."""
    return _fields("ipv6", Ip, {"version": 6, **expected})


def ip(**expected: object) -> Matcher:
    """Fields of :class:`Ip`, whichever version."""
    return _fields("ip", Ip, expected)


def tcp(**expected: object) -> Matcher:
    """Fields of :class:`Tcp`."""
    return _fields("tcp", Tcp, expected)


def udp(**expected: object) -> Matcher:
    """Fields of :class:`Udp`."""
    return _fields("udp", Udp, expected)


def sctp(**expected: object) -> Matcher:
    """Fields of :class:`Sctp`."""
    return _fields("sctp", Sctp, expected)


def icmp(**expected: object) -> Matcher:
    """Fields of :class:`Icmp`."""
    return _fields("icmp", Icmp, expected)


def arp(**expected: object) -> Matcher:
    """Fields of :class:`Arp`."""
    return _fields("arp", Arp, expected)


def payload(expected: bytes | Callable[[bytes], bool]) -> Matcher:
    """The bytes behind the last header."""

    def match(frame: Frame) -> list[str]:
        got = frame.payload
        if callable(expected):
            return [] if expected(got) else [f"payload of {len(got)} bytes was not accepted"]
        if got == expected:
            return []
        return [f"payload: expected {len(expected)} bytes {expected[:32]!r}, got {len(got)} bytes"]

    return Matcher("payload", match)


def quoted(*matchers: Matcher) -> Matcher:
    """Matchers for the packet that an ICMP error quotes."""

    def match(frame: Frame) -> list[str]:
        if frame.quoted is None:
            return ["no quoted packet"]
        inner = frame.quoted
        return [f"quoted {text}" for matcher in matchers for text in matcher.match(inner)]

    return Matcher("quoted", match)


def check(data: bytes, *matchers: Matcher, vnet: bool = True, tun: bool = False) -> Frame:
    """Fail unless all checksums and lengths are right and every matcher agrees; the parsed frame.

    ``vnet``: the virtio-net header stands before it; ``tun``: there is no Ethernet header.
    """
    frame = parse(data, vnet=vnet, tun=tun)
    wrong = frame.problems + [text for matcher in matchers for text in matcher.match(frame)]
    if wrong:
        listed = "\n".join(f"- {text}" for text in wrong)
        raise AssertionError(f"{listed}\nin a frame of {len(data)} bytes:\n{frame}\n{_dump(data)}")
    return frame


def _dump(data: bytes) -> str:
    """The first 96 bytes, 16 a line."""
    return "\n".join(
        f"  {i:04x}  {data[i : i + 16].hex(' ')}" for i in range(0, min(len(data), 96), 16)
    )
