"""Neighbours of several workers: one voice on the wire, one question an address, and everybody
knows what one has learnt.
"""

from __future__ import annotations

import ipaddress

import pytest

from tests.flow.kit import (
    DEST_MAC,
    LAN_MAC,
    ROUTER_MAC,
    V4,
    WAN_MAC,
    Conn,
    Net,
    Rig,
    balanced,
    default_route,
    dest,
    neigh,
    port,
    service,
    text,
)
from tests.flow.test_neigh import (
    OTHER_MAC,
    answer,
    came,
    gratuitous,
    is_question,
    learnt,
    question,
    state,
    unresolved,
)
from tunlb.hook import Verdict
from tunlb.neigh import NEIGH_ROWS_SIZE, REACHABLE
from tunlb.neighrows import NeighRows
from tunlb.peers import Peers
from tunlb.testing.checkers import arp, check, ether, icmp, ip
from tunlb.testing.flow import Sent
from tunlb.testing.frames import Flow, eth, mac_bytes, tcp, vnet
from tunlb.testing.frames import arp as arp_frame
from tunlb.testing.frames import ip as packet
from tunlb.wire.vnet import emit
from tunlb.wiring import pair

Said = tuple[int, Sent]  #: by which worker, and what left


class Workers:
    """Workers whose mailboxes are emptied after every burst; the clock is theirs in common."""

    def __init__(self, config: str, n: int = 3) -> None:
        self.rigs = [Rig(config) for _ in range(n)]
        for number in range(n):
            self.wire(number)

    def wire(self, number: int) -> None:
        director = self.rigs[number].director
        director.neighs.peers = Peers(number, len(self.rigs), director.counters)
        director.neighs.netifs = {(netif.queue, netif.vid): netif for netif in director.netifs}

    @property
    def now(self) -> int:
        return self.rigs[0].now

    @now.setter
    def now(self, now: int) -> None:
        for rig in self.rigs:
            rig.now = now

    def receive(self, number: int, port_name: str, frame: bytes) -> list[Said]:
        """A frame that this worker reads; everything that left, whoever sent it."""
        verdict, sent = self.rigs[number].receive(port_name, frame)
        pkt = self.rigs[number].director.packet
        if verdict == Verdict.STOLEN and pkt.owner >= 0:
            emit(pkt)
            whole = bytes(pkt.mem[pkt.start - 10 : pkt.end])
            director = self.rigs[pkt.owner].director
            key = (pkt.iif.queue, pkt.iif.vid)
            director.packet.load(whole, director.neighs.netifs[key])
            director.packet.handed = True
            director.receive(director.packet, self.now)
            assert director.packet.owner < 0, "handed over twice"
        return [(number, one) for one in sent] + self.settle()

    def settle(self) -> list[Said]:
        """Deliver messages until nobody has any."""
        said: list[Said] = []
        again = True
        while again:
            again = False
            for number, rig in enumerate(self.rigs):
                said += [(number, one) for one in rig.outbox()]
                for to, message in rig.director.neighs.peers.take():
                    self.rigs[to].director.neighs.hear(message, self.now)
                    again = True
        return said

    def advance(self, ms: int, step: int = 250) -> list[Said]:
        said = []
        for _ in range(ms // step):
            for number, rig in enumerate(self.rigs):
                said += [(number, one) for one in rig.advance(step)]
            said += self.settle()
        return said

    def states(self, address: str) -> list[str]:
        return [state(rig, address) for rig in self.rigs]

    def counted(self, name: str) -> list[int]:
        return [rig.counters().get(name, 0) for rig in self.rigs]


def syn(net: Net, cport: int = 40000) -> bytes:
    body = packet(net.remote, net.vip, tcp(cport, 80, flags="S"))
    return vnet(eth(WAN_MAC, ROUTER_MAC, payload=body))


def reachable(net: Net, proto: str = "tcp", who: tuple[int, ...] = (0, 1, 2)) -> Workers:
    """Three workers, of which ``who`` have learnt the dest by a conn of their own."""
    workers = Workers(unresolved(net, proto))
    for number in who:
        workers.receive(number, "wan", opening(workers, net, number, proto))
    workers.receive(0, "lan", answer(net, net.dest, DEST_MAC, net.lan))
    expected = ["REACHABLE" if i in who or i == 0 else "gone" for i in range(3)]
    assert workers.states(net.dest) == expected
    return workers


def opening(workers: Workers, net: Net, number: int, proto: str = "tcp") -> bytes:
    conn = Conn(workers.rigs[number], net, proto, cport=40000 + number)
    return vnet(conn.frame(conn.outside, "S", b"", False))


def dest_acks(workers: Workers, net: Net, number: int) -> list[Said]:
    """The dest acknowledges on the conn of this worker's first SYN."""
    lport = 1025
    side = f"[{net.laddr}]:{lport}" if net.af == 6 else f"{net.laddr}:{lport}"
    other = f"[{net.dest}]:8080" if net.af == 6 else f"{net.dest}:8080"
    inside = Flow(side, other, client_mac=LAN_MAC, server_mac=DEST_MAC)
    flags = "A" if workers.counted("IPVS_OUT_PACKETS")[number] else "SA"
    return workers.receive(number, "lan", vnet(inside.segment(flags, reply=True)))


# -- one question, told to all


def test_one_question_for_all_workers(net: Net) -> None:
    workers = Workers(unresolved(net), 4)
    asked = [said for i in range(4) for said in workers.receive(i, "wan", syn(net, 40000 + i))]
    ((number, frame),) = asked
    assert number == 0
    is_question(net, frame, net.dest, net.lan, LAN_MAC)
    released = workers.receive(0, "lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert sorted(number for number, _ in released) == [0, 1, 2, 3]
    for _, sent in released:
        assert sent.port == "lan"
        check(sent.frame, ether(dst=DEST_MAC, src=LAN_MAC), ip(daddr=net.dest))
    assert workers.states(net.dest) == ["REACHABLE"] * 4
    size = len(syn(net)) - 24
    mine = {"CONN_NEW": 1, "IPVS_IN_PACKETS": 1, "IPVS_IN_BYTES": size, "NEIGH_QUEUED": 1}
    assert workers.rigs[0].counters() == mine | {came(net): 1, "NEIGH_REQUESTS": 1}
    assert [rig.counters() for rig in workers.rigs[1:]] == [mine] * 3


@pytest.mark.parametrize("reader", [0, 1, 2])
def test_an_answer_that_any_worker_reads_is_worker_0s(net: Net, reader: int) -> None:
    workers = Workers(unresolved(net))
    ((number, _),) = workers.receive(1, "wan", syn(net))
    assert number == 0
    ((number, sent),) = workers.receive(reader, "lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert number == 1
    check(sent.frame, ether(dst=DEST_MAC), ip(daddr=net.dest))
    assert workers.states(net.dest) == ["REACHABLE", "REACHABLE", "gone"]
    assert workers.counted(came(net)) == [1, 0, 0]


def test_what_worker_0_knows_is_told_without_the_wire(net: Net) -> None:
    workers = reachable(net, who=(0,))
    workers.advance(20_000)
    ((number, sent),) = workers.receive(2, "wan", syn(net, 41000))
    assert number == 2
    check(sent.frame, ether(dst=DEST_MAC), ip(daddr=net.dest))
    assert workers.counted("NEIGH_REQUESTS") == [1, 0, 0]
    workers.advance(40_500)  # and no longer than worker 0 knows it itself
    assert workers.states(net.dest) == ["PROBE", "gone", "PROBE"]


def test_nobody_answers(net: Net) -> None:
    """A question a second on the wire, however many workers want to know."""
    workers = Workers(unresolved(net))
    asked = []
    for i in range(25):
        said = [one for w in (1, 2) for one in workers.receive(w, "wan", syn(net, 40000 + i))]
        asked.append(len(said))
        workers.now += 100
    assert asked == ([1] + [0] * 9) * 2 + [1] + [0] * 4
    workers.advance(3500)
    assert workers.counted("drop.NEIGH_UNREACHABLE") == [0, 25, 25]
    workers.advance(5000)
    assert workers.states(net.dest) == ["gone"] * 3


# -- one voice


@pytest.mark.parametrize("reader", [0, 1, 2])
def test_our_address_is_answered_once(net: Net, reader: int) -> None:
    workers = Workers(balanced(net))
    asked = question(net, net.vip, net.client, OTHER_MAC)
    ((number, reply),) = workers.receive(reader, "wan", asked)
    assert (number, reply.port) == (0, "wan")
    if net.af == 4:
        check(reply.frame, ether(dst=OTHER_MAC, src=WAN_MAC), arp(op=2, spa=net.vip))
    else:
        check(reply.frame, ether(dst=OTHER_MAC), icmp(type=136, target=net.vip, lladdr=WAN_MAC))
    assert workers.rigs[0].counters() == {came(net): 1, "NEIGH_REPLIES": 1}
    assert [rig.counters() for rig in workers.rigs[1:]] == [{}, {}]


@pytest.mark.parametrize("reader", [0, 2])
def test_nobody_else_may_claim_our_address(net: Net, reader: int) -> None:
    workers = Workers(balanced(net))
    assert workers.receive(reader, "wan", gratuitous(net, net.vip, OTHER_MAC)) == []
    reason = "drop.ARP_INVALID" if net.af == 4 else "drop.ND_INVALID"
    assert [rig.counters() for rig in workers.rigs] == [{reason: 1}, {}, {}]


def test_only_worker_0_announces(net: Net) -> None:
    workers = Workers(balanced(net))
    for rig in workers.rigs:
        rig.director.announce(rig.now)
    said = workers.advance(3000)
    assert [number for number, _ in said] == [0] * 12
    assert workers.counted("NEIGH_ANNOUNCEMENTS") == [12, 0, 0]


# -- what moves, and what is verified


def test_a_dest_that_moves_moves_for_all(net: Net) -> None:
    """Its gratuitous claim and its answer each come to another worker."""
    workers = reachable(net)
    workers.advance(5000)
    ((number, asked),) = workers.receive(1, "lan", gratuitous(net, net.dest, OTHER_MAC))
    assert number == 0
    is_question(net, asked, net.dest, net.lan, LAN_MAC, to=OTHER_MAC)
    assert [learnt(rig, net.dest) for rig in workers.rigs] == [mac_bytes(DEST_MAC)] * 3
    assert workers.receive(2, "lan", answer(net, net.dest, OTHER_MAC, net.lan)) == []
    assert [learnt(rig, net.dest) for rig in workers.rigs] == [mac_bytes(OTHER_MAC)] * 3
    ((_, sent),) = workers.receive(2, "wan", syn(net, 41000))
    check(sent.frame, ether(dst=OTHER_MAC))


def test_a_claim_without_an_answer_moves_nobody(net: Net) -> None:
    workers = reachable(net)
    workers.advance(5000)
    assert len(workers.receive(2, "lan", gratuitous(net, net.dest, OTHER_MAC))) == 1
    workers.advance(5000)
    assert [learnt(rig, net.dest) for rig in workers.rigs] == [mac_bytes(DEST_MAC)] * 3


def test_an_idle_neighbour_is_verified_for_who_uses_it(net: Net) -> None:
    workers = reachable(net, "udp", (0, 1))
    workers.advance(60_500)
    assert workers.states(net.dest) == ["PROBE", "PROBE", "gone"]
    sent, asked = workers.receive(1, "wan", opening(workers, net, 1, "udp"))
    assert (sent[0], asked[0]) == (1, 0)
    check(sent[1].frame, ether(dst=DEST_MAC), ip(daddr=net.dest))
    is_question(net, asked[1], net.dest, net.lan, LAN_MAC, to=DEST_MAC)
    assert workers.states(net.dest) == ["DELAY", "DELAY", "gone"]
    workers.receive(0, "lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert workers.states(net.dest) == ["REACHABLE", "REACHABLE", "gone"]


def test_a_neighbour_that_does_not_verify_is_looked_for(net: Net) -> None:
    workers = reachable(net, "udp", (1,))
    workers.advance(60_500)
    assert len(workers.receive(1, "wan", opening(workers, net, 1, "udp"))) == 2
    workers.advance(3500)
    assert workers.states(net.dest) == ["NONE", "NONE", "gone"]
    ((number, asked),) = workers.receive(1, "wan", opening(workers, net, 1, "udp"))
    assert number == 0
    is_question(net, asked, net.dest, net.lan, LAN_MAC)


# -- what traffic confirms


def test_traffic_of_another_worker_keeps_worker_0_listening(net: Net) -> None:
    """Five minutes of one worker's conn: one question in all, and a move is still noticed."""
    workers = reachable(net, who=(1,))
    for _ in range(30):
        workers.advance(10_000)
        dest_acks(workers, net, 1)
    assert workers.states(net.dest) == ["REACHABLE", "REACHABLE", "gone"]
    assert workers.counted("NEIGH_REQUESTS") == [1, 0, 0]
    ((number, asked),) = workers.receive(2, "lan", gratuitous(net, net.dest, OTHER_MAC))
    assert number == 0
    is_question(net, asked, net.dest, net.lan, LAN_MAC, to=OTHER_MAC)
    workers.receive(2, "lan", answer(net, net.dest, OTHER_MAC, net.lan))
    assert [learnt(rig, net.dest) for rig in workers.rigs[:2]] == [mac_bytes(OTHER_MAC)] * 2
    workers.advance(120_000)  # the traffic ends
    assert workers.states(net.dest) == ["gone"] * 3


def test_a_worker_that_missed_a_move_is_put_right(net: Net) -> None:
    """Its dest's ACKs go on confirming the old MAC address; worker 0 asks the one it knows."""
    workers = reachable(net, who=(0, 2))
    stale = workers.rigs[2].director.neighs
    entry = stale.entries[
        stale.resolve(workers.rigs[2].netif("lan"), *pair(ipaddress.ip_address(net.dest)), 0)
    ]
    entry.set_mac(mac_bytes(OTHER_MAC))
    workers.advance(30_000)
    dest_acks(workers, net, 0)
    dest_acks(workers, net, 2)
    questions = workers.advance(31_000)
    ((number, asked),) = questions
    assert number == 0
    is_question(net, asked, net.dest, net.lan, LAN_MAC, to=DEST_MAC)
    workers.receive(1, "lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert learnt(workers.rigs[2], net.dest) == mac_bytes(DEST_MAC)
    assert workers.states(net.dest) == ["REACHABLE", "gone", "REACHABLE"]


# -- workers that were replaced


def test_a_new_worker_0_asks_the_station_that_others_know(net: Net) -> None:
    """With an empty table: by unicast, so that nobody else may answer."""
    workers = reachable(net, "udp", (1,))
    workers.advance(60_500)
    replace(workers, 0, unresolved(net, "udp"))
    sent, asked = workers.receive(1, "wan", opening(workers, net, 1, "udp"))
    assert (sent[0], asked[0]) == (1, 0)
    is_question(net, asked[1], net.dest, net.lan, LAN_MAC, to=DEST_MAC)
    workers.receive(0, "lan", answer(net, net.dest, DEST_MAC, net.lan))
    assert workers.states(net.dest) == ["REACHABLE", "REACHABLE", "gone"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_new_worker_knows_what_the_old_one_knew(net: Net, number: int) -> None:
    workers = Workers(unresolved(net))
    memory = bytearray(NEIGH_ROWS_SIZE)
    workers.rigs[number].director.neighs.rows = NeighRows(memory)
    workers.receive(number, "wan", syn(net))
    workers.receive(0, "lan", answer(net, net.dest, DEST_MAC, net.lan))
    workers.advance(10_000)
    replace(workers, number, unresolved(net))
    neighs = workers.rigs[number].director.neighs
    neighs.rows = NeighRows(memory)
    assert neighs.adopt(workers.now) == 1
    assert state(workers.rigs[number], net.dest) == "REACHABLE"
    ((sender, sent),) = workers.receive(number, "wan", syn(net, 41000))
    assert sender == number
    check(sent.frame, ether(dst=DEST_MAC), ip(daddr=net.dest))


def replace(workers: Workers, number: int, config: str) -> None:
    workers.rigs[number] = Rig(config, now=workers.now - 3000)
    workers.wire(number)


# -- VLANs: what they are numbered is every worker's own business


def test_vlans_that_are_numbered_otherwise() -> None:
    def config(*vids: int) -> str:
        lan = port("lan", f"{V4.lan}/24")
        lan["vlans"] = [{"id": vid, "addresses": [f"10.{vid}.0.254/24"]} for vid in vids]
        return text(
            port("wan", f"{V4.wan}/24"),
            lan,
            default_route(V4),
            neigh("wan", V4.router, ROUTER_MAC),
            service(V4, laddrs=["10.20.0.200"]),
            dest(V4, daddr="10.20.0.11"),
        )

    workers = Workers(config(10, 20))
    workers.rigs[1] = Rig(config(20))
    workers.rigs[1].reload(config(10, 20))
    workers.rigs[1].advance(3000)
    workers.now = workers.rigs[1].now
    workers.wire(1)
    indices = [rig.netif("lan.20").index for rig in workers.rigs]
    assert indices[0] != indices[1]
    ((number, asked),) = workers.receive(1, "wan", syn(V4))
    assert (number, asked.port) == (0, "lan.20")
    check(asked.frame, ether(vlan=(20,)), arp(op=1, spa="10.20.0.254", tpa="10.20.0.11"))
    raw = arp_frame(2, DEST_MAC, "10.20.0.11", LAN_MAC, "10.20.0.254", dst=LAN_MAC, vlan=20)
    ((number, sent),) = workers.receive(2, "lan", vnet(raw))
    assert (number, sent.port) == (1, "lan.20")
    check(sent.frame, ether(dst=DEST_MAC, vlan=(20,)), ip(daddr="10.20.0.11"))
    entry = workers.rigs[0].director.neighs.lookup(
        workers.rigs[0].netif("lan.20"), 0, 0xFFFF_0A14_000B
    )
    assert entry is not None
    assert entry.state == REACHABLE
