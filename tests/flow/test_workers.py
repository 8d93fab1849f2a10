"""Several workers behind one VIP: each frame is fed to a worker that steering did not choose."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import count, cycle

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Conn,
    Net,
    balanced,
    text,
)
from tests.flow.kit import network as network_lines
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, icmp, ip
from tunlb.testing.flow import Sent
from tunlb.testing.frames import eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.parser import Ip
from tunlb.testing.workers import Workers
from tunlb.wiring import pair

COUNT = 3


class Anywhere:
    """A rig, as tests/flow/kit.py knows it, in which the next frame comes to the next worker."""

    def __init__(self, config_text: str, workers: int = COUNT) -> None:
        self.workers = Workers(config_text, workers)
        self.workers.advance(3000)
        self.before = self.workers.counters()
        self.next = cycle(range(workers))

    def receive(self, port: str, frame: bytes) -> tuple[Verdict, list[Sent]]:
        sent = self.workers.receive(next(self.next), port, frame)
        return (Verdict.ACCEPT if sent else Verdict.DROP), sent

    def counters(self) -> dict[str, int]:
        now = self.workers.counters()
        return {k: n - self.before.get(k, 0) for k, n in now.items() if n != self.before.get(k, 0)}

    def conns(self) -> list[int]:
        return [rig.director.ipvs.conns.count for rig in self.workers.rigs]


@pytest.fixture
def anywhere(net: Net) -> Anywhere:
    return Anywhere(balanced(net))


@pytest.mark.parametrize("mode", ["fnat", "nat"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_frames_find_their_conn_from_anywhere(net: Net, mode: str, proto: str) -> None:
    rig = Anywhere(balanced(net, proto, mode))
    conns = [Conn(rig, net, proto, mode, cport=40000 + i) for i in range(12)]  # type: ignore[arg-type]
    for conn in conns:
        conn.up("S")
        conn.down("SA")
        conn.up("A")
    for _ in range(COUNT):
        for conn in conns:
            conn.up("PA", b"question")
            conn.down("PA", b"answer")
    assert sum(rig.conns()) == len(conns)
    assert 0 not in rig.conns()  # keyed, so not even: but each has its share
    found = rig.counters()
    assert found["IPVS_IN_PACKETS"] == sum(conn.packets[0] for conn in conns)
    assert found["IPVS_OUT_PACKETS"] == sum(conn.packets[1] for conn in conns)
    assert found["CONN_NEW"] == len(conns)
    assert not [name for name in found if name.startswith("drop.")]


def test_dr_has_one_direction(net: Net) -> None:
    rig = Anywhere(balanced(net, mode="dr"))
    conns = [Conn(rig, net, mode="dr", cport=41000 + i) for i in range(9)]  # type: ignore[arg-type]
    for flags in ("S", "A", "PA", "PA"):
        for conn in conns:
            conn.up(flags)
    assert sum(rig.conns()) == len(conns)


def test_lports_name_their_worker(net: Net, anywhere: Anywhere) -> None:
    lports = []
    for i in range(60):
        conn = Conn(anywhere, net, cport=42000 + i)  # type: ignore[arg-type]
        conn.up("S")
        lports.append(conn.lport)
    assert len(set(lports)) == 60
    assert {lport % COUNT for lport in lports} == set(range(COUNT))


def test_a_worker_dies_and_its_conns_live_on(net: Net, anywhere: Anywhere) -> None:
    conns = [Conn(anywhere, net, cport=43000 + i) for i in range(12)]  # type: ignore[arg-type]
    for conn in conns:
        conn.up("S")
        conn.down("SA")
        conn.up("A")
    held = anywhere.conns()
    for worker in range(COUNT):
        anywhere.workers.kill(worker)
        for conn in conns:
            conn.up("PA", b"still")
            conn.down("PA", b"here")
        assert anywhere.conns() == held
    for conn in conns:
        conn.down("FA")
        conn.up("FA")
        conn.down("A")
    anywhere.workers.advance(130_000, step=1000)
    assert anywhere.conns() == [0] * COUNT


@pytest.mark.parametrize("mode", ["fnat", "nat"])
@pytest.mark.parametrize("side", ["wan", "lan"])
def test_an_icmp_error_finds_the_worker_of_what_it_quotes(net: Net, mode: str, side: str) -> None:
    rig = Anywhere(balanced(net, mode=mode))
    number, code, info = {4: (3, 4, 1280), 6: (2, 0, 1280)}[net.af]
    for i in range(2 * COUNT):
        conn = Conn(rig, net, mode=mode, cport=44000 + i)  # type: ignore[arg-type]
        conn.up("S")
        conn.down("SA")
        conn.up("A")
        if side == "lan":
            about, target, client = conn.up("PA", b"12345678"), conn.laddr, conn.caddr
            macs, source = (LAN_MAC, DEST_MAC), net.dest
        else:
            about, target, client = conn.down("PA", b"12345678"), net.vip, net.dest
            macs, source = (WAN_MAC, ROUTER_MAC), net.router
        error = message(number, code, info, about.data[24:])
        _, sent = rig.receive(side, vnet(eth(*macs, payload=packet(source, target, error))))
        assert len(sent) == 1
        check(sent[0].frame, ip(daddr=client, version=net.af), icmp(type=number, code=code))
    assert rig.counters()["ICMP_RELATED"] == 2 * COUNT


@pytest.mark.parametrize(
    ("flags", "vport", "reason"),
    [("A", 80, "TCP_NOT_SYN"), ("A", 81, "PORT_UNREACHABLE"), ("S", 81, "PORT_UNREACHABLE")],
    ids=["no conn", "no service", "no service for a SYN"],
)
def test_what_nobody_knows_is_dropped_once(
    net: Net, anywhere: Anywhere, flags: str, vport: int, reason: str
) -> None:
    for sport in range(50000, 50000 + 4 * COUNT):
        frame = packet(net.remote, net.vip, segment(sport, vport, flags=flags))
        anywhere.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=frame)))
    found = anywhere.counters()
    assert found[f"drop.{reason}"] == 4 * COUNT
    assert sum(n for name, n in found.items() if name.startswith("drop.")) == 4 * COUNT


def test_what_is_for_no_service_is_routed_by_some_worker(net: Net) -> None:
    rig = Anywhere(text(*network_lines(net)))
    ports = count(50000)
    for _ in range(4 * COUNT):
        frame = packet(net.dest, net.remote, segment(next(ports), 22, flags="A"))
        _, sent = rig.receive("lan", vnet(eth(LAN_MAC, DEST_MAC, payload=frame)))
        assert [s.port for s in sent] == ["wan"]
    assert rig.counters() == {"FORWARDED": 4 * COUNT}


def aged(packet_bytes: bytes) -> bytes:
    """An IP packet as the next router sends it on: TTL lowered, IPv4 checksum made anew."""
    body = bytearray(packet_bytes)
    if body[0] >> 4 == 6:
        body[7] -= 1
        return bytes(body)
    body[8] -= 1
    body[10:12] = bytes(2)
    total = sum(int.from_bytes(body[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    body[10:12] = (0xFFFF - (total & 0xFFFF) - (total >> 16)).to_bytes(2, "big")
    return bytes(body)


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_a_routing_loop_ends(net: Net, mode: str) -> None:
    """Whoever wrote the packet, it comes back to one and the same worker: two rounds at most."""
    rig = Workers(balanced(net, mode=mode), COUNT)
    rig.advance(3000)
    for cport in range(45000, 45010):
        syn = packet(net.remote, net.vip, segment(cport, 80, flags="S"))
        conns = [r.director.ipvs.conns.count for r in rig.rigs]
        sent = rig.receive(0, "wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=syn)))
        assert [r.director.ipvs.conns.count for r in rig.rigs] != conns
        rounds = 0
        while sent:
            [frame] = sent
            back = eth(LAN_MAC, DEST_MAC, payload=aged(frame.frame[24:]))
            # Steered as the kernel would: by the destination, for it is neither VIP nor laddr.
            target = check(frame.frame).find(Ip)
            assert isinstance(target, Ip)
            sharding = rig.rigs[0].director.ipvs.sharding
            assert sharding is not None
            hi, lo = pair(ip_address(target.daddr))
            worker = sharding.by_endpoint(hi, lo, 8080)
            sent = rig.receive(worker, frame.port, vnet(back))
            rounds += 1
            assert rounds <= 2
    found = rig.counters()
    # With fnat the source is a laddr of ours: who did not write the packet calls it a martian.
    ends = found["drop.LOOP"] + (found.get("drop.MARTIAN", 0) if mode == "fnat" else 0)
    assert ends == 10
