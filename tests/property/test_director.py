"""Whatever is read: no exception, drops counted once, nothing sent outside the configuration."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.corpus import DESTS, EDITS, KINDS, LB, LB1, STATIONS, Feed, Step, is_ours
from tunlb.counters import DropReason
from tunlb.hook import Verdict
from tunlb.testing import frames as f
from tunlb.testing import parser
from tunlb.testing.flow import Sent
from tunlb.testing.sctp import SCTP

BROADCAST = "ff:ff:ff:ff:ff:ff"
# What is in a tunnel has a test of its own: test_tunnels.py.
WATCHED = ("tap", "tun", "gateway", "held")
OUR_MACS = {LB.hex(":"), LB1.hex(":")}
# Reasons for which what we answer, not what was read, is dropped.
ANSWERS = {"drop.RATE_LIMITED", "drop.OUTBOX_FULL", "drop.NO_ROUTE", "drop.NEIGH_QUEUE_FULL"}

numbers = st.integers(0, 65535)
edits = st.lists(st.tuples(st.sampled_from(EDITS), numbers, numbers), max_size=4)
pauses = st.sampled_from((0, 0, 0, 0, 30, 1000, 20_000))
steps = st.lists(st.tuples(st.integers(0, 220), edits, pauses), min_size=1, max_size=12)
# Cheap and the heart of it, so more than the profile's share.
MANY = settings(max_examples=4 * settings().max_examples, deadline=None)


class Watch:
    """Reads steps and checks what each did; knows who has spoken and with which MAC address."""

    def __init__(self, name: str) -> None:
        self.feed = Feed(KINDS[name])
        self.tun = self.feed.kind.tun
        self.gateway = name == "gateway"  # which sends packets on to where they were going
        self.macs = {*STATIONS.values(), "02:00:00:00:01:11"}
        self.addresses = {"10.0.0.11", "10.1.0.11", "fd00::11"}
        self.clean = True

    def drops(self) -> dict[str, int]:
        return {k: n for k, n in self.feed.rig.counters().items() if k.startswith("drop.")}

    def step(self, step: Step) -> None:
        rig = self.feed.rig
        self.feed.rig.advance(step[2])
        before, forwarded = self.drops(), rig.counters().get("FORWARDED", 0)
        port, data, verdict, sent, _ = self.feed.read((step[0], step[1], 0))
        parsed = parser.parse(data, tun=self.tun)
        self.hear(parsed)
        self.accounted(Verdict(verdict), before)
        came = parsed.find(parser.Ip)
        if isinstance(came, parser.Ip) and (
            came.saddr in ("0.0.0.0", "::") or is_ours(rig, came.saddr)
        ):
            assert verdict != Verdict.ACCEPT, f"a packet from {came.saddr} was sent on"
        routed = rig.counters().get("FORWARDED", 0) > forwarded
        for i, one in enumerate(sent):
            self.lawful(one, routed, parsed)
            kept = i == 0 and verdict == Verdict.ACCEPT
            if not parsed.problems and (kept or self.clean):
                assert self.problems(one, parsed) == [], f"{port} {data.hex()}"
            if kept and any("wrong checksum" in p or "CRC" in p for p in parsed.problems):
                self.never_repaired(parsed, one)
        self.clean = self.clean and not parsed.problems

    def hear(self, frame: parser.Frame) -> None:
        for header in frame.headers:
            if isinstance(header, parser.Ether):
                self.macs.add(header.src)
            elif isinstance(header, parser.Arp):
                self.macs.add(header.sha)
                self.addresses |= {header.spa, header.tpa}
            elif isinstance(header, parser.Ip):
                self.addresses.add(header.saddr)
                if self.gateway:
                    self.addresses.add(header.daddr)
            elif isinstance(header, parser.Icmp) and header.lladdr:
                self.macs.add(header.lladdr)

    def accounted(self, verdict: Verdict, before: dict[str, int]) -> None:
        after = self.drops()
        risen = {k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0)}
        packet = self.feed.rig.director.packet
        names = {int(reason): reason.name for reason in DropReason}
        if verdict != Verdict.DROP:
            assert risen == {}
            return
        assert packet.reason != 0
        own = f"drop.{names[packet.reason]}"
        assert risen.pop(own, 0) >= 1
        if packet.err_type < 0:
            assert risen == {}
        else:
            assert sum(risen.values()) <= 1
            assert risen.keys() <= ANSWERS

    def problems(self, sent: Sent, read: parser.Frame) -> list[str]:
        offload = read.find(parser.Vnet)
        assert isinstance(offload, parser.Vnet)
        found = parser.parse(sent.frame, tun=self.tun).problems
        if offload.flags & f.NEEDS_CSUM:
            # An error about it quotes the checksum that the kernel has not finished yet.
            found = [text for text in found if not text.startswith("quoted packet: wrong checksum")]
        return found

    def never_repaired(self, read: parser.Frame, sent: Sent) -> None:
        ip = read.find(parser.Ip)
        if isinstance(ip, parser.Ip) and ip.proto in (f.TCP, f.UDP) and not ip.fragment:
            assert any(
                "wrong checksum" in text for text in parser.parse(sent.frame, tun=self.tun).problems
            )

        if isinstance(ip, parser.Ip) and ip.proto == SCTP and not ip.fragment:
            offload = read.find(parser.Vnet)
            assert isinstance(offload, parser.Vnet)
            told = [text for text in read.problems if "wrong CRC-32C" in text]
            if told and not offload.flags & f.NEEDS_CSUM:
                found = parser.parse(sent.frame, tun=self.tun).problems
                assert any("wrong CRC-32C" in text for text in found)

    def lawful(self, sent: Sent, routed: bool, read: parser.Frame) -> None:
        frame = parser.parse(sent.frame, tun=self.tun)
        netif = self.feed.rig.netif(sent.port)
        ether = frame.find(parser.Ether)
        if isinstance(ether, parser.Ether):
            assert ether.src in OUR_MACS
            assert ether.src == netif.mac.to_bytes(6, "big").hex(":")
            assert ether.vlan == ((netif.vid,) if netif.vid else ())
            assert ether.dst not in OUR_MACS
        arp, ip, icmp = (frame.find(kind) for kind in (parser.Arp, parser.Ip, parser.Icmp))
        if isinstance(arp, parser.Arp):
            assert is_ours(self.feed.rig, arp.spa)
            assert isinstance(ether, parser.Ether)
            assert ether.dst in (self.macs | {BROADCAST} if arp.op == 1 else self.macs)
            return
        assert isinstance(ip, parser.Ip)
        if (
            isinstance(icmp, parser.Icmp)
            and icmp.target is not None
            and is_ours(self.feed.rig, ip.saddr)
        ):
            return  # a solicitation or an advertisement of ours; where to is its group or its asker
        if isinstance(ether, parser.Ether):
            assert ether.dst in self.macs
        if is_ours(self.feed.rig, ip.daddr):
            # Direct routing: the dest holds the VIP, and only dests may get such a frame.
            assert isinstance(ether, parser.Ether)
            assert ether.dst in DESTS.values()
            assert ip.daddr.endswith("::100" if ip.version == 6 else ".100")
        elif is_ours(self.feed.rig, ip.saddr) or not routed:
            assert ip.daddr in self.addresses, f"sent to {ip.daddr}"
        else:
            came = read.find(parser.Ip)
            assert isinstance(came, parser.Ip)
            assert (came.saddr, came.daddr) == (ip.saddr, ip.daddr)
            assert ip.ttl == came.ttl - 1


@pytest.mark.parametrize("kind", WATCHED)
def test_good_frames_pass_the_watch(kind: str) -> None:
    """The good frames are good, most are forwarded, and every conn of them is born."""
    watch = Watch(kind)
    for i in range(len(watch.feed.kind.frames)):
        watch.step((i, [], 0))
    counters = watch.feed.rig.counters()
    assert counters["CONN_NEW"] == {"tap": 16, "tun": 4, "gateway": 18, "held": 4}[kind]
    assert counters["ICMP_RELATED"] == {"tap": 31, "tun": 1, "gateway": 36, "held": 1}[kind]
    assert not {"drop.VNET_HEADER", "drop.IP_CHECKSUM", "drop.L4_HEADER"} & counters.keys()


@given(kind=st.sampled_from(WATCHED), taken=steps)
@MANY
def test_spoilt_frames(kind: str, taken: list[Step]) -> None:
    watch = Watch(kind)
    for step in taken:
        watch.step(step)


@given(kind=st.sampled_from(WATCHED), begin=st.integers(0, 200), taken=steps)
@MANY
def test_spoilt_frames_of_conns(kind: str, begin: int, taken: list[Step]) -> None:
    """The same behind a good conversation, so that more of them meet a conn."""
    watch = Watch(kind)
    for i in range(begin, begin + 8):
        watch.step((i, [], 0))
    for step in taken:
        watch.step(((begin + step[0]) % (begin + 8), *step[1:]))


@given(kind=st.sampled_from(WATCHED), data=st.binary(max_size=120))
@settings(deadline=None)
def test_any_bytes(kind: str, data: bytes) -> None:
    feed = Feed(KINDS[kind])
    for port in {port for port, _ in feed.kind.frames}:
        verdict, sent = feed.rig.receive(port, f.PLAIN + data)
        assert verdict == Verdict.DROP or sent or verdict == Verdict.STOLEN
