"""A transparent cache: what passes by goes to a cache, or on to where it was going."""

from __future__ import annotations

from typing import Any

import pytest

from tests.flow.kit import (
    DEST2_MAC,
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    WAN_MAC,
    Line,
    Net,
    Rig,
    dropped,
    network,
    one,
    states,
    text,
)
from tunlb.testing.checkers import Matcher, check, ether, icmp, ip, quoted, tcp
from tunlb.testing.flow import Memory
from tunlb.testing.frames import Transport, eth, vnet
from tunlb.testing.frames import icmp as message
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.parser import Tcp

# The clients are behind the lan port (the second host there is one), the origin far away, and the
# cache is the first host.


def cache(net: Net, mode: str = "nat", **keys: Any) -> list[Line]:
    line: Line = {"kind": "service", "name": "cache", "proto": "tcp", "fwdmode": mode}
    line |= {"match": {"dport": 80, "src": [inside(net)]}, "bypass": True, "scheduler": "rr"}
    line |= {"laddrs": [net.laddr]} if mode == "fnat" else {}
    return [line | keys, {"kind": "dest", "service": "cache", "daddr": net.dest, "max_conn": 1}]


def inside(net: Net) -> str:
    """The client alone, so that the cache's own fetches are not caught."""
    return f"{net.dest2}/32" if net.af == 4 else f"{net.dest2}/128"


def config(net: Net, *lines: Line) -> str:
    return text(*network(net), *lines)


def from_client(rig: Rig, net: Net, body: Transport) -> Any:
    raw = packet(net.dest2, net.remote, body)
    return rig.receive("lan", vnet(eth(LAN_MAC, DEST2_MAC, payload=raw)))


def from_cache(rig: Rig, body: Transport, saddr: str, daddr: str) -> Any:
    return rig.receive("lan", vnet(eth(LAN_MAC, DEST_MAC, payload=packet(saddr, daddr, body))))


def from_origin(rig: Rig, net: Net, body: Transport) -> Any:
    raw = packet(net.remote, net.dest2, body)
    return rig.receive("wan", vnet(eth(WAN_MAC, ROUTER_MAC, payload=raw)))


def on_wire(result: Any, port: str, mac: str, *matchers: Matcher) -> None:
    sent = one(result)
    assert sent.port == port
    check(sent.frame, ether(dst=mac), *matchers)


@pytest.mark.parametrize("mode", ["nat", "fnat", "dr"])
def test_to_the_cache_and_back_as_the_origin(net: Net, mode: str) -> None:
    rig = Rig(config(net, *cache(net, mode)))
    kept = net.remote if mode == "dr" else net.dest
    shown = net.laddr if mode == "fnat" else net.dest2
    sent = one(from_client(rig, net, segment(4000, 80, flags="S")))
    seen = check(sent.frame, ether(dst=DEST_MAC), ip(saddr=shown, daddr=kept, ttl=63))
    if mode == "dr":
        assert states(rig) == ["SYN_RECV"]
        return
    header = seen.find(Tcp)
    assert isinstance(header, Tcp)
    lport = header.sport
    on_wire(
        from_cache(rig, segment(80, lport, flags="SA"), net.dest, shown),
        "lan",
        DEST2_MAC,
        ip(saddr=net.remote, daddr=net.dest2, ttl=63),
        tcp(sport=80, dport=4000),
    )


def test_no_dest_may_take_it(net: Net) -> None:
    """The cache is full: the second conn goes on to the origin, and stays there."""
    rig = Rig(config(net, *cache(net)))
    on_wire(from_client(rig, net, segment(4000, 80, flags="S")), "lan", DEST_MAC)
    plain = (ip(saddr=net.dest2, daddr=net.remote, ttl=63),)
    on_wire(from_client(rig, net, segment(4001, 80, flags="S")), "wan", ROUTER_MAC, *plain)
    answer = from_origin(rig, net, segment(80, 4001, flags="SA"))
    on_wire(answer, "lan", DEST2_MAC, ip(saddr=net.remote, daddr=net.dest2, ttl=63))
    # The cache has room again, and the conn in its middle does not move.
    from_client(rig, net, segment(4000, 80, flags="A"))
    from_client(rig, net, segment(4000, 80, flags="R"))
    rig.advance(11_000)
    on_wire(from_client(rig, net, segment(4001, 80, flags="A")), "wan", ROUTER_MAC, *plain)
    on_wire(from_client(rig, net, segment(4002, 80, flags="S")), "lan", DEST_MAC)
    found = rig.counters()
    assert (found["CONN_NEW"], found["CONN_BYPASSED"], found["CONN_EXPIRED"]) == (3, 1, 1)
    assert not [name for name in found if name.startswith("drop.")]
    assert "FORWARDED" not in found


@pytest.mark.parametrize("change", [{"weight": 0}, None], ids=["quiescent", "removed"])
def test_the_cache_is_taken_away(net: Net, change: dict[str, int] | None) -> None:
    service, dest = cache(net)
    rig = Rig(config(net, service, dest))
    lines = [service] if change is None else [service, dest | change]
    rig.reload(config(net, *lines))
    on_wire(from_client(rig, net, segment(4000, 80, flags="S")), "wan", ROUTER_MAC)
    rig.reload(config(net, service, dest))
    on_wire(from_client(rig, net, segment(4001, 80, flags="S")), "lan", DEST_MAC)
    on_wire(from_client(rig, net, segment(4000, 80, flags="A")), "wan", ROUTER_MAC)


