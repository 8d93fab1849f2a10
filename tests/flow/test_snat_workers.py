"""SNAT, caches and pings with several workers: each frame may come to any of them."""

from __future__ import annotations

from itertools import cycle, product

import pytest

from tests.flow.fragmenting import cut
from tests.flow.kit import (
    DEST2_MAC,
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Line,
    Net,
    network,
    text,
)
from tunlb.testing.checkers import check, icmp, ip, quoted, tcp
from tunlb.testing.flow import Sent
from tunlb.testing.frames import Transport, eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.frames import udp as datagram
from tunlb.testing.parser import Frame, Icmp, Tcp, Udp
from tunlb.testing.workers import Workers

COUNT = 3


class Site:
    def __init__(self, net: Net, *lines: Line) -> None:
        self.net = net
        self.workers = Workers(text(*network(net), *lines), COUNT)
        self.workers.advance(3000)
        self.next = cycle(range(COUNT))

    def _frame(self, port: str, raw: bytes) -> Frame:
        macs = (LAN_MAC, DEST_MAC) if port == "lan" else (WAN_MAC, ROUTER_MAC)
        sent: list[Sent] = self.workers.receive(
            next(self.next), port, vnet(eth(*macs, payload=raw))
        )
        assert len(sent) == 1, sent
        return check(sent[0].frame)

    def lan(self, saddr: str, daddr: str, body: Transport) -> Frame:
        return self._frame("lan", packet(saddr, daddr, body))

    def wan(self, saddr: str, daddr: str, body: Transport) -> Frame:
        return self._frame("wan", packet(saddr, daddr, body))

    def conns(self) -> list[int]:
        return [rig.director.ipvs.conns.count for rig in self.workers.rigs]


def laddr(net: Net) -> str:
    return "10.0.0.200" if net.af == 4 else "fd00::200"


def snat(net: Net, proto: str) -> Line:
    inside = "10.1.0.0/24" if net.af == 4 else "fd01::/64"
    line: Line = {"kind": "service", "name": f"out-{proto}", "proto": proto, "fwdmode": "snat"}
    return line | {"match": {"src": [inside]}, "laddrs": [laddr(net)]}


def remotes(net: Net, n: int) -> list[str]:
    return [f"198.51.100.{i + 1}" if net.af == 4 else f"2001:db8::{i + 1:x}" for i in range(n)]


def test_snat_from_anywhere(net: Net) -> None:
    site = Site(net, snat(net, "tcp"))
    flows: list[tuple[str, int, int]] = []
    for remote, cport in product(remotes(net, 6), range(4000, 4004)):
        seen = site.lan(net.dest, remote, segment(cport, 443, flags="S")).find(Tcp)
        assert isinstance(seen, Tcp)
        flows.append((remote, cport, seen.sport))
    # What is towards one endpoint is one worker's, which has all ports: each is kept.
    assert all(lport == cport for _, cport, lport in flows)
    assert sum(site.conns()) == len(flows)
    assert 0 not in site.conns()
    for worker in range(COUNT):
        site.workers.kill(worker)
    for _ in range(COUNT):
        for remote, cport, lport in flows:
            back = site.wan(remote, laddr(net), segment(443, lport, b"answer", flags="PA"))
            assert not [m for m in (ip(daddr=net.dest), tcp(dport=cport)) if m.match(back)]
            site.lan(net.dest, remote, segment(cport, 443, b"more", flags="PA"))
    assert sum(site.conns()) == len(flows)


def test_fragments_from_anywhere(net: Net) -> None:
    """As the kernel steers them, one worker reads them all; that of the conn has to get them."""
    site = Site(net, snat(net, "udp"))
    for number, remote in enumerate(remotes(net, 6)):
        there = packet(net.dest, remote, datagram(4000, 53, bytes(2000)))
        back = packet(remote, laddr(net), datagram(53, 4000, bytes(2000)))
        for raw, port, macs, seen in (
            (there, "lan", (LAN_MAC, DEST_MAC), ip(saddr=laddr(net), daddr=remote)),
            (back, "wan", (WAN_MAC, ROUTER_MAC), ip(saddr=remote, daddr=net.dest)),
        ):
            for piece in cut(raw, 1200, ident=number):
                sent = site.workers.receive(0, port, vnet(eth(*macs, payload=piece)))
                assert len(sent) == 1, site.workers.counters()
                check(sent[0].frame, seen)
    assert sum(site.conns()) == 6
    assert 0 not in site.conns()
    assert "FORWARDED" not in site.workers.counters()


