"""ICMP errors about packets that we made longer, or count otherwise: what they quote and say is
true for who wrote them.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import DEST_MAC, LAN_MAC, ROUTER_MAC, WAN_MAC, Conn, Net, Rig, balanced, one
from tests.flow.talk import Talk, proxy, talk, toa
from tunlb.testing.checkers import Matcher, check, icmp, ip, quoted
from tunlb.testing.checkers import tcp as tcp_header
from tunlb.testing.frames import eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.parser import Frame

TOO_BIG: dict[int, tuple[int, int]] = {4: (3, 4), 6: (2, 0)}


def complaint(
    t: Any, net: Net, about: Frame, mtu: int, side: str = "lan", length: int = 999
) -> bytes:
    """Frag needed or packet too big about a frame that left, from a router on its way."""
    kind, code = TOO_BIG[net.af]
    router = "192.0.2.77" if net.af == 4 else "2001:db8:77::1"
    macs = (LAN_MAC, DEST_MAC) if side == "lan" else (WAN_MAC, ROUTER_MAC)
    target = t.laddr if side == "lan" else net.vip
    body = message(kind, code, mtu, about.data[24:][:length])
    raw = vnet(eth(*macs, payload=packet(router, target, body)))
    return one(t.rig.receive(side, raw)).frame


def told(net: Net, mtu: int, *matchers: Matcher) -> tuple[Matcher, ...]:
    kind, code = TOO_BIG[net.af]
    return (
        icmp(type=kind, code=code, info=mtu),
        quoted(ip(saddr=net.remote, daddr=net.vip), *matchers),
    )


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("how", ["proxy-v1", "proxy-v2"])
def test_the_client_knows_the_number_that_is_quoted(net: Net, how: str, whole: bool) -> None:
    t = talk(net, how).open()
    t.up("A")
    t.down("A", ack=1 + len(proxy(net, how)))
    data = t.up("PA", bytes(500), seq=1)
    # RFC 792 promises 8 bytes behind the IP header, the number among them.
    length = 999 if whole else (20 if net.af == 4 else 40) + 8
    frame = complaint(t, net, data, 1400, length=length)
    if whole:
        check(frame, *told(net, 1400, tcp_header(seq=t.c + 1)))
    else:
        found = check(frame, *told(net, 1400))
        assert (t.c + 1).to_bytes(4, "big") in found.data[-8:]


def test_the_mtu_for_who_does_not_know_of_the_option(net: Net) -> None:
    t = talk(net, "toa").open()
    data = t.up("PA", bytes(500))
    check(complaint(t, net, data, 1400), *told(net, 1400 - len(toa(net))))
    t.down("A", ack=501)
    more = t.up("PA", bytes(500), seq=501)
    check(complaint(t, net, more, 1400), *told(net, 1400))


@pytest.mark.parametrize("every", [True, False])
def test_the_mtu_for_who_does_not_know_of_the_header(net: Net, every: bool) -> None:
    keys = {"client_ip": "proxy-v2", "client_ip_udp": "every" if every else "first"}
    rig = Rig(balanced(net, "udp", **keys))
    conn = Conn(rig, net, "udp")
    frame = vnet(conn.outside.udp(bytes(500)))
    seen = check(one(rig.receive("wan", frame)).frame)
    left = len(proxy(net, "proxy-v2", "udp")) if every else 0
    check(complaint(conn, net, seen, 1400), *told(net, 1400 - left))


def test_what_a_client_complains_about_is_as_the_dest_wrote_it(net: Net) -> None:
    t: Talk = talk(net, "proxy-v2").open()
    t.up("A")
    heard = t.down("PA", bytes(500), ack=29)
    frame = complaint(t, net, heard, 1400, side="wan")
    check(frame, quoted(ip(saddr=net.dest, daddr=net.laddr), tcp_header(seq=t.s + 1)))
