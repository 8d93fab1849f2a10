"""`client_ip` "proxy-v2" over UDP: the header before the first datagram, or before every one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import Conn, Net, Rig, balanced, one
from tests.flow.talk import proxy
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, icmp, ip, quoted
from tunlb.testing.frames import GSO_UDP_L4, vnet
from tunlb.testing.parser import Frame, Vnet, parse


def rig_of(net: Net, **keys: Any) -> Rig:
    return Rig(balanced(net, "udp", client_ip="proxy-v2", **keys))


def send(rig: Rig, conn: Conn, payload: bytes, **offload: Any) -> list[Frame]:
    """Every frame that a datagram (or an offloaded frame of them) became."""
    frame = conn.outside.udp(payload)
    verdict, sent = rig.receive("wan", vnet(frame, **offload))
    assert verdict == Verdict.ACCEPT
    assert {each.port for each in sent} == {"lan"}
    return [
        check(each.frame, ip(saddr=net_of(conn).laddr, daddr=net_of(conn).dest, ttl=63))
        for each in sent
    ]


def net_of(conn: Conn) -> Net:
    return conn.net


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
def test_datagrams(net: Net, every: bool, payload: bytes) -> None:
    rig = rig_of(net, client_ip_udp="every" if every else "first")
    conn = Conn(rig, net, "udp")
    header = proxy(net, "proxy-v2", "udp")
    assert [seen.payload for seen in send(rig, conn, payload)] == [header + payload]
    expected = header + payload if every else payload
    assert [seen.payload for seen in send(rig, conn, payload)] == [expected]
    assert rig.counters()["PROXY_SENT"] == 1 + every


def test_answers_are_as_they_were(net: Net) -> None:
    rig = rig_of(net, client_ip_udp="every")
    conn = Conn(rig, net, "udp")
    [first] = send(rig, conn, b"question")
    conn.lport = parse(first.data).headers[-1].sport  # type: ignore[union-attr]
    conn.down("", b"answer")


@pytest.mark.parametrize("partial", [True, False])
def test_partial_checksums(net: Net, partial: bool) -> None:
    rig = rig_of(net)
    [seen] = send(rig, Conn(rig, net, "udp"), b"odd", needs_csum=partial)
    assert seen.payload == proxy(net, "proxy-v2", "udp") + b"odd"


def test_a_wrong_checksum_stays_wrong(net: Net) -> None:
    rig = rig_of(net)
    frame = Conn(rig, net, "udp").outside.udp(b"data", checksum=0x1234)
    found = parse(one(rig.receive("wan", vnet(frame))).frame)
    assert "wrong checksum" in found.problems[0]


def test_one_that_fills_the_mtu_is_refused(net: Net) -> None:
    """The sender learns what is left; the next one that fits is the first."""
    rig = rig_of(net)
    conn = Conn(rig, net, "udp")
    n = len(proxy(net, "proxy-v2", "udp"))
    size = 1500 - (28 if net.af == 4 else 48) - n
    verdict, sent = rig.receive("wan", vnet(conn.outside.udp(bytes(size + 1))))
    assert verdict == Verdict.DROP
    told = icmp(type=3, code=4, info=1500 - n) if net.af == 4 else icmp(type=2, info=1500 - n)
    check(sent[0].frame, ip(daddr=net.remote), told, quoted(ip(saddr=net.remote, daddr=net.vip)))
    assert [len(seen.payload) for seen in send(rig, conn, bytes(size))] == [size + n]
    counters = rig.counters()
    assert (counters["drop.PROXY_NO_ROOM"], counters["ICMP_ERRORS_SENT"]) == (1, 1)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("size", [1, 1000, 1001, 2500, 60_000])
def test_an_offloaded_frame_of_datagrams(net: Net, every: bool, size: int) -> None:
    rig = rig_of(net, client_ip_udp="every" if every else "first")
    conn = Conn(rig, net, "udp")
    header = proxy(net, "proxy-v2", "udp")
    data = bytes(i % 251 for i in range(size))
    seen = send(rig, conn, data, needs_csum=True, gso_type=GSO_UDP_L4, gso_size=1000)
    assert seen[0].payload == header + data[:1000]
    offload = seen[0].find(Vnet)
    assert isinstance(offload, Vnet)
    assert offload.gso_type == 0
    if every:
        assert [each.payload for each in seen] == [
            header + data[at : at + 1000] for at in range(0, size, 1000)
        ]
    else:
        assert b"".join(each.payload for each in seen[1:]) == data[1000:]
        assert len(seen) == 1 + (size > 1000)
        if size > 2000:
            whole = seen[1].find(Vnet)
            assert isinstance(whole, Vnet)
            assert (whole.gso_type, whole.gso_size) == (GSO_UDP_L4, 1000)
    pieces = -(-size // 1000) if every else len(seen)
    assert rig.counters()["IPVS_IN_PACKETS"] == pieces
    assert rig.counters().get("PROXY_PIECES", 0) == 1


def test_a_frame_behind_the_first_stays_whole(net: Net) -> None:
    rig = rig_of(net)
    conn = Conn(rig, net, "udp")
    send(rig, conn, b"first")
    [whole] = send(rig, conn, bytes(5000), needs_csum=True, gso_type=GSO_UDP_L4, gso_size=1000)
    assert len(whole.payload) == 5000
