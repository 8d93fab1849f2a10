"""The SYN proxy together with what else a service may have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.flow import kit
from tests.flow.fragmenting import cut, framed
from tests.flow.kit import Net, Rig, states, the_dest
from tests.flow.synproxy_kit import MASK, Call, Options, proxied, read_options, stamps_option
from tests.flow.test_nat64 import OTHER, both
from tunlb.hook import Verdict
from tunlb.testing import frames


@pytest.mark.parametrize("waits", [True, False])
def test_nat64(net: Net, waits: bool) -> None:
    """Clients of one family, dests of the other: our own segments are of the family of whom they
    are for, and what waited is translated like all the rest.
    """
    inside = OTHER[net.af]
    line = kit.service(net, laddrs=[inside.laddr], synproxy=True)
    rig = Rig(kit.text(*both(), line, kit.dest(net, daddr=inside.dest)))
    call = Call(rig, replace(net, laddr=inside.laddr, dest=inside.dest), inside=inside.af)
    # What the client fills has to fit with the longer header, too.
    assert call.first().mss == 1440
    call.second(b"hello" if waits else b"")
    sent = [call.to_dest(each, ttl=63) for each in call.answer()]
    assert [payload for _, payload in sent] == [b"", b"hello"][: len(sent)]
    assert len(sent) == 1 + waits
    assert {header.ack for header, _ in sent} == {call.dest_isn + 1}
    [back] = call.from_dest("PA", b"welcome", seq=call.dest_isn + 1, ack=call.isn + 1)
    header, payload = call.to_client(back, ttl=63)
    assert (header.seq, payload) == ((call.cookie + 1) & MASK, b"welcome")


def test_a_rst_at_the_end(net: Net) -> None:
    """Both sides believe it, also where the dest has never said a word."""
    call = Call(Rig(proxied(net, reset_on_expire=True)), net)
    call.open()
    call.rig.advance(899_000, step=1000)
    sent = {each.port: each for each in call.rig.advance(2000)}
    header, _ = call.to_client(sent["wan"])
    assert (header.flags, header.seq) == ("RA", (call.cookie + 1) & MASK)
    header, _ = call.to_dest(sent["lan"])
    assert (header.flags, header.seq) == ("RA", (call.isn + 1) & MASK)


def test_persistence(net: Net) -> None:
    """A flood leaves no template either; a client that is there has one."""
    rig = Rig(proxied(net, persistence_s=300))
    for cport in range(41000, 41010):
        Call(rig, net, cport=cport).first()
    assert rig.director.ipvs.conns.count == 0
    call = Call(rig, net).open()
    assert states(rig).count("ESTABLISHED") == 1
    assert rig.director.ipvs.conns.count == 2
    [sent] = call.from_client("PA", b"hello", **call.ack_fields())
    assert call.to_dest(sent, ttl=63)[1] == b"hello"


@pytest.mark.parametrize("trusted", [False, True])
def test_a_trusted_balancers_header(net: Net, trusted: bool) -> None:
    """Its clients' headers are the only ones; others get ours before whatever they say."""
    trust = [net.remote if trusted else net.router]
    call = Call(Rig(proxied(net, client_ip="proxy-v2", client_ip_trust=trust)), net)
    call.first()
    call.second(b"PROXY TCP4 ")
    sent = [call.to_dest(each, ttl=63)[1] for each in call.answer()]
    assert sent[1:] == [b"PROXY TCP4 "]
    assert sent[0][:12] == (b"" if trusted else b"\r\n\r\n\0\r\nQUIT\n")


def test_what_asks_for_a_lost_header_is_answered_in_the_dests_time(net: Net) -> None:
    """Its timestamps are not those that the client was told."""
    call = Call(Rig(proxied(net, client_ip="proxy-v2")), net)
    call.first()
    call.second(b"hello")
    call.answer()
    options = b"\1\1" + stamps_option((900_050, 7005))
    sent = call.from_dest("A", seq=call.dest_isn + 1, ack=call.isn + 1, options=options)
    [alone] = [call.to_dest(each) for each in sent if each.port == "lan"]
    assert alone[1].startswith(b"\r\n\r\n")
    assert (alone[0].seq, alone[0].ack) == ((call.isn + 1) & MASK, call.dest_isn + 1)
    assert read_options(alone[0].options).stamps == (7005, 900_050)


def test_a_cookie_in_a_fragment(net: Net) -> None:
    """Half a segment is not held: the client sends it again, whole or in parts."""
    call = Call(Rig(proxied(net)), net)
    call.first()
    transport = frames.tcp(call.cport, 80, bytes(64), flags="PA", **call.ack_fields())
    whole = frames.ip(net.remote, net.vip, transport, **({"df": False} if net.af == 4 else {}))
    sent = []
    for part in cut(whole, 64):
        _, more = call.rig.receive("wan", framed(part, kit.WAN_MAC, kit.ROUTER_MAC))
        sent += more
    assert call.to_dest(sent[0])[0].flags == "S"
    assert call.rig.director.ipvs.birth.synproxy.held.count == 0
    assert call.rig.counters()["drop.FRAGMENT"] >= 1
    assert call.third().flags == "A"


