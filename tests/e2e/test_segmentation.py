"""Our segments are the kernel's: the same offloaded frame is cut by both, and not a byte differs.

A TAP takes the frame with its virtio-net header, a bridge floods it to a second TAP that asked for
no offload, and what is read there is what the kernel made of it in software (tcp_gso_segment,
__udp_gso_segment). Our partial checksums are finished as the kernel finishes them.
"""

from __future__ import annotations

import os
import random
import select
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_ports import enter, sh
from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.tap import open_device
from tunlb.testing import frames
from tunlb.testing.frames import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    Flow,
    ones_sum,
    vnet,
)
from tunlb.wire import ether, ipv4, ipv6, segment, tcp, udp
from tunlb.wire import vnet as wire_vnet

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("namespace")]

OURS = Netif(0, "tunlb-a", 0x02AABBCCDDEE)
NOBODY = "02:00:00:00:99:99"  # a MAC address that the bridge floods
TOGETHER_S = 5.0
STAMPS = b"\1\1\x08\x0a" + bytes(range(8))
ECN = 0x80


@pytest.fixture
def namespace(privileged: None) -> Iterator[str]:
    name = f"tunlb-cut-{os.getpid()}"
    with open("/proc/thread-self/ns/net") as before:
        sh(f"ip netns add {name}")
        try:
            enter(f"/run/netns/{name}")
            yield name
        finally:
            enter(f"/proc/self/fd/{before.fileno()}")
            sh(f"ip netns del {name}")


@pytest.fixture
def taps(namespace: str) -> Iterator[tuple[int, int]]:
    """Where frames are written, and where the kernel's segments are read."""
    for which in ("all", "default"):
        with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w") as setting:
            setting.write("1")
    writer = open_device("tunlb-a", offload=True).fd
    reader = open_device("tunlb-b", offload=False).fd
    sh("ip link add br0 type bridge mcast_snooping 0")
    for name in ("tunlb-a", "tunlb-b"):
        sh(f"ip link set {name} master br0", f"ip link set {name} txqueuelen 5000 up")
    sh("ip link set br0 up")
    try:
        yield writer, reader
    finally:
        os.close(writer)
        os.close(reader)


def by_kernel(taps: tuple[int, int], raw: bytes, count: int) -> list[bytes]:
    writer, reader = taps
    assert os.write(writer, raw) == len(raw)
    found: list[bytes] = []
    deadline = time.monotonic() + TOGETHER_S
    while len(found) < count and time.monotonic() < deadline:
        if select.select([reader], [], [], 0.2)[0]:
            data = os.read(reader, 70000)
            assert data[0] & NEEDS_CSUM == 0, "the kernel left the checksum to us"
            assert data[1] == 0
            found.append(data[10:])
    return found


def by_us(raw: bytes) -> list[bytes]:
    pkt = Packet()
    pkt.load(raw, OURS)
    assert wire_vnet.parse(pkt) == 0
    assert ether.parse(pkt) == 0
    head = ipv4.parse if pkt.ether_type == frames.ETH_P_IP else ipv6.parse
    assert head(pkt) == 0
    assert (tcp if pkt.proto == 6 else udp).parse(pkt) == 0
    assert wire_vnet.check(pkt) == 0
    ethernet = raw[10:24]
    cutter = segment.Segments()
    assert cutter.begin(pkt) == 0
    found = []
    while cutter.next(pkt):
        assert pkt.csum_start == pkt.l4
        data = bytearray(pkt.mem[pkt.l3 : pkt.end])
        at = pkt.l4 - pkt.l3
        field = at + pkt.csum_offset
        value = 0xFFFF - ones_sum(bytes(data[at:]))
        if value == 0 and pkt.proto == 17:
            value = 0xFFFF
        data[field : field + 2] = struct.pack("!H", value)
        found.append(ethernet + bytes(data))
    return found


def offloaded(rng: random.Random, v6: bool, kind: str) -> tuple[bytes, int]:
    """A frame of random sizes and flags, and how many segments it makes."""
    size = rng.choice((88, 500, 536, 1000, 1200, 1400, 1448))
    count = rng.choice((2, 3, rng.randrange(2, 40)))
    length = min(size * (count - 1) + rng.randrange(1, size + 1), 65000)
    count = -(-length // size)
    if kind == "udp":
        count = min(count, 64)
        length = min(length, size * count)
    payload = rng.randbytes(length)
    ends = ("[fd00::1]:7", "[fd00::2]:80") if v6 else ("10.0.0.1:7", "10.0.0.2:80")
    flow = Flow(*ends, client_mac="02:00:00:00:00:01", server_mac=NOBODY)
    flow.client_seq = rng.randrange(1 << 32)
    network: dict[str, Any] = {"tos": rng.choice((0, 2, 0xB8)), "ttl": rng.randrange(2, 256)}
    if not v6:
        network |= {"ident": rng.randrange(1 << 16), "df": rng.random() < 0.5}
        if rng.random() < 0.2:
            network["options"] = b"\x01\x01\x01\x00"
    else:
        network["flow"] = rng.randrange(1 << 20)
    if kind == "udp":
        raw = flow.udp(payload, ip=network)
        return vnet(raw, needs_csum=True, gso_type=GSO_UDP_L4, gso_size=size), count
    flags = rng.choice(("A", "PA", "FA", "FPA", "ACP", "AUE"))
    options = rng.choice((b"", STAMPS, b"\1\1\5\x12" + rng.randbytes(16)))
    raw = flow.segment(flags, payload, ip=network, options=options, urgent=5 * ("U" in flags))
    gso = (GSO_TCPV6 if v6 else GSO_TCPV4) | (ECN if "C" in flags else 0)
    return vnet(raw, needs_csum=True, gso_type=gso, gso_size=size), count


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_the_same_segments(taps: tuple[int, int], v6: bool, kind: str) -> None:
    rng = random.Random(f"{kind} {v6}")
    for number in range(40):
        raw, count = offloaded(rng, v6, kind)
        ours = by_us(raw)
        assert len(ours) == count
        theirs = by_kernel(taps, raw, count)
        assert len(theirs) == count
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert one == other, (number, index, one[:90].hex(), other[:90].hex())
