"""ICMP errors about outer packets: what they teach, and what the client hears of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    V6,
    WAN_MAC,
    Net,
    Rig,
    at,
    dropped,
    one,
)
from tests.flow.tunnels import balanced, finished, unwrapped
from tunlb.hook import Verdict
from tunlb.ipvs.far import PATH_MS
from tunlb.ipvs.outer import NEWS_MAX, PATH
from tunlb.testing import frames
from tunlb.testing.checkers import check, ether, icmp, ip, quoted, tcp
from tunlb.testing.flow import Sent
from tunlb.testing.frames import Flow, vnet
from tunlb.testing.workers import Workers

WAYS = pytest.mark.parametrize(
    ("net", "outer"), [(V4, V4), (V6, V6), (V4, V6), (V6, V4)], ids=["4in4", "6in6", "4in6", "6in4"]
)
KINDS = pytest.mark.parametrize(
    "keys",
    [{"type": "ipip"}, {"type": "gre", "csum": True}, {"type": "gue"}],
    ids=["ipip", "gre", "gue"],
)
OVERHEAD = {"ipip": 0, "gre": 8, "gue": 12}
ROUTERS = {4: "192.0.2.77", 6: "2001:db8:77::1"}
TOO_BIG = {4: (3, 4), 6: (2, 0)}


class Path:
    """A conn through a tunnel, and a router on the way to its dest."""

    def __init__(self, net: Net, outer: Net, keys: dict[str, Any] | None = None) -> None:
        self.net, self.outer = net, outer
        self.rig = Rig(balanced(net, outer, tunnel=keys or {}))
        self.flow = Flow(
            at(net.remote, 40000), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC
        )
        one(self.rig.receive("wan", vnet(self.flow.syn())))

    def data(self, size: int) -> tuple[Verdict, list[Sent]]:
        return self.rig.receive("wan", vnet(self.flow.segment("A", bytes(size))))

    def wrote(self, size: int = 1000) -> bytes:
        """An outer packet that left."""
        return finished(one(self.data(size)).frame)[14:]

    def error(self, kind: tuple[int, int], info: int, about: bytes, **fields: Any) -> bytes:
        message = frames.icmp(*kind, info, about, **fields)
        packet = frames.ip(ROUTERS[self.outer.af], self.outer.lan, message)
        return vnet(frames.eth(LAN_MAC, DEST_MAC, payload=packet))

    def too_big(self, mtu: int, about: bytes, **fields: Any) -> tuple[Verdict, list[Sent]]:
        return self.rig.receive("lan", self.error(TOO_BIG[self.outer.af], mtu, about, **fields))

    def told(self, sent: list[Sent], kind: tuple[int, int], info: int) -> None:
        """The client, and nobody else, heard of its own packet, from the VIP."""
        assert [each.port for each in sent] == ["wan"]
        check(
            sent[0].frame,
            ether(dst=ROUTER_MAC, src=WAN_MAC),
            ip(saddr=self.net.vip, daddr=self.net.remote),
            icmp(type=kind[0], code=kind[1], info=info),
            quoted(ip(saddr=self.net.remote, daddr=self.net.vip), tcp(sport=40000, dport=80)),
        )


def moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    found = {name: n - before.get(name, 0) for name, n in after.items()}
    return {name: n for name, n in found.items() if n}


@WAYS
@KINDS
def test_too_big_is_learnt_told_and_forgotten(net: Net, outer: Net, keys: dict[str, Any]) -> None:
    path = Path(net, outer, keys)
    rig = path.rig
    about = path.wrote(1370)
    before = rig.counters()
    verdict, sent = path.too_big(1400, about[:500])
    room = 1400 - (20 if outer.af == 4 else 40) - OVERHEAD[keys["type"]]
    assert verdict == Verdict.DROP
    path.told(sent, TOO_BIG[net.af], room)
    assert moved(before, rig.counters()) == {
        "drop.TUNNEL_ERROR": 1,
        "TUNNEL_PMTU": 1,
        "ICMP_ERRORS_SENT": 1,
    }
    # The next one that is too large ends here.
    header = 40 if net.af == 4 else 60
    verdict, sent = path.data(room - header + 1)
    assert verdict == Verdict.DROP
    path.told(sent, TOO_BIG[net.af], room)
    one(path.data(room - header))
    # Said again, it lives on; a larger one is no news.
    rig.advance(PATH_MS - 1000, 60_000)
    one(path.data(10))
    fresh = path.wrote(room - header)
    path.too_big(1399, fresh)
    rig.advance(2000)
    path.data(10)
    assert path.data(room - header)[0] == Verdict.DROP
    rig.advance(PATH_MS, 60_000)
    assert rig.counters()["TUNNEL_PMTU_EXPIRED"] == 1
    path = path if rig.director.ipvs.conns.count else Path(net, outer, keys)
    one(path.data(room - header + 1))


@WAYS
def test_a_quote_too_short_teaches_but_tells_nobody(net: Net, outer: Net) -> None:
    path = Path(net, outer)
    about = path.wrote(1370)
    before = path.rig.counters()
    verdict, sent = path.too_big(1400, about[: (20 if outer.af == 4 else 40) + 8])
    assert (verdict, sent) == (Verdict.DROP, [])
    assert moved(before, path.rig.counters()) == {"drop.TUNNEL_ERROR": 1, "TUNNEL_PMTU": 1}
    assert path.data(1370)[0] == Verdict.DROP


@pytest.mark.parametrize(
    ("af", "mtu"), [(4, 0), (4, 67), (4, 1500), (4, 65535), (6, 1279), (6, 1500), (6, 0xFFFFFFFF)]
)
def test_what_no_router_says(af: int, mtu: int) -> None:
    net = V4 if af == 4 else V6
    path = Path(net, net)
    about = path.wrote(1300)
    before = path.rig.counters()
    assert path.too_big(mtu, about) == (Verdict.DROP, [])
    assert moved(before, path.rig.counters()) == {"drop.TUNNEL_ERROR": 1}


def test_the_smallest_path(net: Net) -> None:
    """IPv4's least is 68; the outer header can be fragmented, the inner is told no less."""
    path = Path(net, V4, {"type": "gue"})
    about = path.wrote(1300)
    _, sent = path.too_big(68, about)
    room = 68 if net.af == 4 else 1280
    path.told(sent, TOO_BIG[net.af], room)
    header = 40 if net.af == 4 else 60
    # A wider path is no news, and changes nothing.
    _, sent = path.too_big(1290, about)
    path.told(sent, TOO_BIG[net.af], room)
    assert not unwrapped(one(path.data(room - header)).frame).df
    assert path.data(room - header + 1)[0] == Verdict.DROP


