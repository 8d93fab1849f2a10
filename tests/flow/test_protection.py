"""Lists, defence drops and conn rates: who may open what, and how often."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from tests.flow.fragmenting import cut
from tests.flow.kit import (
    CLIENT_MAC,
    ROUTER_MAC,
    V6,
    WAN_MAC,
    Conn,
    Line,
    Net,
    Rig,
    balanced,
    counted,
    dest,
    dropped,
    service,
    states,
    text,
)
from tunlb.hook import Verdict
from tunlb.testing.checkers import check, icmp, ip
from tunlb.testing.frames import echo, eth, vnet
from tunlb.testing.frames import icmp as error
from tunlb.testing.frames import ip as packet
from tunlb.testing.frames import tcp as segment
from tunlb.testing.frames import udp as datagram


def acl(action: str, src: str, **keys: Any) -> Line:
    return {"kind": "acl", "action": action, "src": src, **keys}


def framed(body: bytes) -> bytes:
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))


def syn(net: Net, src: str = "", cport: int = 40000, vport: int = 80) -> bytes:
    return framed(packet(src or net.remote, net.vip, segment(cport, vport, flags="S")))


def of(net: Net, length: int) -> str:
    """The prefix of the remote client."""
    return str(ip_network(f"{net.remote}/{length}", strict=False))


def rig_with(net: Net, *lines: Line, **keys: Any) -> Rig:
    return Rig(balanced(net, **keys) + "\n" + text(*lines))


def everything(net: Net) -> str:
    return "0.0.0.0/0" if net.af == 4 else "::/0"


# ---- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("service_name", [None, "web"])
def test_deny(net: Net, service_name: str | None) -> None:
    for length in (0, 1, 8, 24, 31, 32) if net.af == 4 else (0, 1, 32, 63, 64, 65, 127, 128):
        rig = rig_with(net, acl("deny", of(net, length), service=service_name))
        dropped(rig, "wan", syn(net), "ACL_DENIED")
        if length > 8:
            conn = Conn(rig, net, caddr=net.client, client_mac=CLIENT_MAC).establish()
            assert rig.counters() == conn.counted(drop_ACL_DENIED=1)


def test_allow(net: Net) -> None:
    rig = rig_with(net, acl("allow", of(net, 24), service="web"))
    conn = Conn(rig, net).establish()
    dropped(rig, "wan", syn(net, net.client), "ACL_NOT_ALLOWED")
    assert rig.counters() == conn.counted(drop_ACL_NOT_ALLOWED=1)


def test_an_exception_from_everything_is_not_to_be_had_by_both_lists(net: Net) -> None:
    """Who denies everything denies whom he allows; with `allow` alone the others are refused."""
    both = [acl("deny", everything(net)), acl("allow", net.remote)]
    dropped(rig_with(net, *both), "wan", syn(net), "ACL_DENIED")
    alone = rig_with(net, acl("allow", net.remote), acl("allow", of(net, 24)))
    assert alone.receive("wan", syn(net))[0] == Verdict.ACCEPT
    dropped(alone, "wan", syn(net, net.client), "ACL_NOT_ALLOWED")
    assert rig_with(net, acl("allow", everything(net))).receive("wan", syn(net))[0] == (
        Verdict.ACCEPT
    )


def test_deny_goes_before_allow(net: Net) -> None:
    """However long the prefixes are."""
    rig = rig_with(net, acl("deny", of(net, 16)), acl("allow", net.remote, service="web"))
    dropped(rig, "wan", syn(net), "ACL_DENIED")


@pytest.mark.parametrize("first", ["every", "own"])
def test_lines_for_all_and_for_one_count_together(net: Net, first: str) -> None:
    whom = (net.remote, net.client) if first == "every" else (net.client, net.remote)
    rig = rig_with(net, acl("allow", whom[0]), acl("allow", whom[1], service="web"))
    assert rig.receive("wan", syn(net))[0] == Verdict.ACCEPT
    assert rig.receive("wan", syn(net, net.client))[0] == Verdict.ACCEPT
    dropped(rig, "wan", syn(net, net.router), "ACL_NOT_ALLOWED")


def test_each_service_has_its_own(net: Net) -> None:
    other = [service(net, name="other", vport=81), dest(net, service="other", dport=81)]
    rig = rig_with(net, *other, acl("deny", net.remote, service="other"))
    conn = Conn(rig, net).establish()
    dropped(rig, "wan", syn(net, vport=81), "ACL_DENIED")
    assert rig.counters() == conn.counted(drop_ACL_DENIED=1)


def test_the_other_family_is_another_list(net: Net) -> None:
    rig = rig_with(net, acl("allow", "fd00::/8" if net.af == 4 else "10.0.0.0/8"))
    rig2 = rig_with(net, acl("deny", "::/0" if net.af == 4 else "0.0.0.0/0"))
    for one in (rig, rig2):
        assert one.counters() == {}
        assert one.receive("wan", syn(net))[0] == Verdict.ACCEPT


def test_a_conn_is_cut_and_lives_again(net: Net) -> None:
    """The list is asked before the table; what the dest says passes still (DPVS)."""
    rig = rig_with(net)
    conn = Conn(rig, net).establish()
    rig.reload(balanced(net) + "\n" + text(acl("deny", net.remote)))
    dropped(rig, "wan", vnet(conn.outside.segment("A", b"data")), "ACL_DENIED")
    conn.down("A", b"answer")
    rig.reload(balanced(net))
    conn.up("A", b"data")
    assert states(rig) == ["ESTABLISHED"]
    assert rig.counters() == conn.counted(drop_ACL_DENIED=1)


def test_no_list_no_hook(net: Net) -> None:
    rig = rig_with(net)
    chain = rig.director.ip.pre_routing
    assert [type(hook).__name__ for hook in chain.hooks] == ["Defence", "IpvsIn"]
    rig.reload(balanced(net) + "\n" + text(acl("deny", net.client)))
    assert [type(hook).__name__ for hook in chain.hooks] == ["Defence", "AclFilter", "IpvsIn"]
    rig.reload(balanced(net))
    assert len(chain.hooks) == 2


def test_what_is_of_no_service_is_not_asked_about(net: Net) -> None:
    rig = rig_with(net, acl("deny", everything(net)))
    verdict, sent = rig.receive(
        "wan", framed(packet(net.remote, net.vip, echo(1, 1, v6=net.af == 6)))
    )
    assert verdict == Verdict.ACCEPT
    check(sent[0].frame, ip(saddr=net.vip, daddr=net.remote))
    verdict, _ = rig.receive("wan", framed(packet(net.remote, net.dest, datagram(1, 2))))
    assert verdict == Verdict.ACCEPT


def test_an_icmp_error_of_a_denied_router(net: Net) -> None:
    """It is about an honest client's conn: its path MTU depends on it."""
    rig = rig_with(net, acl("deny", net.router))
    conn = Conn(rig, net).establish()
    quoted = packet(net.vip, net.remote, segment(80, 40000, b"data"))
    kind, code = (3, 4) if net.af == 4 else (2, 0)
    verdict, sent = rig.receive(
        "wan", framed(packet(net.router, net.vip, error(kind, code, 1400, quoted)))
    )
    assert verdict == Verdict.ACCEPT
    check(sent[0].frame, icmp(type=kind, code=code))
    assert rig.counters() == conn.counted(ICMP_RELATED=1)


