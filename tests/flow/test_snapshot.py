"""Conns of every kind, moved to another machine, whose clock is another one, by a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flow import kit, synproxy_kit, test_nat64, test_snat
from tests.flow import talk as talking
from tests.flow.kit import Conn, Net, Rig
from tunlb.destids import DestKey
from tunlb.shared import Shared
from tunlb.supervisor import snapshot
from tunlb.testing.audit import audit
from tunlb.testing.checkers import check, ip, tcp
from tunlb.testing.frames import tcp as segment
from tunlb.wiring import laddrs_of

AGE_MS = 7000
OTHER_CLOCK = 3_900_000_000  #: ms, near the end of the 32 bits that a row has for it


class Machines:
    """A director, and the one that takes its place."""

    def __init__(self, path: Path, conn_max: int = 64) -> None:
        self.path = path
        self.made = [Shared.create(n, conn_max) for n in range(2)]

    def first(self, config: str) -> Rig:
        return Rig(config, memory=self.made[0])

    def second(self, config: str, rig: Rig, *, left_out: int = 0, dropped: int = 0) -> Rig:
        """With this configuration; so many conns fit nowhere, or are given up by the worker."""
        dests = tuple(numbers(rig).items())
        head = snapshot.Head(at_ms=rig.now, at=1.0, workers=1, secret=b"s" * 32, dests=dests)
        count = snapshot.write(self.path, head, self.made[:1])
        heir = Rig(config, memory=self.made[1], now=OTHER_CLOCK - 3000)
        with open(self.path, "rb") as file:
            source = snapshot.Source(file)
            now = 1.0 + AGE_MS / 1000
            found = source.head()
            laddrs = laddrs_of(heir.director.config.services)
            reader = snapshot.Reader(found, self.made[1:], numbers(heir), laddrs, heir.now, now)
            restored = reader.place(source)
        assert restored[:3] == (count - left_out, left_out, 0)
        assert heir.director.adopt(heir.now) == (count - left_out - dropped, dropped)
        return heir


def numbers(rig: Rig) -> dict[DestKey, int]:
    """What the file calls each dest; no service here has two protocols."""
    return {
        (found.service_name, "any", found.daddr_hi, found.daddr, found.dport): found.id
        for found in rig.director.ipvs.dests
        if found.service_name
    }


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path / "conns")
    yield made
    for each in made.made:
        each.close_fds()


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_both_sides_go_on(machines: Machines, net: Net, mode: str, proto: str) -> None:
    config = kit.balanced(net, proto, mode)
    conn = Conn(machines.first(config), net, proto, mode).establish()
    before = kit.states(conn.rig)
    conn.rig = machines.second(config, conn.rig)
    assert kit.states(conn.rig) == before
    conn.up("PA", b"still here")
    if mode != "dr":
        conn.down("PA", b"me too")
    assert "CONN_NEW" not in conn.rig.counters()
    audit(conn.rig.director)


def test_from_one_family_to_the_other(machines: Machines, net: Net) -> None:
    config = test_nat64.configured(net)
    conn = test_nat64.Conn(machines.first(config), net).establish()
    conn.rig = machines.second(config, conn.rig)
    conn.up("PA", b"still here")
    conn.down("PA", b"me too")


def test_by_a_shared_address(machines: Machines, net: Net) -> None:
    """Its ports are in the rows: the next conn gets another one."""
    config = test_snat.config(net)
    rig = machines.first(config)
    syn = segment(40000, 80, flags="S")
    seen = test_snat.left(net, test_snat.up(rig, net, syn)).headers[-1]
    sport: int = seen.sport  # type: ignore[union-attr]
    heir = machines.second(config, rig)
    answer = segment(80, sport, flags="SA")
    sent = kit.one(test_snat.down(heir, net, answer))
    check(sent.frame, ip(daddr=net.dest), tcp(sport=80, dport=40000))
    again = test_snat.left(net, test_snat.up(heir, net, syn, saddr=net.dest2)).headers[-1]
    assert again.sport != sport  # type: ignore[union-attr]


def test_with_numbers_that_were_moved(machines: Machines, net: Net) -> None:
    """The header of `client_ip` was sent; the dest counts it and the client does not."""
    config = kit.balanced(net, client_ip="proxy-v1")
    t = talking.Talk(machines.first(config), net).open()
    header = talking.proxy(net, "proxy-v1")
    t.up("A")
    assert t.up("PA", b"hello", seq=1).payload.endswith(b"hello")
    t.rig = machines.second(config, t.rig)
    size = len(header)
    assert talking.numbers(t.up("PA", b"again", seq=6), t) == (6 + size, 1)
    assert talking.numbers(t.down("A", ack=11 + size), t) == (1, 11)


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_whose_handshakes_were_made_apart(machines: Machines, net: Net, mode: str) -> None:
    config = synproxy_kit.proxied(net, mode)
    call = synproxy_kit.Call(machines.first(config), net, mode)
    call.open()
    call.rig = machines.second(config, call.rig)
    fields = {"seq": call.isn + 1, "ack": call.cookie + 1}
    (sent,) = call.from_client("PA", b"still here", **fields)
    found, payload = call.to_dest(sent, ttl=63)
    assert payload == b"still here"
    assert found.ack == (call.dest_isn + 1) & 0xFFFFFFFF


def test_what_the_new_configuration_does_not_have(machines: Machines, net: Net) -> None:
    """A dest is gone, and with it the address that its conns came from."""
    lines = [*kit.network(net), kit.service(net, laddrs=[net.laddr, net.laddr2])]
    both = [kit.dest(net), kit.dest(net, daddr=net.dest2)]
    rig = machines.first(kit.text(*lines, *both))
    conns = []
    for number in range(8):
        daddr = both[number % 2]["daddr"]
        laddr = (net.laddr, net.laddr2)[number % 2]
        conns.append(Conn(rig, net, cport=40000 + number, daddr=daddr, laddr=laddr).establish())
    fewer = kit.text(*kit.network(net), kit.service(net), kit.dest(net))
    heir = machines.second(fewer, rig, left_out=4)
    for conn in conns[::2]:
        conn.rig = heir
        conn.up("PA", b"still here")
        conn.down("PA", b"me too")
    audit(heir.director)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_whose_laddr_is_gone(machines: Machines, net: Net, proto: str) -> None:
    """The dest is still there, but its answers would come to nobody."""
    rig = machines.first(kit.balanced(net, proto, laddrs=[net.laddr, net.laddr2]))
    conns = [
        Conn(rig, net, proto, cport=40000 + number, laddr=laddr).establish()
        for number, laddr in enumerate((net.laddr, net.laddr2) * 2)
    ]
    heir = machines.second(kit.balanced(net, proto), rig, left_out=2)
    for conn in conns:
        conn.rig = heir
        if conn.laddr == net.laddr:
            conn.up("PA", b"still here")
            conn.down("PA", b"me too")
        else:
            conn.laddr, conn.lport = net.laddr, 0
            conn.establish()
    assert heir.counters()["CONN_NEW"] == 2
    audit(heir.director)


def test_whose_laddr_of_the_other_family_is_gone(machines: Machines, net: Net) -> None:
    rig = machines.first(test_nat64.configured(net))
    test_nat64.Conn(rig, net).establish()
    other = test_nat64.OTHER[net.af]
    config = test_nat64.configured(net).replace(other.laddr, other.laddr2)
    heir = machines.second(config, rig, left_out=1)
    assert kit.states(heir) == []


def test_whose_shared_address_is_gone(machines: Machines, net: Net) -> None:
    rig = machines.first(test_snat.config(net))
    test_snat.left(net, test_snat.up(rig, net, segment(40000, 80, flags="S")))
    config = test_snat.config(net, laddrs=[test_snat.outer(net, 201)])
    heir = machines.second(config, rig, left_out=1)
    assert kit.states(heir) == []


def test_whose_laddr_is_a_shared_address_now(machines: Machines, net: Net) -> None:
    """What answers to it is another worker's, where there are several."""
    lines = [kit.service(net, laddrs=[test_snat.outer(net)]), kit.dest(net)]
    rig = machines.first(kit.text(*kit.network(net), *lines))
    Conn(rig, net, laddr=test_snat.outer(net)).establish()
    config = kit.text(*kit.network(net), kit.service(net), kit.dest(net), test_snat.snat(net))
    machines.second(config, rig, left_out=1)
