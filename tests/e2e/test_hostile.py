"""A client that means harm, with a raw socket on the wire: bounded in time and count.

The frames are drawn with fixed seeds, so that a failure can be had again.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.e2e.kit import (
    COMPILED,
    FAMILIES,
    Family,
    LabFactory,
    client_address,
    counters_of,
    drops,
    serves,
    stopped,
    with_keys,
)
from tunlb.lab import Lab, TunlbProcess, clients
from tunlb.testing import frames
from tunlb.testing.frames import CLIENT_MAC, Flow, arp, echo, eth, icmp, nd_na, nd_ns
from tunlb.testing.frames import ip as ip_packet

CONN_MAX = 512
# three times the table and more; uncompiled, and on a slow machine, a frame takes up to 1 ms
FLOOD = 20_000 if COMPILED else 1_600


def our_mac(tunlb: TunlbProcess) -> str:
    ports = tunlb.wait_event(("ready",))["ports"]
    assert isinstance(ports, list)
    return str(ports[0]["mac"])


@pytest.fixture
def exposed(lab: LabFactory) -> Lab:
    """One-arm, whose bridge does not ask the host's packet filter and so drops no bad packet."""
    made = lab("one-arm")
    switches = "/proc/sys/net/bridge/bridge-nf-call-"
    made.director.run(
        ["sh", "-c", f"for s in {switches}*; do [ ! -e $s ] || echo 0 >$s || exit 1; done"]
    )
    return made


def send_raw(lab: Lab, wire: Iterable[bytes]) -> int:
    """Sends frames out of the client's interface; how many the interface took."""
    sent = 0
    with lab.client.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        for frame in wire:
            try:
                sock.send(frame)
                sent += 1
            except OSError:  # shorter or longer than any interface takes
                pass
    return sent


def models(mac: str, family: Family, vip: str, client: str) -> list[bytes]:
    """Right frames of every kind that tunlb looks into."""
    quote = ip_packet(vip, client, frames.tcp(80, 40000))
    v6 = family == "v6"
    inside = [
        frames.tcp(40001, 80, flags="S", mss=1460),
        frames.tcp(40001, 80, b"data", flags="PA", seq=7, ack=9),
        frames.tcp(40001, 81, flags="R"),
        frames.udp(40001, 7, b"datagram"),
        frames.udp(40001, 53, b"no service"),
        echo(1, 1, v6=v6),
        icmp(1 if v6 else 3, 4 if v6 else 3, 0, quote),
        icmp(2 if v6 else 3, 0 if v6 else 4, 1300, quote),
    ]
    found = [eth(mac, CLIENT_MAC, payload=ip_packet(client, vip, part)) for part in inside]
    found.append(eth(mac, CLIENT_MAC, payload=ip_packet(client, vip, inside[3]), vlan=7))
    if v6:
        hello = {"ttl": 255}
        found.append(
            eth(mac, CLIENT_MAC, payload=ip_packet(client, vip, nd_ns(vip, CLIENT_MAC), **hello))
        )
        found.append(
            eth(mac, CLIENT_MAC, payload=ip_packet(client, vip, nd_na(vip, CLIENT_MAC), **hello))
        )
    else:
        found.append(arp(1, CLIENT_MAC, client, tpa=vip))
        found.append(arp(2, CLIENT_MAC, vip, mac, vip))
    return found


def mutated(model: bytes, dice: random.Random) -> bytes:
    """One to four bytes changed, often those of headers; sometimes cut off or drawn out."""
    frame = bytearray(model)
    for _ in range(dice.randint(1, 4)):
        frame[dice.randrange(12, min(len(frame), 74))] = dice.choice(
            (0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256))
        )
    kind = dice.random()
    if kind < 0.2:
        del frame[dice.randrange(14, len(frame)) :]
    elif kind < 0.3:
        frame += dice.randbytes(dice.randrange(1, 1200))
    return bytes(frame[:1514])


@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_frames(exposed: Lab, family: Family) -> None:
    made = exposed
    tunlb = made.start_tunlb()
    vip, client = made.topology.vips.of(family), client_address(made, family)
    dice = random.Random(20)
    base = models(our_mac(tunlb), family, vip, client)
    with clients.connection(made.client, vip, 7) as conn:
        assert send_raw(made, (mutated(dice.choice(base), dice) for _ in range(4000))) > 3900
        assert conn.echo(b"still here") == b"still here"
    assert serves(made)
    found = counters_of(stopped(tunlb))
    assert sum(found[f"drop.{name}"] for name in drops(found)) > 1000
    assert len(drops(found)) > 6
    assert not drops(found) & {"UNKNOWN", "HOOK_ERROR"}
    assert "HOOK_ERRORS" not in found


