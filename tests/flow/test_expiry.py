"""How conns end: RSTs to both sides, and what becomes of them when their dest goes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    WAN_MAC,
    Conn,
    Line,
    Net,
    Rig,
    dest,
    network,
    service,
    states,
    text,
    the_dest,
)
from tests.property.test_adopt import adopted, survive
from tunlb.conf import loads
from tunlb.hook import Verdict
from tunlb.testing.audit import audit
from tunlb.testing.checkers import check, ether, ip, tcp
from tunlb.testing.flow import Memory, Sent
from tunlb.testing.frames import vnet
from tunlb.testing.parser import Tcp

IDLE_S = 5
SHORT = {"tcp_established_s": IDLE_S, "tcp_close_s": 3}


def config(net: Net, *dests: Line, mode: str = "fnat", proto: str = "tcp", **keys: Any) -> str:
    both = dests or (dest(net, mode), dest(net, mode, daddr=net.dest2))
    return text(*network(net), service(net, proto, mode, timeouts=SHORT, **keys), *both)


def left(net: Net, mode: str = "fnat") -> Line:
    """The dest that stays when the first is removed."""
    return dest(net, mode, daddr=net.dest2)


class Talk:
    """A conn whose numbers both sides keep: what a RST to either has to say."""

    def __init__(self, rig: Rig, net: Net, mode: str = "fnat", **keys: Any) -> None:
        self.conn = Conn(rig, net, mode=mode, **keys)
        self.net = net
        self.client, self.server = 1000, 77000  # the next number that each side sends

    def up(self, flags: str = "A", payload: bytes = b"") -> None:
        self.conn.up(flags, payload, seq=self.client, ack=self.server)
        self.client += len(payload) + sum(flag in flags for flag in "SF")

    def down(self, flags: str = "A", payload: bytes = b"") -> None:
        self.conn.down(flags, payload, seq=self.server, ack=self.client)
        self.server += len(payload) + sum(flag in flags for flag in "SF")

    def establish(self) -> Talk:
        self.up("S")
        self.down("SA")
        self.up("A")
        return self

    def is_reset(self, sent: list[Sent], flags: str = "RA") -> None:
        """Exactly the two RSTs, which both sides believe."""
        assert [one.port for one in sent] == ["wan", "lan"]
        self.at_client(sent[0], flags, seq=self.server)
        self.at_dest(sent[1], flags, seq=self.client)

    def at_client(self, sent: Sent, flags: str, **fields: int) -> None:
        conn = self.conn
        assert sent.port == "wan"
        check(
            sent.frame,
            ether(src=WAN_MAC, dst=ROUTER_MAC),
            ip(saddr=conn.vaddr, daddr=conn.caddr, ttl=64, version=self.net.af),
            tcp(sport=conn.vport, dport=conn.cport, flags=flags, **fields),
        )

    def at_dest(self, sent: Sent, flags: str, **fields: int) -> None:
        conn = self.conn
        assert sent.port == "lan"
        check(
            sent.frame,
            ether(src=LAN_MAC, dst=DEST_MAC),
            ip(saddr=conn.laddr, daddr=conn.daddr, ttl=64, version=self.net.af),
            tcp(sport=conn.lport, dport=conn.dport, flags=flags, **fields),
        )

    def raw(self, flags: str = "A", payload: bytes = b"", reply: bool = False) -> bytes:
        """A frame as a side sends it, not to be checked on the way."""
        seq, ack = (self.server, self.client) if reply else (self.client, self.server)
        flow = self.conn.inside if reply else self.conn.outside
        return vnet(self.conn.frame(flow, flags, payload, reply, seq=seq, ack=ack))


def counter(rig: Rig, name: str) -> int:
    return rig.counters().get(name, 0)


# -- a RST at the end


@pytest.mark.parametrize("mode", ["fnat", "nat"])
def test_an_idle_conn_is_reset(net: Net, mode: str) -> None:
    rig = Rig(config(net, mode=mode, reset_on_expire=True))
    talk = Talk(rig, net, mode).establish()
    talk.up("PA", b"question")
    talk.down("PA", b"a longer answer")
    talk.up("A")
    sent = rig.advance((IDLE_S + 1) * 1000)
    talk.is_reset(sent)
    assert states(rig) == ["CLOSE"]
    assert rig.advance(10_000) == []
    assert states(rig) == []
    assert rig.counters() == talk.conn.counted(CONN_RESET=1, RESETS_SENT=2, CONN_EXPIRED=1)
    audit(rig.director)


def test_offloaded_frames_and_repetitions_count_once(net: Net) -> None:
    rig = Rig(config(net, reset_on_expire=True))
    talk = Talk(rig, net).establish()
    whole = bytes(20_000)
    offload = {"needs_csum": True, "gso_type": 1 if net.af == 4 else 4, "gso_size": 1400}
    talk.conn.up("PA", whole, seq=talk.client, ack=talk.server, offload=offload)
    talk.conn.up("PA", whole[:500], seq=talk.client, ack=talk.server)  # sent again
    talk.client += len(whole)
    talk.is_reset(rig.advance((IDLE_S + 1) * 1000))


def test_sequence_numbers_wrap(net: Net) -> None:
    rig = Rig(config(net, reset_on_expire=True))
    talk = Talk(rig, net)
    talk.client, talk.server = 2**32 - 5, 2**32 - 3
    talk.up("S")
    talk.down("SA")
    talk.conn.up("PA", b"x" * 100, seq=talk.client, ack=talk.server)
    talk.client = (talk.client + 100) % 2**32
    talk.conn.down("PA", b"y" * 50, seq=talk.server, ack=talk.client)
    talk.server = (talk.server + 50) % 2**32
    talk.conn.up("A", seq=talk.client, ack=talk.server)
    talk.is_reset(rig.advance((IDLE_S + 1) * 1000))


@pytest.mark.parametrize("ending", ["half-open", "closed", "reset"])
def test_who_is_not_established_is_not_reset(net: Net, ending: str) -> None:
    rig = Rig(config(net, reset_on_expire=True))
    talk = Talk(rig, net)
    if ending == "half-open":
        talk.up("S")
    else:
        talk.establish()
        talk.up("R" if ending == "reset" else "FA")
        if ending == "closed":
            talk.down("FA")
    assert rig.advance(200_000, step=1000) == []
    assert counter(rig, "RESETS_SENT") == 0
    assert states(rig) == []


def test_without_the_key_nobody_is_reset(net: Net) -> None:
    rig = Rig(config(net))
    Talk(rig, net).establish()
    assert rig.advance(20_000) == []
    assert rig.counters()["CONN_EXPIRED"] == 1


def test_the_key_is_live_and_old_conns_are_not_harmed(net: Net) -> None:
    """A conn from before it cannot be reset: its numbers are not known."""
    rig = Rig(config(net))
    Talk(rig, net).establish()
    rig.reload(config(net, reset_on_expire=True))
    fresh = Talk(rig, net, cport=2, daddr=net.dest2)
    fresh.establish()
    sent = rig.advance((IDLE_S + 2) * 1000)
    assert [one.port for one in sent] == ["wan", "lan"]
    fresh.at_client(sent[0], "RA", seq=fresh.server)
    rig.advance(10_000)
    rig.reload(config(net))
    later = Talk(rig, net, cport=3).establish()
    assert rig.advance((IDLE_S + 2) * 1000) == []
    assert later.conn.lport


def test_a_lost_segment_is_made_up_for(net: Net) -> None:
    """The client lacks a segment, answers our RST with an ACK, and that goes on to the dest, whose
    RST comes back.
    """
    rig = Rig(config(net, reset_on_expire=True))
    talk = Talk(rig, net).establish()
    talk.down("PA", b"lost on its way to the client")
    rig.advance((IDLE_S + 1) * 1000)
    talk.conn.up("A", seq=talk.client, ack=talk.server - 29)
    talk.conn.down("R", seq=talk.server - 29)
    rig.advance(10_000)
    assert states(rig) == []


def test_a_successor_resets_as_well(net: Net) -> None:
    lines, memory = config(net, reset_on_expire=True), Memory(64)
    rig = Rig(lines, memory=memory)
    talk = Talk(rig, net).establish()
    talk.up("PA", b"before")
    talk.conn.rig = Rig(lines, memory=memory, now=rig.now)
    talk.conn.rig.director.adopt(talk.conn.rig.now)
    talk.down("PA", b"after")
    talk.is_reset(talk.conn.rig.advance((IDLE_S + 1) * 1000))


def test_a_full_table_ends_conns_silently(net: Net) -> None:
    rig = Rig(config(net, reset_on_expire=True), conn_max=16)
    for i in range(16):
        Talk(rig, net, cport=100 + i, daddr=(net.dest, net.dest2)[i % 2]).up("S")
    Talk(rig, net, cport=1).up("S")
    assert counter(rig, "CONN_EVICTED") == 1
    assert counter(rig, "RESETS_SENT") == 0


# -- dests that go


def removed(net: Net, how: str, mode: str = "fnat", proto: str = "tcp", **keys: Any) -> str:
    """What to reload: the first dest is gone, or quiescent."""
    if how == "service":
        return text(*network(net))
    if how == "removed":
        return config(net, left(net, mode), mode=mode, proto=proto, **keys)
    return config(net, dest(net, mode, weight=0), left(net, mode), mode=mode, proto=proto, **keys)


def policy(how: str, word: str) -> dict[str, str]:
    return {"expire_quiescent" if how == "quiescent" else "expire_nodest": word}


HOW = pytest.mark.parametrize("how", ["removed", "quiescent", "service"])


@HOW
def test_reset_tells_both_at_once(net: Net, how: str) -> None:
    keys = policy(how, "reset")
    rig = Rig(config(net, **keys))
    talk = Talk(rig, net).establish()
    other = Talk(rig, net, cport=2, daddr=net.dest2).establish()
    talk.down("PA", b"in the middle of it")
    rig.reload(removed(net, how, **keys))
    sent = rig.advance(250)
    if how == "service":
        assert len(sent) == 4
    else:
        talk.is_reset(sent)
        other.up("PA", b"unharmed")
    assert the_dest(rig, net.dest).actconns == 0
    rig.advance(10_000)
    assert counter(rig, "CONN_RESET") == (2 if how == "service" else 1)
    audit(rig.director)


@HOW
def test_who_did_not_hear_is_told_again(net: Net, how: str) -> None:
    """For a while after the RSTs: they may be lost, or not believed."""
    keys = policy(how, "reset")
    rig = Rig(config(net, **keys))
    talk = Talk(rig, net).establish()
    rig.reload(removed(net, how, **keys))
    rig.advance(250)
    for _ in range(2):
        verdict, sent = rig.receive("wan", talk.raw("PA", b"hello?"))
        assert verdict == Verdict.DROP
        talk.at_client(sent[0], "R", seq=talk.server)
        assert len(sent) == 1
        verdict, sent = rig.receive("lan", talk.raw("A", reply=True))
        talk.at_dest(sent[0], "R", seq=talk.client)
    assert counter(rig, "drop.CONN_LAPSED") == 4
    assert rig.receive("wan", talk.raw("R")) == (Verdict.DROP, [])
    rig.advance(4000)
    assert states(rig) == []


@pytest.mark.parametrize("word", ["reset", "reschedule"])
def test_a_conn_of_unknown_numbers_is_reset_at_its_next_packet(net: Net, word: str) -> None:
    """Born before the key was set; with "reschedule" numbers are never remembered."""
    rig = Rig(config(net))
    talk = Talk(rig, net).establish()
    talk.up("PA", b"question")
    rig.reload(removed(net, "removed", expire_nodest=word))
    assert rig.advance(500) == []
    verdict, sent = rig.receive("wan", talk.raw("A"))
    assert verdict == Verdict.DROP
    talk.is_reset(sent, "R")
    assert states(rig) == ["CLOSE"]
    again = Talk(rig, net, daddr=net.dest2)
    again.conn.lport = 0
    again.establish()
    assert again.conn.lport
    audit(rig.director)


def test_the_dests_packet_ends_it_as_well(net: Net) -> None:
    rig = Rig(config(net, expire_quiescent="reschedule"))
    talk = Talk(rig, net).establish()
    rig.reload(removed(net, "quiescent", expire_quiescent="reschedule"))
    rig.advance(500)
    verdict, sent = rig.receive("lan", talk.raw("PA", b"data", reply=True))
    assert verdict == Verdict.DROP
    assert [one.port for one in sent] == ["lan", "wan"]
    talk.at_dest(sent[0], "R", seq=talk.client)
    talk.at_client(sent[1], "R", seq=talk.server)


@pytest.mark.parametrize("word", ["reset", "reschedule"])
@pytest.mark.parametrize("how", ["removed", "quiescent"])
def test_a_half_open_conn_goes_elsewhere(net: Net, how: str, word: str) -> None:
    """With its next SYN, nothing is answered."""
    keys = policy(how, word)
    rig = Rig(config(net, **keys))
    Talk(rig, net).up("S")
    rig.reload(removed(net, how, **keys))
    rig.advance(500)
    again = Talk(rig, net, daddr=net.dest2)
    again.up("S")
    assert rig.counters()["CONN_ENDED"] == 1
    assert counter(rig, "RESETS_SENT") == 0


@pytest.mark.parametrize("word", ["reset", "reschedule"])
@pytest.mark.parametrize("how", ["removed", "quiescent"])
@pytest.mark.parametrize("mode", ["fnat", "nat", "dr"])
def test_udp_is_flushed_at_once(net: Net, mode: str, how: str, word: str) -> None:
    keys = policy(how, word)
    rig = Rig(config(net, proto="udp", mode=mode, **keys))
    for i in range(100):
        daddr = (net.dest, net.dest2)[i % 2]
        Conn(rig, net, "udp", mode, cport=100 + i, daddr=daddr).up("", b"x")
    rig.reload(removed(net, how, mode, "udp", **keys))
    rig.advance(250)
    assert len(states(rig)) == 50
    assert rig.counters()["CONN_ENDED"] == 50
    Conn(rig, net, "udp", mode, cport=100, daddr=net.dest2).up("", b"elsewhere")
    Conn(rig, net, "udp", mode, cport=101, daddr=net.dest2).up("", b"as before")
    audit(rig.director)


def test_between_reload_and_sweep_a_datagram_goes_elsewhere(net: Net) -> None:
    keys = {"expire_nodest": "reschedule"}
    rig = Rig(config(net, proto="udp", **keys))
    Conn(rig, net, "udp").up("", b"x")
    rig.reload(removed(net, "removed", proto="udp", **keys))
    Conn(rig, net, "udp", daddr=net.dest2).up("", b"x")
    assert states(rig) == ["ONEWAY"]


@pytest.mark.parametrize("word", ["reset", "reschedule"])
def test_with_dr_the_client_alone_is_told(net: Net, word: str) -> None:
    """By its own numbers, and at its next packet: what the dest sends does not pass."""
    rig = Rig(config(net, mode="dr", expire_nodest=word))
    talk = Talk(rig, net, "dr")
    talk.up("S")
    talk.up("A")
    rig.reload(removed(net, "removed", "dr", expire_nodest=word))
    assert rig.advance(1000) == []
    verdict, sent = rig.receive("wan", talk.raw("PA", b"x"))
    assert verdict == Verdict.DROP
    (one,) = sent
    talk.at_client(one, "R", seq=talk.server)


def test_keep_is_what_it_was(net: Net) -> None:
    rig = Rig(config(net, drain_s=2))
    talk = Talk(rig, net).establish()
    rig.reload(removed(net, "removed", drain_s=2))
    rig.advance(1500)
    talk.up("PA", b"still")
    rig.advance(1000)
    assert rig.receive("wan", talk.raw("PA", b"x")) == (Verdict.DROP, [])
    assert counter(rig, "drop.DEST_GONE") == 1
    assert states(rig) == []


def test_drained_and_reset(net: Net) -> None:
    """With reset_on_expire, who comes after the drain time is told."""
    keys: Line = {"drain_s": 2, "reset_on_expire": True}
    rig = Rig(config(net, **keys))
    talk = Talk(rig, net).establish()
    rig.reload(removed(net, "removed", **keys))
    rig.advance(2500)
    verdict, sent = rig.receive("wan", talk.raw("PA", b"x"))
    assert verdict == Verdict.DROP
    talk.is_reset(sent, "R")
    assert counter(rig, "drop.DEST_GONE") == 1
    rig.advance(5000)
    assert states(rig) == []


def test_a_dest_that_comes_back_in_time_keeps_its_conns(net: Net) -> None:
    """A row that the sweep has not reached is nobody's loss."""
    rig = Rig(config(net, expire_nodest="reschedule"))
    talk = Talk(rig, net).establish()
    rig.reload(removed(net, "removed", expire_nodest="reschedule"))
    rig.advance(500)
    rig.reload(config(net, expire_nodest="reschedule"))
    rig.advance(500)
    talk.up("PA", b"still here")