@pytest.mark.parametrize("how", ["none", "proxy-v2"])
def test_a_new_connection_on_the_same_ports(net: Net, how: str) -> None:
    """A SYN on what we take for half-closed goes to the dest. If that has forgotten the old one,
    both make their own handshake, and there is nothing to adjust any more.
    """
    told = Options(wscale=9, sack=True, stamps=(900_000, 0))
    call = Call(Rig(proxied(net, client_ip=how)), net, accepts=told)
    call.first()
    call.second()
    call.answer()
    step = 0 if how == "none" else 28 if net.af == 4 else 52
    call.from_dest("FA", seq=call.dest_isn + 1, ack=call.isn + 1 + step)
    assert states(call.rig) == ["FIN_WAIT"]
    call.isn = 777_000
    [sent] = call.from_client("S", seq=call.isn, options=call.offer.packed())
    header, _ = call.to_dest(sent, ttl=63)
    assert (header.flags, header.seq) == ("S", call.isn)
    # A challenge is still about the old one.
    [sent] = call.from_dest("A", seq=call.dest_isn + 2, ack=0x42)
    assert call.to_client(sent, ttl=63)[0].seq == (call.cookie + 2) & MASK
    accepted = Options(1460, 9, True, (5_000_000, 7000))
    call.dest_isn = 0x99
    [sent] = call.from_dest(
        "SA", seq=call.dest_isn, ack=call.isn + 1, window=60000, options=accepted.packed()
    )
    header, _ = call.to_client(sent, ttl=63)
    assert (header.seq, header.ack, header.window) == (0x99, call.isn + 1, 60000 - step)
    assert read_options(header.options) == accepted
    fields = {"seq": call.isn + 1, "ack": 0x9A, "window": 300}
    options = b"\1\1" + stamps_option((7010, 5_000_000))
    [sent] = call.from_client("PA", b"hello", **fields, options=options)
    header, payload = call.to_dest(sent, ttl=63)
    assert (header.seq, header.ack, header.window) == (call.isn + 1, 0x9A, 300)
    assert (payload[step:], header.options) == (b"hello", options)
    options = b"\1\1" + stamps_option((5_000_010, 7010))
    [sent] = call.from_dest("A", seq=0x9A, ack=call.isn + 6 + step, window=600, options=options)
    header, _ = call.to_client(sent, ttl=63)
    assert (header.seq, header.ack, header.window) == (0x9A, call.isn + 6, 600)
    assert header.options == options


def test_a_repeated_syn_of_the_proxied_handshake_changes_nothing(net: Net) -> None:
    call = Call(Rig(proxied(net)), net, accepts=Options(wscale=9)).open()
    call.from_client("S", seq=call.isn, options=call.offer.packed())
    options = Options(wscale=9).packed()
    call.from_dest("SA", seq=call.dest_isn, ack=call.isn + 1, options=options)
    [sent] = call.from_dest("A", seq=call.dest_isn + 1, ack=call.isn + 1, window=500)
    header, _ = call.to_client(sent, ttl=63)
    assert (header.seq, header.window) == ((call.cookie + 1) & MASK, 2000)


@pytest.mark.parametrize(
    ("keys", "told", "asked"),
    [
        ({"mss_clamp": 1200}, 1200, 1200),
        ({"mss_clamp": 1200, "synproxy_mss": 1300}, 1200, 1200),
        ({"mss_clamp": 1200, "synproxy_mss": 1000}, 1000, 1200),
        ({"mss_clamp": 1200, "client_ip": "toa"}, 1200, 1200),
        ({"mss_clamp": 9000}, 0, 1440),
        ({"mss_clamp": True}, 0, 1440),
    ],
)
def test_the_mss_of_both_handshakes(net: Net, keys: dict[str, Any], told: int, asked: int) -> None:
    less = 0 if "client_ip" not in keys else 8 if net.af == 4 else 20
    call = Call(Rig(proxied(net, **keys)), net, offer=Options(1440))
    call.first()
    assert call.synack.mss == (told or (1460 if net.af == 4 else 1440)) - less
    assert read_options(call.second().options).mss == asked


def test_the_path_to_the_dest_is_the_narrower(net: Net) -> None:
    lines = kit.network(net)
    lines[1]["mtu"] = 1400
    line = kit.service(net, synproxy=True, mss_clamp=True)
    call = Call(Rig(kit.text(*lines, line, kit.dest(net))), net, offer=Options(1440))
    call.first()
    lowered = 1360 if net.af == 4 else 1340
    assert read_options(call.second().options).mss == lowered


def test_limits_are_for_clients_that_are_there(net: Net) -> None:
    """A flood takes nothing of a service's conns a second or at a time."""
    rig = Rig(proxied(net, max_conn=1))
    for cport in range(41000, 41010):
        Call(rig, net, cport=cport).first()
    Call(rig, net).open()
    late = Call(rig, net, cport=40001)
    late.first()
    [sent] = late.from_client("A", **late.ack_fields())
    assert late.verdict == Verdict.DROP
    assert late.to_client(sent)[0].flags == "RA"


@pytest.mark.parametrize("policy", ["reset", "reschedule"])
def test_a_dest_goes_while_it_is_asked(net: Net, policy: str) -> None:
    rig = Rig(proxied(net, expire_quiescent=policy))
    call = Call(rig, net)
    call.first()
    call.second()
    line = kit.service(net, synproxy=True, expire_quiescent=policy)
    rig.reload(kit.text(*kit.network(net), line, kit.dest(net, weight=0)))
    assert the_dest(rig).weight == 0
    sent = call.from_client("PA", b"hello", **call.ack_fields()) + rig.advance(2000)
    seen = [call.to_client(each)[0] for each in sent if each.port == "wan"]
    assert [header.flags[0] for header in seen] == ["R"]
    assert {header.seq for header in seen} == {(call.cookie + 1) & MASK}
    assert "ESTABLISHED" not in states(rig)
