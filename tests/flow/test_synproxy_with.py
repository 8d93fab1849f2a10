"""The SYN proxy together with what else a service may have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.flow import kit
from tests.flow.kit import Net, Rig, states, the_dest
from tests.flow.synproxy_kit import MASK, Call, proxied
from tests.flow.test_nat64 import OTHER, both
from tunlb.hook import Verdict


@pytest.mark.parametrize("waits", [True, False])
def test_nat64(net: Net, waits: bool) -> None:
    """Clients of one family, dests of the other: our own segments are of the family of whom they
    are for, and what waited is translated like all the rest.
    """
    inside = OTHER[net.af]
    line = kit.service(net, laddrs=[inside.laddr], synproxy=True)
    rig = Rig(kit.text(*both(), line, kit.dest(net, daddr=inside.dest)))
    call = Call(rig, replace(net, laddr=inside.laddr, dest=inside.dest), inside=inside.af)
    call.first()
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
    assert rig.director.statistics()["conns"] == 0
    call = Call(rig, net).open()
    assert states(rig).count("ESTABLISHED") == 1
    assert rig.director.statistics()["conns"] == 2
    [sent] = call.from_client("PA", b"hello", **call.ack_fields())
    assert call.to_dest(sent, ttl=63)[1] == b"hello"


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