def test_a_policy_that_changes_while_a_dest_drains(net: Net) -> None:
    rig = Rig(config(net, drain_s=60, expire_quiescent="keep"))
    talk = Talk(rig, net).establish()
    rig.reload(removed(net, "quiescent", drain_s=60))
    talk.up("PA", b"drains")
    rig.reload(removed(net, "quiescent", drain_s=60, expire_quiescent="reschedule"))
    rig.reload(removed(net, "quiescent", drain_s=60))
    talk.up("PA", b"drains again")
    rig.reload(removed(net, "quiescent", drain_s=60, expire_quiescent="reset"))
    verdict, sent = rig.receive("wan", talk.raw("A"))
    assert verdict == Verdict.DROP
    assert len(sent) == 2


def test_a_sweep_is_in_pieces(net: Net) -> None:
    """Of at most some RSTs, so that the outbox is never full."""
    keys = {"expire_nodest": "reset"}
    rig = Rig(config(net, dest(net), **keys), conn_max=1024)
    for i in range(900):
        Talk(rig, net, cport=1000 + i).establish()
    rig.reload(config(net, left(net), **keys))
    director = rig.director
    rig.now += 100
    director.tick(rig.now)
    assert director.busy
    pieces, most, total = 0, 0, 0
    while director.step():
        pieces += 1
        sent = rig.outbox()
        most, total = max(most, len(sent)), total + len(sent)
    total += len(rig.outbox())
    assert pieces > 20
    assert most <= 64
    assert total == 1800
    assert not director.busy
    audit(director)