@WAYS
@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({4: (3, 1), 6: (1, 3)}, {4: (3, 1), 6: (1, 3)}),
        ({4: (3, 2), 6: (1, 0)}, {4: (3, 1), 6: (1, 3)}),
        ({4: (3, 3), 6: (1, 4)}, {4: (3, 1), 6: (1, 3)}),
        ({4: (11, 0), 6: (3, 0)}, {4: (11, 0), 6: (3, 0)}),
        ({4: (3, 5), 6: (4, 0)}, None),
        ({4: (12, 0), 6: (4, 1)}, None),
        ({4: (11, 1), 6: (3, 1)}, None),
    ],
    ids=["host", "protocol", "port", "ttl", "source-route", "parameter", "reassembly"],
)
def test_other_errors(
    net: Net, outer: Net, error: dict[int, tuple[int, int]], said: dict[int, tuple[int, int]] | None
) -> None:
    path = Path(net, outer, {"type": "gue", "csum": True})
    about = path.wrote()
    before = path.rig.counters()
    verdict, sent = path.rig.receive("lan", path.error(error[outer.af], 0, about[:300]))
    assert verdict == Verdict.DROP
    if said is None:
        assert sent == []
        assert moved(before, path.rig.counters()) == {"drop.TUNNEL_ERROR": 1}
    else:
        path.told(sent, said[net.af], 0)
        assert moved(before, path.rig.counters()) == {
            "drop.TUNNEL_ERROR": 1,
            "ICMP_ERRORS_SENT": 1,
        }