def test_fragments_of_a_denied_source(net: Net) -> None:
    config = balanced(net, "udp", "nat")
    rig = Rig(config)
    whole = packet(net.remote, net.vip, datagram(40000, 80, bytes(4000)))
    parts = [framed(part) for part in cut(whole)]
    rig.receive("wan", parts[0])
    rig.reload(config + "\n" + text(acl("deny", net.remote)))
    dropped(rig, "wan", parts[1], "ACL_DENIED")
    before = rig.counters()
    assert rig.receive("wan", framed(cut(whole, ident=9)[0])) == (Verdict.DROP, [])
    after = rig.counters()
    assert after["drop.ACL_DENIED"] == before["drop.ACL_DENIED"] + 1


def test_ten_thousand_prefixes(net: Net) -> None:
    def nth(n: int) -> str:
        if net.af == 4:
            return f"{20 + n // 4096}.{n // 16 % 256}.{n % 16 * 16}.0/{20 + n % 5}"
        return f"2001:db8:{n + 1:x}::/{48 + n % 16}"

    prefixes = [str(ip_network(nth(n), strict=False)) for n in range(10_000)]
    assert len(set(prefixes)) == 10_000
    rig = rig_with(net, *(acl("deny", src, service="web") for src in prefixes))
    conn = Conn(rig, net).establish()
    inside = prefixes[4321].partition("/")[0]
    dropped(rig, "wan", syn(net, inside), "ACL_DENIED")
    assert rig.counters() == conn.counted(drop_ACL_DENIED=1)


# ---- defence ------------------------------------------------------------------------------------