def test_a_successor_goes_on_with_the_sweep(net: Net) -> None:
    """The spare was told of the reload, and touches nothing before it is told to go."""
    keys = {"expire_nodest": "reset"}
    lines, after, memory = config(net, **keys), config(net, left(net), **keys), Memory(64)
    rig = Rig(lines, memory=memory)
    talk = Talk(rig, net).establish()
    before = bytes(memory.conns)
    spare = Rig(lines, memory=memory, now=rig.now, quiet=False)
    spare.director.apply(loads(after), spare.now)
    assert bytes(memory.conns) == before
    spare.director.adopt(spare.now)
    talk.conn.rig = spare
    talk.is_reset([one for one in spare.advance(250) if is_tcp(one)])


def is_tcp(sent: Sent) -> bool:
    return check(sent.frame).find(Tcp) is not None


def test_a_worker_killed_while_it_resets(net: Net) -> None:
    keys: Line = {"reset_on_expire": True}
    lines, memory = config(net, **keys), Memory(64)
    rig = Rig(lines, memory=memory)
    talk = Talk(rig, net).establish()
    survive(lines, memory, rig, partial(talk.up, "PA", b"x"))
    survive(lines, memory, rig, lambda: rig.advance((IDLE_S + 1) * 1000))
    assert states(rig) == ["CLOSE"]
    director = adopted(lines, memory, rig.now)
    assert director.ipvs.conns.count == 1


@pytest.mark.parametrize("net", [V4], ids=["v4"])
@pytest.mark.parametrize("known", [(0, 5), (5, 0), (0, 0)])
def test_no_number_no_rst(net: Net, known: tuple[int, int]) -> None:
    """Rather none than a wrong one."""
    rig = Rig(config(net, reset_on_expire=True))
    Talk(rig, net).establish()
    words = rig.director.ipvs.conns.extra_mem
    words[1], words[2] = known
    assert rig.advance((IDLE_S + 2) * 1000) == []
    assert rig.counters()["CONN_EXPIRED"] == 1