@WAYS
def test_a_quote_too_short_of_another_error(net: Net, outer: Net) -> None:
    path = Path(net, outer)
    about = path.wrote()[: (20 if outer.af == 4 else 40) + 16]
    kind = (3, 1) if outer.af == 4 else (1, 3)
    dropped(path.rig, "lan", path.error(kind, 0, about), "TUNNEL_ERROR")


@WAYS
@pytest.mark.parametrize("workers", [1, 2])
def test_about_a_ping(net: Net, outer: Net, workers: int) -> None:
    text = balanced(net, outer, "icmp").replace('"vport": 80, ', "")
    made = Workers(text, workers)
    number = 8 if net.af == 4 else 128
    kind = TOO_BIG[outer.af]
    for rig in made.rigs:
        rig.advance(3000)
    before = dict(made.counters())

    def ping(size: int) -> list[Sent]:
        request = frames.icmp(number, 0, 0x12340001, bytes(size))
        packet = frames.ip(net.remote, net.vip, request)
        return made.receive(0, "wan", vnet(frames.eth(WAN_MAC, ROUTER_MAC, payload=packet)))

    about = finished(ping(1372)[0].frame)[14:]
    told = []
    for worker in range(workers):
        packet = frames.ip(ROUTERS[outer.af], outer.lan, frames.icmp(*kind, 1400, about[:300]))
        told += made.receive(worker, "lan", vnet(frames.eth(LAN_MAC, DEST_MAC, payload=packet)))
    assert len(told) == workers
    room = 1400 - (20 if outer.af == 4 else 40)
    check(
        told[0].frame,
        ip(saddr=net.vip, daddr=net.remote),
        icmp(type=TOO_BIG[net.af][0], info=room),
        quoted(ip(saddr=net.remote, daddr=net.vip), icmp(type=number)),
    )
    assert (
        moved(before, dict(made.counters()))["TUNNEL_PMTU"] == 1
    )  # who sends nothing there need not know
    check(ping(1372)[0].frame, icmp(type=TOO_BIG[net.af][0], info=room))


@WAYS
@pytest.mark.parametrize("what", ["later", "error", "options"])
def test_an_inner_packet_that_no_conn_is_found_by(net: Net, outer: Net, what: str) -> None:
    """It teaches the path, as a quote does that is too short."""
    path = Path(net, outer)
    about = bytearray(path.wrote(1370))
    at = 20 if outer.af == 4 else 40
    if what == "later" and net.af == 4:
        about[at + 6 : at + 8] = b"\0\x64"
    elif net.af == 4:
        about[at + 9] = 1 if what == "error" else 51
    else:
        about[at + 6] = {"later": 44, "error": 58, "options": 60}[what]
    if net.af == 4:
        about[at + 10 : at + 12] = b"\0\0"
        value = frames.checksum(bytes(about[at : at + 20]))
        about[at + 10 : at + 12] = value.to_bytes(2, "big")
    before = path.rig.counters()
    assert path.too_big(1400, bytes(about)) == (Verdict.DROP, [])
    assert moved(before, path.rig.counters()) == {"drop.TUNNEL_ERROR": 1, "TUNNEL_PMTU": 1}