def test_fragments_for_a_cache_from_anywhere(net: Net) -> None:
    service: Line = {"kind": "service", "name": "cache", "proto": "udp", "fwdmode": "nat"}
    client = f"{net.dest2}/{32 if net.af == 4 else 128}"
    service |= {"match": {"dport": 80, "src": [client]}, "scheduler": "rr"}
    site = Site(net, service, {"kind": "dest", "service": "cache", "daddr": net.dest})
    for number, remote in enumerate(remotes(net, 6)):
        for piece in cut(packet(net.dest2, remote, datagram(4000 + number, 80, bytes(2000))), 1200):
            frame = vnet(eth(LAN_MAC, DEST2_MAC, payload=piece))
            sent = site.workers.receive(0, "lan", frame)
            assert len(sent) == 1, site.workers.counters()
            check(sent[0].frame, ip(saddr=net.dest2, daddr=net.dest))


def test_errors_from_anywhere(net: Net) -> None:
    site = Site(net, snat(net, "udp"))
    kind, code = (3, 4) if net.af == 4 else (2, 0)
    hop = "203.0.113.77" if net.af == 4 else "2001:db8:77::1"
    for remote in remotes(net, 6):
        out = site.lan(net.dest, remote, datagram(4000, 53))
        for _ in range(COUNT):
            heard = site.wan(hop, laddr(net), message(kind, code, 1280, out.data[24:]))
            assert not ip(saddr=hop, daddr=net.dest).match(heard)
            assert heard.quoted is not None
            inner = heard.quoted.find(Udp)
            assert isinstance(inner, Udp)
            assert inner.sport == 4000


def test_pings_are_worker_0s(net: Net) -> None:
    site = Site(net, snat(net, "icmp"))
    request, reply = (8, 0) if net.af == 4 else (128, 129)
    for remote in remotes(net, 5):
        for sequence in range(COUNT):
            out = site.lan(net.dest, remote, message(request, 0, 9 << 16 | sequence, b"x"))
            seen = out.find(Icmp)
            assert isinstance(seen, Icmp)
            back = site.wan(remote, laddr(net), message(reply, 0, seen.info, b"x"))
            assert not icmp(info=9 << 16 | sequence).match(back)
            assert not ip(daddr=net.dest).match(back)
            heard = site.wan(
                remote, laddr(net), message(3 if net.af == 4 else 1, 1, 0, out.data[24:])
            )
            assert not quoted(ip(saddr=net.dest, daddr=remote)).match(heard)
    assert site.conns() == [5, 0, 0]


@pytest.mark.parametrize("cached", [True, False])
def test_a_cache_from_anywhere(net: Net, cached: bool) -> None:
    """The answer is addressed to the client, who is the only one that both directions name."""
    client = f"{net.dest2}/{32 if net.af == 4 else 128}"
    service: Line = {"kind": "service", "name": "cache", "proto": "tcp", "fwdmode": "nat"}
    service |= {"match": {"dport": 80, "src": [client]}, "bypass": True, "scheduler": "rr"}
    dests = [{"kind": "dest", "service": "cache", "daddr": net.dest}] if cached else []
    site = Site(net, service, *dests)
    kind, code = (3, 4) if net.af == 4 else (2, 0)
    for cport in range(4000, 4016):
        remote = remotes(net, 4)[cport % 4]
        answerer = net.dest if cached else remote
        come = site.lan if cached else site.wan
        for _ in range(COUNT):
            up = site.lan(net.dest2, remote, segment(cport, 80, flags="S"))
            assert not ip(saddr=net.dest2, daddr=answerer).match(up)
            down = come(answerer, net.dest2, segment(80, cport, b"12345678", flags="SA"))
            assert not ip(saddr=remote, daddr=net.dest2).match(down)
            heard = site.lan(net.dest2, remote, message(kind, code, 1280, down.data[24:]))
            assert not ip(daddr=answerer).match(heard)
    assert sum(site.conns()) == 16
    assert 0 not in site.conns()
    assert "FORWARDED" not in site.workers.counters()
