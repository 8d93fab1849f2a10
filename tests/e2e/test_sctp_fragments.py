"""SCTP packets that are cut into fragments by one kernel and put together by another.

Kernels often come without SCTP, and no end cuts a chunk that is longer than its path's MTU takes:
an INIT or a cookie of 4,000 bytes, say. So both ends here are raw sockets, below which the kernels
do with IP what they do for anybody.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.e2e.kit import (
    FAMILIES,
    Family,
    LabFactory,
    client_address,
    counters,
    drops,
    service,
    with_keys,
    with_lines,
)
from tests.e2e.test_tunnel import decapsulating
from tunlb.lab import Lab
from tunlb.lab.host import Host, ip
from tunlb.testing.sctp import COOKIE_ECHO, INIT_ACK, SCTP, Sctp, chunk, init, read, sctp

PORT, CPORTS = 2905, range(40000, 40004)
PAD = struct.pack("!HH", 0x8001, 4004) + bytes(range(250)) * 16
PLANNED = {"MARTIAN", "NOT_FORWARDED", "ICMP_IGNORED", "OTHERHOST", "TX_BLOCKED"}
TOPOLOGIES = {"nat": "two-arm", "dr": "dr", "tunnel": "dr"}


@contextlib.contextmanager
def raw(host: Host, family: Family, address: str) -> Iterator[socket.socket]:
    """What comes to ``address`` for SCTP, whole; what is sent is cut as its route wants it."""
    kind = socket.AF_INET6 if family == "v6" else socket.AF_INET
    with host.socket(kind, socket.SOCK_RAW, SCTP) as sock:
        sock.settimeout(5)
        sock.bind((address, 0))
        yield sock


def heard(sock: socket.socket) -> tuple[str, Sctp]:
    """Who sent the next packet, and the packet; its checksum is verified."""
    data, sender = sock.recvfrom(65536)
    body = data[(data[0] & 15) * 4 :] if sock.family == socket.AF_INET else data
    found, problems = read(body)
    assert not problems
    assert found is not None
    return sender[0], found


def configured(lab: Lab, family: Family, mode: str) -> str:
    dest = lab.topology.servers[0][1].of(family)
    lines = service("sctp", lab.topology.vips.of(family), PORT, [dest], proto="sctp", fwdmode=mode)
    if mode == "tunnel":
        lines[1] = {**lines[1], "tunnel": {"type": "ipip"}}
    return with_keys(with_lines(lab.topology.config_text, *lines), "tunlb", workers=2)


def said(address: tuple[str, str], ports: tuple[int, int], body: bytes, vtag: int) -> bytes:
    """A packet as it goes into a raw socket; SCTP's checksum knows nothing of addresses."""
    saddr, daddr = (socket.inet_pton(_af(each), each) for each in address)
    return sctp(*ports, body, vtag=vtag).build(saddr, daddr)


def _af(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", TOPOLOGIES)
@pytest.mark.usefixtures("privileged")
def test_chunks_that_no_end_may_cut(lab: LabFactory, mode: str, family: Family) -> None:
    """INIT, INIT ACK and COOKIE ECHO of 4 KB, of a few conns, with two workers."""
    made = lab(TOPOLOGIES[mode])
    vip, client = made.topology.vips.of(family), client_address(made, family)
    server = made.host(made.topology.server_names[0])
    holds = made.topology.servers[0][1].of(family) if mode == "nat" else vip
    with contextlib.ExitStack() as stack:
        if mode == "tunnel":
            stack.enter_context(decapsulating(server))
            # Room for the outer header: over IPv6 nobody on the way makes it.
            flag = "-6" if family == "v6" else "-4"
            ip("-n", made.client.ns, flag, "route", "add", vip, "dev", "eth0", "mtu", "1400")
        tunlb = made.start_tunlb(configured(made, family, mode))
        here = stack.enter_context(raw(made.client, family, client))
        there = stack.enter_context(raw(server, family, holds))
        for cport in CPORTS:
            up, down = (cport, PORT), (PORT, cport)
            here.sendto(said((client, vip), up, init(params=PAD), 0), (vip, 0))
            sender, found = heard(there)
            assert (sender, found.sport, found.dport) == (client, cport, PORT)
            assert found.chunks[0][2].endswith(PAD)
            answer = said((holds, client), down, init(kind=INIT_ACK, params=PAD), 0x1234)
            there.sendto(answer, (client, 0))
            sender, found = heard(here)
            assert (sender, found.sport, found.dport) == (vip, PORT, cport)
            assert found.chunks[0][2].endswith(PAD)
            here.sendto(said((client, vip), up, chunk(COOKIE_ECHO, PAD), 0x5E), (vip, 0))
            sender, found = heard(there)
            assert (sender, found.vtag, found.chunks) == (client, 0x5E, ((COOKIE_ECHO, 0, PAD),))
        seen = counters(tunlb)
    assert drops(seen) <= PLANNED, seen
    packets = (3 if mode == "nat" else 2) * len(CPORTS)
    assert seen["CONN_NEW"] == len(CPORTS)
    assert seen["FRAGMENT_LATER"] >= 2 * packets
