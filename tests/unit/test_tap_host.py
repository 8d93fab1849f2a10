"""Bursts beside the director's: from the host to its port, and mirrored ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.test_tap import ScriptedDirector, Wire, drop, never
from tunlb.counters import Counters
from tunlb.hook import Verdict
from tunlb.mailbox import Mailbox, open_mailbox
from tunlb.netif import Netif
from tunlb.outbox import PLAIN_VNET
from tunlb.packet import CUT, Packet
from tunlb.tap import BURST_FRAMES, SHADOW, Drain
from tunlb.wire.vnet import GSO_TCPV4, GSO_UDP_L4

GROUP = b"\x33\x33\0\0\0\1"
PEER = b"\2\0\0\0\0\x77"
REST = b"\x88\xcc" + bytes(46)


class Site:
    """A port, the host beside it, and another port."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.port, self.other, self.host = (Wire(i, self.counters) for i in range(3))
        self.mac = self.port.netif.mac_bytes
        beside = Netif(2, "host", self.port.netif.mac, port=self.port.netif)
        self.port.netif.host = beside
        self.host.port.netif = self.host.netif = beside
        self.verdict = Verdict.DROP
        self.oif: Netif | None = None
        self.director = ScriptedDirector(self.counters, self.act)
        self.drain = Drain(self.director, [self.port.port, self.other.port, self.host.port], never)

    def act(self, pkt: Packet) -> int:
        if self.verdict == Verdict.DROP:
            return drop(pkt)
        pkt.oif = self.oif
        pkt.put32(pkt.start, 0xDEADBEEF)  # whatever becomes of it, the copy is of what came
        return self.verdict

    def mirrored(self) -> None:
        self.port.netif.mirror = self.port.netif.detour = True


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    for wire in (made.port, made.other, made.host):
        wire.close()


def test_what_the_host_sends_leaves_as_it_is(site: Site) -> None:
    frames = [PEER + site.mac + REST, GROUP + site.mac + REST]
    site.host.send(*frames)
    assert site.drain.run(site.host.port, 7) == 2
    assert site.port.received() == [PLAIN_VNET + frame for frame in frames]
    assert site.director.seen == []
    snapshot = site.counters.snapshot()
    assert snapshot["HOST_OUT"] == snapshot["TX_FRAMES"] == 2


@pytest.mark.parametrize(
    ("kind", "proto", "offset", "size"),
    [(GSO_TCPV4, 6, 16, 20), (GSO_UDP_L4, 17, 6, 8), (0, 6, 16, 0)],
    ids=["TSO", "USO", "partial"],
)
@pytest.mark.parametrize("tag", [b"", b"\x81\0\0\7"], ids=["untagged", "tagged"])
def test_its_offloads_too(
    site: Site, kind: int, proto: int, offset: int, size: int, tag: bytes
) -> None:
    ip = bytes.fromhex("4500 05dc 0000 4000 40") + bytes([proto]) + bytes(10)
    frame = PEER + site.mac + tag + b"\x08\0" + ip + bytes(12) + b"\x50" + bytes(2000)
    start = 34 + len(tag)
    length = start + size if kind else start + offset + 2
    words = (length, 1400 if kind else 0, start, offset)
    header = bytes([1, kind]) + b"".join(word.to_bytes(2, "little") for word in words)
    site.host.far.send(header + frame)
    site.drain.run(site.host.port, 0)
    assert site.port.received() == [header + frame]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (PEER + PEER + REST, "HOST_MAC"),
        (PEER + b"\2\0\0", "TRUNCATED"),
        (b"", "TRUNCATED"),
    ],
)
def test_what_the_host_may_not_send(site: Site, frame: bytes, reason: str) -> None:
    site.host.send(frame)
    assert site.drain.run(site.host.port, 0) == 1
    assert site.port.received() == []
    assert site.counters.snapshot()[f"drop.{reason}"] == 1
    assert "HOST_OUT" not in site.counters.snapshot()


def test_a_header_that_lies_is_not_passed_on(site: Site) -> None:
    site.host.far.send(bytes([1, 0, 0, 0, 0, 0, 255, 0, 16, 0]) + PEER + site.mac + REST)
    site.drain.run(site.host.port, 0)
    assert site.port.received() == []
    assert site.counters.snapshot()["drop.VNET_HEADER"] == 1


def test_a_port_that_is_gone(site: Site) -> None:
    site.drain.ports = site.drain.ports[:0]
    site.host.send(PEER + site.mac + REST)
    site.drain.run(site.host.port, 0)
    assert site.counters.snapshot()["drop.PORT_DOWN"] == 1