def test_one_client_port_to_two_origins(net: Net) -> None:
    """A NAT cache could not tell the two apart, so the second goes to its origin."""
    service, dest = cache(net)
    rig = Rig(config(net, service, dest | {"max_conn": 0}))
    on_wire(from_client(rig, net, segment(4000, 80, flags="S")), "lan", DEST_MAC)
    raw = packet(net.dest2, net.nowhere, segment(4000, 80, flags="S"))
    result = rig.receive("lan", vnet(eth(LAN_MAC, DEST2_MAC, payload=raw)))
    on_wire(result, "wan", ROUTER_MAC, ip(saddr=net.dest2, daddr=net.nowhere))
    found = rig.counters()
    assert (found["CONN_NEW"], found["CONN_BYPASSED"]) == (2, 1)
    rig.reload(config(net, service | {"bypass": False}, dest | {"max_conn": 0}))
    third = "203.0.113.10" if net.af == 4 else "2001:db8:9::10"
    raw = packet(net.dest2, third, segment(4000, 80, flags="S"))
    dropped(rig, "lan", vnet(eth(LAN_MAC, DEST2_MAC, payload=raw)), "CONN_EXISTS")


def test_without_bypass_the_client_is_refused(net: Net) -> None:
    service, _ = cache(net, bypass=False)
    rig = Rig(config(net, service))
    from_client(rig, net, segment(4000, 80, flags="S"))
    assert rig.counters() == {"drop.NO_DEST": 1, "ICMP_ERRORS_SENT": 1}


def test_bypass_alone(net: Net) -> None:
    """A service of nothing but the original destination: counted, and exempt from later matches."""
    first: Line = {"kind": "service", "name": "direct", "proto": "tcp", "fwdmode": "bypass"}
    first |= {"match": {"dport": 443, "iport": "lan", "dst": [everywhere(net)]}}
    outer = "10.0.0.200" if net.af == 4 else "fd00::200"
    rest: Line = {"kind": "service", "name": "rest", "proto": "tcp", "fwdmode": "snat"}
    rest |= {"match": {"iport": "lan", "dst": [everywhere(net)]}, "laddrs": [outer]}
    rig = Rig(config(net, first, rest))
    direct = from_client(rig, net, segment(4000, 443, flags="S"))
    on_wire(direct, "wan", ROUTER_MAC, ip(saddr=net.dest2))
    other = from_client(rig, net, segment(4000, 444, flags="S"))
    on_wire(other, "wan", ROUTER_MAC, ip(saddr=outer))
    back = from_origin(rig, net, segment(443, 4000, flags="SA"))
    on_wire(back, "lan", DEST2_MAC, ip(daddr=net.dest2))
    assert states(rig) == ["SYN_RECV", "SYN_RECV"]


def everywhere(net: Net) -> str:
    return "0.0.0.0/0" if net.af == 4 else "::/0"


@pytest.mark.parametrize("bypassed", [False, True])
def test_errors_reach_the_side_that_they_are_about(net: Net, bypassed: bool) -> None:
    """Too big on the way to the client: the cache hears it, or, bypassed, the origin."""
    service, dest = cache(net)
    rig = Rig(config(net, *([service] if bypassed else [service, dest])))
    from_client(rig, net, segment(4000, 80, flags="S"))
    answer = segment(80, 4000, b"12345678", flags="PA")
    if bypassed:
        sent = one(from_origin(rig, net, answer))
    else:
        sent = one(from_cache(rig, answer, net.dest, net.dest2))
    about = check(sent.frame, ip(saddr=net.remote, daddr=net.dest2)).data[24:]
    number, code = (3, 4) if net.af == 4 else (2, 0)
    raw = packet(net.dest2, net.remote, message(number, code, 1280, about))
    result = rig.receive("lan", vnet(eth(LAN_MAC, DEST2_MAC, payload=raw)))
    source = net.remote if bypassed else net.dest
    inner = quoted(ip(saddr=source, daddr=net.dest2), tcp(sport=80, dport=4000))
    if bypassed:
        on_wire(result, "wan", ROUTER_MAC, ip(daddr=net.remote), icmp(info=1280), inner)
    else:
        on_wire(result, "lan", DEST_MAC, ip(daddr=net.dest), icmp(info=1280), inner)


def test_a_successor_goes_on(net: Net) -> None:
    service, dest = cache(net)
    memory = Memory()
    rig = Rig(config(net, service, dest), memory=memory)
    for cport in (4000, 4001):
        from_client(rig, net, segment(cport, 80, flags="S"))
    heir = Rig(config(net, service, dest), memory=memory.copy(), now=rig.now)
    assert heir.director.adopt(heir.now) == (2, 0)
    on_wire(from_client(heir, net, segment(4000, 80)), "lan", DEST_MAC)
    on_wire(from_client(heir, net, segment(4001, 80)), "wan", ROUTER_MAC)
    on_wire(from_origin(heir, net, segment(80, 4001, flags="SA")), "lan", DEST2_MAC)


def test_a_row_that_bypass_cannot_have_made_is_not_adopted(net: Net) -> None:
    service, _ = cache(net)
    memory = Memory()
    rig = Rig(config(net, service), memory=memory)
    from_client(rig, net, segment(4000, 80, flags="S"))
    (row,) = rig.director.ipvs.conns.rows()
    memoryview(memory.conns)[4096:].cast("Q")[row * 16 + 7] ^= 1
    heir = Rig(config(net, service), memory=memory.copy(), now=rig.now)
    assert heir.director.adopt(heir.now) == (0, 1)
