"""The PROXY protocol's header for a conn, versions 1 and 2 (HAProxy: doc/proxy-protocol.txt).

It says what the client knows: its own endpoint, and the VIP and port that it asked for. All of it
is in the row's INBOUND key, so the header of a conn is the same whenever it is made.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import cython

from tunlb.ipvs.conn import B_AF, B_PROTO, D_PORTS, ConnTable

V1_MAX = 107  #: bytes, with CRLF
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PROXY = 0x21  #: version 2, command PROXY

_B_PROTO = cython.declare(cython.longlong, B_PROTO)
_B_AF = cython.declare(cython.longlong, B_AF)
_D_PORTS = cython.declare(cython.longlong, D_PORTS)


def build(conns: ConnTable, row: cython.longlong, version: cython.int) -> bytes:
    """``version`` 1 is for TCP alone: version 1 has no word for UDP that we may say."""
    at: cython.longlong = row * 16
    saddr: bytes = _packed(conns.q[at], conns.q[at + 1], conns.b[row * 128 + _B_AF])
    daddr: bytes = _packed(conns.q[at + 2], conns.q[at + 3], conns.b[row * 128 + _B_AF])
    ports: cython.uint = conns.d[row * 32 + _D_PORTS]
    if version == 1:
        if len(saddr) == 4:
            words = f"TCP4 {IPv4Address(saddr)} {IPv4Address(daddr)}"
        else:
            words = f"TCP6 {IPv6Address(saddr)} {IPv6Address(daddr)}"
        return f"PROXY {words} {ports >> 16} {ports & 0xFFFF}\r\n".encode()
    family: cython.int = 0x10 if len(saddr) == 4 else 0x20
    family |= 1 if conns.b[row * 128 + _B_PROTO] == 6 else 2
    body: bytes = saddr + daddr + int(ports).to_bytes(4, "big")
    return SIGNATURE + bytes((PROXY, family)) + len(body).to_bytes(2, "big") + body


def toa(conns: ConnTable, row: cython.longlong) -> bytes:
    """The TCP option 254 that carries the client's endpoint (DPVS: tcp_opt_toa)."""
    at: cython.longlong = row * 16
    port: cython.uint = conns.d[row * 32 + _D_PORTS] >> 16
    if conns.b[row * 128 + _B_AF] == 4:
        # Numbers below 256 exist already: this costs a quarter of putting bytes together.
        a: cython.uint = cython.cast(cython.uint, conns.q[at + 1] & 0xFFFFFFFF)
        return bytes(
            (254, 8, port >> 8, port & 255, a >> 24, (a >> 16) & 255, (a >> 8) & 255, a & 255)
        )
    saddr: bytes = _packed(conns.q[at], conns.q[at + 1], 6)
    return bytes((254, 20, port >> 8, port & 255)) + saddr


def _packed(hi: cython.ulonglong, lo: cython.ulonglong, af: cython.int) -> bytes:
    if af == 4:
        return (int(lo) & 0xFFFFFFFF).to_bytes(4, "big")
    return int(hi).to_bytes(8, "big") + int(lo).to_bytes(8, "big")