def test_a_burst_of_the_host_ends_at_its_budget(site: Site) -> None:
    site.host.send(*[PEER + site.mac + REST] * (BURST_FRAMES + 1))
    assert site.drain.run(site.host.port, 0) == BURST_FRAMES
    assert site.drain.run(site.host.port, 0) == 1


def shadow(site: Site) -> bytes:
    return bytes((site.mac[0] ^ SHADOW,)) + site.mac[1:]


@pytest.mark.parametrize("verdict", [Verdict.DROP, Verdict.ACCEPT, Verdict.STOLEN])
@pytest.mark.parametrize("to", ["us", "a group", "another"])
def test_a_copy_of_what_tunlb_takes(site: Site, verdict: Verdict, to: str) -> None:
    site.mirrored()
    site.verdict, site.oif = verdict, site.other.netif
    dst = {"us": site.mac, "a group": GROUP, "another": PEER}[to]
    site.port.send(dst + PEER + REST)
    assert site.drain.run(site.port.port, 7) == 1
    shown = PEER if to == "another" else shadow(site)
    assert site.host.received() == [PLAIN_VNET + shown + PEER + REST]
    assert len(site.other.received()) == (verdict == Verdict.ACCEPT)
    assert len(site.director.seen) == 1
    assert site.counters.snapshot()["HOST_MIRRORED"] == 1


def test_what_goes_to_the_host_is_there_once(site: Site) -> None:
    site.mirrored()
    site.verdict, site.oif = Verdict.ACCEPT, site.port.netif.host
    site.port.send(site.mac + PEER + REST)
    site.drain.run(site.port.port, 0)
    assert len(site.host.received()) == 1
    assert "HOST_MIRRORED" not in site.counters.snapshot()


def test_a_mirrored_frame_is_handed_over(site: Site) -> None:
    boxes = [open_mailbox() for _ in range(2)]
    mailbox = Mailbox(boxes[0][0], [writer for _, writer in boxes], site.counters)
    site.drain.mailbox = mailbox
    site.mirrored()

    def act(pkt: Packet) -> int:
        pkt.owner = 1
        return Verdict.STOLEN

    site.director.act = act
    site.port.send(site.mac + PEER + REST)
    site.drain.run(site.port.port, 0)
    assert site.counters.snapshot()["HANDED_OVER"] == 1
    assert len(site.host.received()) == 1
    mailbox.close()
    other = Mailbox(boxes[1][0], [], site.counters)
    other.close()


class Cutter(ScriptedDirector):
    """Makes ``left`` packets of the one that it has."""

    left = 0

    def segment(self, pkt: Packet, now: int) -> int:
        self.left -= 1
        if self.left < 0:
            return -1
        pkt.owner = -1
        return Verdict.ACCEPT

    def resume(self, pkt: Packet, now: int) -> int:
        pkt.owner = CUT
        return self.act(pkt)


def cutting(site: Site) -> Cutter:
    def act(pkt: Packet) -> int:
        pkt.owner, pkt.oif, made.left = CUT, site.other.netif, 3
        return Verdict.STOLEN

    made = Cutter(site.counters, act)
    site.drain.director = made
    return made


def test_a_mirrored_frame_is_cut(site: Site) -> None:
    cutting(site)
    site.mirrored()
    site.port.send(*[site.mac + PEER + REST] * BURST_FRAMES)
    assert site.drain.run(site.port.port, 0) == BURST_FRAMES // 2, "a cut frame costs two"
    assert len(site.other.received()) == 3 * BURST_FRAMES // 2
    assert len(site.host.received()) == BURST_FRAMES // 2


def test_a_fragment_that_goes_on_is_cut(site: Site) -> None:
    made = cutting(site)
    frame = PLAIN_VNET + site.mac + PEER + REST
    made.outbox.resume([(site.port.netif, frame, 0, False)])
    site.drain.flush()
    assert len(site.other.received()) == 3


@pytest.mark.parametrize("length", [0, 5, 13])
def test_a_runt_is_not_mirrored(site: Site, length: int) -> None:
    site.mirrored()
    site.port.send(bytes(length))
    assert site.drain.run(site.port.port, 0) == 1
    assert site.host.received() == []


def test_a_full_host_does_not_hold_up_the_others(site: Site) -> None:
    site.mirrored()
    site.verdict, site.oif = Verdict.ACCEPT, site.other.netif
    forwarded = 0
    for _ in range(50):
        site.port.send(*[site.mac + PEER + bytes(60_000)] * 2)
        site.drain.run(site.port.port, 0)
        forwarded += len(site.other.received())
    assert forwarded == 100
    snapshot = site.counters.snapshot()
    assert snapshot["drop.MIRROR_LOST"] + snapshot["HOST_MIRRORED"] == 100
    assert snapshot["drop.MIRROR_LOST"] > 0
    assert "drop.TX_BLOCKED" not in snapshot