def test_forged_quotes(net: Net) -> None:
    path = Path(net, net)
    rig = path.rig
    about = bytearray(path.wrote())
    header = 20 if net.af == 4 else 40
    ports = header * 2
    unknown = bytes(about[:ports]) + b"\x99\x99" + bytes(about[ports + 2 :])
    kind = TOO_BIG[net.af]
    dropped(rig, "lan", path.error(kind, 1000 if net.af == 4 else 1280, unknown), "ICMP_UNRELATED")
    # A quoted destination to which nothing of this conn was sent.
    at_daddr = 16 if net.af == 4 else 24
    other = bytearray(about)
    other[at_daddr : at_daddr + len(frames.address_bytes(net.dest2))] = frames.address_bytes(
        net.dest2
    )
    if net.af == 4:
        other[10:12] = b"\0\0"
        other[10:12] = frames.checksum(bytes(other[:20])).to_bytes(2, "big")
    dropped(rig, "lan", path.error(kind, 1280, bytes(other)), "ICMP_UNRELATED")
    # A wrong checksum of the error.
    dropped(rig, "lan", path.error(kind, 1280, bytes(about), checksum=1), "ICMP_INVALID")


def test_no_quote_raises(net: Net) -> None:
    """Whatever is cut off or turned over in a quote."""
    for keys in ({"type": "ipip"}, {"type": "gre", "csum": True}, {"type": "gue"}):
        path = Path(net, net, keys)
        about = path.wrote(200)
        for cut in range(len(about)):
            verdict, _ = path.too_big(1280, about[:cut])
            assert verdict == Verdict.DROP
        for spot in range(min(len(about), 100)):
            for bits in (0xFF, 0x40, 0x01):
                bad = bytearray(about)
                bad[spot] ^= bits
                verdict, _ = path.too_big(1280, bytes(bad))
                assert verdict == Verdict.DROP


def test_news_are_bounded(net: Net) -> None:
    """Who can forge errors cannot have every row look up its route for each."""
    path = Path(net, V4)
    rig = path.rig
    before = rig.director.neighs.epoch
    about = path.wrote(1300)
    for mtu in range(1300, 1200, -1):
        path.too_big(mtu, about)
    assert rig.director.neighs.epoch - before == NEWS_MAX == rig.counters()["TUNNEL_PMTU"]
    rig.now += 1000
    path.too_big(1100, about)
    assert rig.counters()["TUNNEL_PMTU"] == NEWS_MAX + 1


@WAYS
def test_workers_tell_each_other(net: Net, outer: Net) -> None:
    """The error comes to any worker, and every one that sends there goes by it."""
    workers = Workers(balanced(net, outer), 2)
    flows = {}
    for cport in range(40000, 40032):
        flow = Flow(
            at(net.remote, cport), at(net.vip, 80), client_mac=ROUTER_MAC, server_mac=WAN_MAC
        )
        sent = workers.receive(0, "wan", vnet(flow.syn()))
        assert len(sent) == 1
        owner = max(range(2), key=lambda n: workers.rigs[n].director.ipvs.conns.count)
        flows[cport] = (flow, owner)
    flow, _ = flows[40000]
    about = finished(workers.receive(1, "wan", vnet(flow.segment("A", bytes(1370))))[0].frame)[14:]
    kind = TOO_BIG[outer.af]
    message = frames.icmp(*kind, 1400, about[:500])
    packet = frames.ip(ROUTERS[outer.af], outer.lan, message)
    for worker in range(2):
        raw = vnet(frames.eth(LAN_MAC, DEST_MAC, payload=packet))
        sent = workers.receive(worker, "lan", raw)
        assert [each.port for each in sent] == ["wan"]
    for rig in workers.rigs:
        assert rig.counters()["TUNNEL_PMTU"] == 1
    for cport, (flow, _) in flows.items():
        sent = workers.receive(cport % 2, "wan", vnet(flow.segment("A", bytes(1390))))
        check(sent[0].frame, icmp(type=TOO_BIG[net.af][0]))


def test_messages_are_checked(net: Net) -> None:
    path = Path(net, net)
    director = path.rig.director
    director.hear(bytes((PATH,)), path.rig.now)
    director.hear(bytes((PATH,)) + bytes(23), path.rig.now)
    director.hear(bytes((PATH,)) + bytes(24), path.rig.now)
    assert "TUNNEL_PMTU" not in path.rig.counters()
