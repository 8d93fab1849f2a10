"""SNAT against a model: what a gateway remembers, as a dict; and rewrites of pings that undo."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.kit import DEST2_MAC, DEST_MAC, LAN_MAC, ROUTER_MAC, V4, V6, WAN_MAC, Net, Rig, one
from tests.flow.test_snat import config, outer
from tunlb.testing.checkers import check
from tunlb.testing.frames import Transport, eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import udp as datagram
from tunlb.testing.parser import Frame, Icmp, Ip, Udp

#: (is it a ping, which inside host, its port or identifier, which remote, the remote's port)
FLOWS = st.tuples(
    st.booleans(),
    st.integers(0, 1),
    st.sampled_from([0, 1, 1024, 1025, 40000, 65535]),
    st.integers(1, 3),
    st.sampled_from([53, 443]),
)


def ends(frame: Frame) -> tuple[str, str, int, int]:
    """(saddr, daddr, sport, dport), of a ping with its identifier on the asking side."""
    header, inner = frame.find(Ip), frame.find(Udp) or frame.find(Icmp)
    assert isinstance(header, Ip)
    if isinstance(inner, Udp):
        return header.saddr, header.daddr, inner.sport, inner.dport
    assert isinstance(inner, Icmp)
    asks = inner.type in (8, 128)
    number = inner.info >> 16
    return header.saddr, header.daddr, number if asks else 0, 0 if asks else number


@settings(max_examples=60, deadline=None)
@given(net=st.sampled_from([V4, V6]), flows=st.lists(FLOWS, min_size=1, max_size=25))
def test_every_answer_finds_who_asked(
    net: Net, flows: list[tuple[bool, int, int, int, int]]
) -> None:
    rig = Rig(config(net))
    request, reply = (8, 0) if net.af == 4 else (128, 129)
    known: dict[tuple[bool, int, int, int, int], tuple[str, int]] = {}
    for ping, host, number, far, asked in flows:
        if not ping and number == 0:
            continue  # no port of UDP
        rport = 0 if ping else asked
        saddr, mac = (net.dest, DEST_MAC) if host == 0 else (net.dest2, DEST2_MAC)
        remote = f"198.51.100.{far}" if net.af == 4 else f"2001:db8::{far}"
        body: Transport = datagram(number, rport, b"x")
        if ping:
            body = message(request, 0, number << 16 | 7, b"x")
        raw = packet(saddr, remote, body)
        out = check(one(rig.receive("lan", vnet(eth(LAN_MAC, mac, payload=raw)))).frame)
        laddr, to, lport, dport = ends(out)
        assert (laddr, to, dport) == (outer(net), remote, rport)
        assert lport >= 1025
        # A flow keeps its lport, and no two of one remote endpoint and protocol share one.
        assert known.setdefault((ping, host, number, far, rport), (remote, lport)) == (
            remote,
            lport,
        )
        alike = [v for k, v in known.items() if (k[0], k[4]) == (ping, rport)]
        assert len(set(alike)) == len(alike)
    for (ping, host, number, _, rport), (remote, lport) in known.items():
        body = datagram(rport, lport, b"y")
        if ping:
            body = message(reply, 0, lport << 16 | 7, b"y")
        raw = packet(remote, outer(net), body)
        back = check(one(rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))).frame)
        host_address = net.dest if host == 0 else net.dest2
        assert ends(back) == (remote, host_address, rport, number)
    assert rig.director.ipvs.conns.count == len(known)