def test_random_bytes(exposed: Lab) -> None:
    """After our MAC address, anything: also a broadcast, a VLAN tag or an IP version."""
    made = exposed
    tunlb = made.start_tunlb()
    dice = random.Random(21)
    to = (bytes.fromhex(our_mac(tunlb).replace(":", "")), b"\xff" * 6, b"\x33\x33\0\0\0\1")
    types = (b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b"\x88\xa8", b"\x12\x34")
    noise = (
        dice.choice(to) + b"\x02" + dice.randbytes(5) + dice.choice(types)
        + dice.choice((b"\x45", b"\x60", b"")) + dice.randbytes(dice.randrange(120))
        for _ in range(4000)
    )  # fmt: skip
    send_raw(made, noise)
    assert serves(made)
    found = counters_of(stopped(tunlb))
    # Nothing that was drawn is worth an answer, let alone a frame to a server.
    assert sum(found[f"drop.{name}"] for name in drops(found)) > 3500
    assert {"VLAN_UNKNOWN", "ETHER_TYPE", "IP_HEADER", "ARP_INVALID"} <= drops(found)
    assert "HOOK_ERRORS" not in found


def strangers(dice: random.Random, family: Family) -> str:
    """An address that is nobody's."""
    if family == "v4":
        return str(IPv4Address(0x0A000000 | dice.randrange(100, 0xFF) << 16 | dice.getrandbits(16)))
    return str(IPv6Address(0xFD01 << 112 | dice.getrandbits(64)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_a_flood_of_new_conns(exposed: Lab, family: Family, proto: str) -> None:
    """The table stays as large as configured, and an established conn stays in it."""
    made = exposed
    text = made.topology.config_text
    router = {"v4": "10.0.0.2", "v6": "fd00::2"}[family]
    tunlb = made.start_tunlb(
        with_keys(text, "tunlb", conn_max=CONN_MAX)
        + f'{{"kind":"route","dst":"{"::/0" if family == "v6" else "0.0.0.0/0"}",'
        + f'"via":"{router}","port":"lb0"}}\n'
    )
    vip, mac, dice = made.topology.vips.of(family), our_mac(tunlb), random.Random(22)

    def forged() -> bytes:
        source = strangers(dice, family)
        source = f"[{source}]" if family == "v6" else source
        target = f"[{vip}]" if family == "v6" else vip
        flow = Flow(f"{source}:{dice.randrange(1024, 65536)}", f"{target}:7", server_mac=mac)
        return flow.syn() if proto == "tcp" else flow.udp()

    # what is sent last waits in the port's queue behind the flood and the answers to it
    with clients.connection(made.client, vip, 7, timeout=20.0) as conn:
        assert conn.echo(b"before") == b"before"
        assert send_raw(made, (forged() for _ in range(FLOOD))) == FLOOD
        assert conn.echo(b"after") == b"after"
    assert serves(made)
    end = stopped(tunlb)
    found = counters_of(end)
    assert found["CONN_NEW"] > FLOOD // 4
    conns = end["conns"]
    assert isinstance(conns, int)
    assert conns <= CONN_MAX
    assert found["CONN_EVICTED"] >= found["CONN_NEW"] - CONN_MAX - found.get("CONN_EXPIRED", 0)
    assert "HOOK_ERRORS" not in found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flood_of_neighbours(exposed: Lab, family: Family) -> None:
    """Unasked claims teach us nothing, and the addresses of others stay with them."""
    made = exposed
    tunlb = made.start_tunlb()
    assert serves(made)
    mac, dice = our_mac(tunlb), random.Random(23)
    ours = made.topology.vips.of(family)
    server = made.topology.servers[0][1].of(family)
    local = "fe80::bad"

    def claim(address: str) -> bytes:
        if family == "v4":
            return arp(dice.choice((1, 2)), CLIENT_MAC, address, mac, ours)
        advert = nd_na(address, CLIENT_MAC, solicited=dice.random() < 0.5)
        return eth(mac, CLIENT_MAC, payload=ip_packet(local, ours, advert, ttl=255))

    claims = [claim(strangers(dice, family)) for _ in range(2000)]
    send_raw(
        made, [*claims, *(claim(server) for _ in range(20)), *(claim(ours) for _ in range(20))]
    )
    assert serves(made)
    assert serves(made)
    end = stopped(tunlb)
    neighs = end["neighs"]
    assert isinstance(neighs, int)
    assert neighs <= 20
    assert "ARP_INVALID" in drops(counters_of(end)) or "ND_INVALID" in drops(counters_of(end))


def test_a_scan_of_the_subnet_is_bounded(lab: LabFactory) -> None:
    """Answers to many absent addresses take the room of each other, not of a server's."""
    made = lab("one-arm")
    tunlb = made.start_tunlb()
    mac = our_mac(tunlb)
    scan = [
        eth(mac, CLIENT_MAC, payload=ip_packet(f"fd00::1:{n:x}", "fd00::100", echo(1, n, v6=True)))
        for n in range(1, 3000)
    ]
    send_raw(made, scan)
    assert serves(made)
    end = stopped(tunlb)
    neighs = end["neighs"]
    assert isinstance(neighs, int)
    assert 500 < neighs <= 1024
    assert counters_of(end)["NEIGH_REQUESTS"] < 3100