def test_tcp_to_an_unknown_port(net: Net) -> None:
    rig = Rig(balanced(net))
    verdict, sent = rig.receive("wan", syn(net, vport=81))
    assert (verdict, len(sent)) == (Verdict.DROP, 1)
    config = text({"kind": "tunlb", "defence_tcp": True}) + "\n" + balanced(net)
    rig.reload(config)
    dropped(rig, "wan", syn(net, vport=81), "TCP_UNKNOWN_PORT")
    dropped(rig, "wan", framed(packet(net.remote, net.vip, segment(1, 81))), "TCP_UNKNOWN_PORT")
    # An address of the port is no VIP.
    verdict, sent = rig.receive("wan", framed(packet(net.remote, net.wan, segment(1, 81))))
    assert (verdict, len(sent)) == (Verdict.DROP, 1)
    rig.reload(balanced(net))
    assert len(rig.receive("wan", syn(net, vport=81))[1]) == 1


def test_udp_to_a_vip_of_tcp(net: Net) -> None:
    frame = framed(packet(net.remote, net.vip, datagram(40000, 80)))
    config = text({"kind": "tunlb", "defence_udp": False}) + "\n" + balanced(net)
    rig = Rig(config)
    verdict, sent = rig.receive("wan", frame)
    assert (verdict, len(sent)) == (Verdict.DROP, 1)
    assert rig.counters()["drop.PORT_UNREACHABLE"] == 1
    rig.reload(balanced(net))
    dropped(rig, "wan", frame, "UDP_TO_TCP_VIP")


# ---- conn rates ---------------------------------------------------------------------------------


def opened(rig: Rig, net: Net, count: int, src: str = "", first: int = 1000) -> int:
    """How many of so many conns are let in."""
    return sum(
        rig.receive("wan", syn(net, src, first + n))[0] == Verdict.ACCEPT for n in range(count)
    )


def test_a_burst_then_the_rate(net: Net) -> None:
    rig = rig_with(net, conn_rate=10, conn_burst=20)
    assert opened(rig, net, 50) == 20
    assert rig.counters()["drop.CONN_RATE"] == 30
    rig.advance(1000)
    assert opened(rig, net, 50, first=2000) == 10
    rig.advance(100, 100)
    assert opened(rig, net, 50, first=3000) == 1
    rig.advance(60_000)
    assert opened(rig, net, 50, first=4000) == 20


def test_without_a_burst_it_is_the_rate(net: Net) -> None:
    rig = rig_with(net, conn_rate=7)
    assert opened(rig, net, 50) == 7


def test_a_conn_that_is_there_is_not_counted(net: Net) -> None:
    rig = rig_with(net, conn_rate=1)
    conn = Conn(rig, net).establish()
    for _ in range(10):
        conn.up("A", b"more")
    assert rig.counters() == conn.counted()


def test_sources_have_buckets_of_their_own(net: Net) -> None:
    rig = rig_with(net, conn_rate=5)
    assert opened(rig, net, 10) == 5
    assert opened(rig, net, 10, net.client) == 5


def test_a_v6_source_is_its_64() -> None:
    rig = rig_with(V6, conn_rate=5)
    assert opened(rig, V6, 4, "2001:db8::7") == 4
    assert opened(rig, V6, 4, "2001:db8::8:7") == 1
    assert opened(rig, V6, 4, "2001:db8:0:1::7") == 4


def test_services_have_buckets_of_their_own(net: Net) -> None:
    other = [
        service(net, name="other", vport="81-90", conn_rate=3),
        dest(net, service="other", dport=81),
    ]
    rig = rig_with(net, *other, conn_rate=5)
    assert opened(rig, net, 10) == 5
    ways = [rig.receive("wan", syn(net, vport=81 + n))[0] for n in range(9)]
    assert ways.count(Verdict.ACCEPT) == 3, "one bucket for all ports of a range"


def test_a_rate_is_live(net: Net) -> None:
    rig = rig_with(net, conn_rate=5)
    assert opened(rig, net, 10) == 5
    rig.reload(balanced(net))
    assert opened(rig, net, 10, first=2000) == 10
    rig.reload(balanced(net, conn_rate=2))
    assert opened(rig, net, 10, net.client, first=3000) == 2


def test_everything_at_once(net: Net) -> None:
    lines = [acl("deny", net.client), {"kind": "tunlb", "defence_tcp": True}]
    rig = rig_with(net, *lines, conn_rate=100)
    one = Conn(rig, net).establish()
    dropped(rig, "wan", syn(net, net.client), "ACL_DENIED")
    dropped(rig, "wan", syn(net, vport=9), "TCP_UNKNOWN_PORT")
    assert rig.counters() == counted(one, drop_ACL_DENIED=1, drop_TCP_UNKNOWN_PORT=1)
