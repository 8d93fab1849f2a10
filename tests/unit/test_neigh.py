"""The NUD table cell by cell, the timers of its states, and who may teach a MAC address."""

from __future__ import annotations

import pytest

from tests.unit.neigh_room import FORGED, MAC, MAPPED, OTHER, PORT, TUN, V4, V6, Room
from tunlb import neigh as n
from tunlb.counters import DropReason, Event
from tunlb.neigh import (
    DELAY,
    NEIGH_MAX,
    NOARP,
    NONE,
    PROBE,
    QUEUE_MAX,
    REACHABLE,
    SEND,
)
from tunlb.netif import ADDRESS
from tunlb.testing import checkers as k
from tunlb.testing import frames as f


@pytest.fixture
def room() -> Room:
    return Room()


# Rows: events; columns: NONE SEND REACHABLE PROBE DELAY (DPVS: src/neigh.c, nud_states).
TABLE = {
    n.SEND_ARP: (SEND, SEND, REACHABLE, DELAY, DELAY),
    n.RECV_ARP: (REACHABLE,) * 5,
    n.ACK_CONFIRM: (NONE, SEND, REACHABLE, REACHABLE, REACHABLE),
    n.MBUF_REF: (NONE, SEND, REACHABLE, PROBE, DELAY),
    n.TIMEOUT: (NONE, NONE, PROBE, NONE, NONE),
}
EVENTS = {
    n.SEND_ARP: "send",
    n.RECV_ARP: "recv",
    n.ACK_CONFIRM: "ack",
    n.MBUF_REF: "ref",
    n.TIMEOUT: "timeout",
}


def cells(*left_out: tuple[int, int]) -> pytest.MarkDecorator:
    found = [(event, state) for event in TABLE for state in range(5)]
    found = [cell for cell in found if cell not in left_out]
    ids = [f"{EVENTS[event]}-{n.STATE_NAMES[state]}" for event, state in found]
    return pytest.mark.parametrize(("event", "state"), found, ids=ids)


@cells()
def test_the_table_is_the_fields(event: int, state: int) -> None:
    assert n.NUD[event][state] == TABLE[event][state]


# A confirmed neighbour is not asked, and an unknown one is forgotten whatever an ACK says of it.
@cells((n.SEND_ARP, REACHABLE), (n.ACK_CONFIRM, NONE), (n.ACK_CONFIRM, SEND))
def test_what_happens_is_what_the_table_says(room: Room, event: int, state: int) -> None:
    """Each event brought about as the packet path does it."""
    entry = room.known(state)
    expected = TABLE[event][state]
    if event == n.SEND_ARP:
        room.output(entry)
        assert bool(room.sent()) == (state != DELAY)
    elif event == n.RECV_ARP:
        entry.requested, entry.asking = room.now, True
        assert room.reply() == 2
    elif event == n.ACK_CONFIRM:
        # an ACK leaves its mark, which the timer finds when the state's time is over
        room.wait(n.STATE_TIMEOUT_MS[state] - 250)
        entry.confirmed = room.now
        room.wait(500)
    elif event == n.MBUF_REF:
        entry.requested = room.now  # asked just now, so that the packet does not ask again
        room.output(entry)
    else:
        room.wait(n.STATE_TIMEOUT_MS[state] + 250)
        if state == NONE:
            assert room.table.lookup(PORT, *V4) is None
            return
    assert entry.state == expected


def test_an_unknown_neighbour_is_asked_for_and_its_packets_wait(room: Room) -> None:
    entry = room.entry()
    verdict, _ = room.output(entry)
    assert verdict == 2
    assert entry.state == SEND
    (request,) = room.sent()
    k.check(
        request, k.ether(dst="ff:ff:ff:ff:ff:ff"), k.arp(op=1, spa="10.0.0.254", tpa="10.0.0.11")
    )
    assert room.reply() == 2
    (released,) = room.sent()
    k.check(
        released, k.ether(dst="02:00:00:00:00:11", src="02:00:00:00:00:01"), k.ip(daddr="10.0.0.11")
    )
    verdict, pkt = room.output(entry)
    assert verdict == 1
    assert pkt.oif is PORT
    assert pkt.frame()[:12] == MAC + PORT.mac_bytes


def test_one_request_a_second_and_at_most_128_packets_wait(room: Room) -> None:
    entry = room.entry()
    for i in range(QUEUE_MAX + 2):
        verdict, pkt = room.output(entry)
        assert verdict == (2 if i < QUEUE_MAX else 0)
    assert pkt.reason == DropReason.NEIGH_QUEUE_FULL
    assert len(room.sent()) == 1
    room.now += 999
    room.output(entry)
    assert room.sent() == []
    entry.queue = []
    room.now += 1
    room.output(entry)
    assert len(room.sent()) == 1


def test_who_does_not_answer_is_forgotten_and_what_waited_counted(room: Room) -> None:
    entry = room.entry()
    for _ in range(3):
        room.output(entry)
    room.wait(3250)
    assert (entry.state, entry.queue) == (NONE, [])
    assert room.counters.dropped(DropReason.NEIGH_UNREACHABLE) == 3
    room.wait(2250)
    assert room.table.lookup(PORT, *V4) is None


def test_a_probed_neighbour_is_asked_by_unicast_and_used_meanwhile(room: Room) -> None:
    entry = room.known(PROBE)
    verdict, _ = room.output(entry)
    assert verdict == 1
    (request,) = room.sent()
    k.check(request, k.ether(dst="02:00:00:00:00:11"), k.arp(op=1))
    assert entry.state == DELAY


def test_traffic_keeps_a_neighbour_reachable(room: Room) -> None:
    entry = room.known(REACHABLE)
    for _ in range(5):
        room.wait(30_000)
        entry.confirmed = room.now
    assert entry.state == REACHABLE
    room.wait(60_250)
    assert entry.state == PROBE
    assert room.counters.event(Event.NEIGH_REQUESTS) == 0


def test_one_question_takes_one_answer(room: Room) -> None:
    """The second of two answers to one question may be a lie: it is asked about, not believed."""
    entry = room.entry()
    room.output(entry)
    room.reply()
    room.reply(FORGED)
    assert (entry.state, entry.mac) == (REACHABLE, MAC)


def test_an_answer_that_comes_too_late_teaches_nothing(room: Room) -> None:
    entry = room.entry()
    room.output(entry)
    room.now += n.STATE_TIMEOUT_MS[SEND]
    room.reply()
    assert entry.mac == bytes(6)


def test_an_answer_that_nobody_asked_for_teaches_nothing(room: Room) -> None:
    assert room.reply() == 2
    assert room.table.lookup(PORT, *V4) is None
    entry = room.entry()
    assert room.reply() == 2
    assert (entry.state, entry.mac) == (NONE, bytes(6))


def test_a_gratuitous_claim_is_verified_and_only_the_answer_counts(room: Room) -> None:
    entry = room.known(REACHABLE)
    gratuitous = f.arp(1, FORGED, "10.0.0.11", tpa="10.0.0.11")
    assert room.arp(gratuitous) == 2
    assert entry.mac == MAC
    (probe,) = room.sent()
    k.check(probe, k.ether(dst="02:00:00:00:00:66"), k.arp(op=1, tpa="10.0.0.11"))
    for _ in range(5):  # once a second, however loud the claim
        room.arp(gratuitous)
    assert room.sent() == []
    assert room.reply(FORGED) == 2
    assert entry.mac == FORGED


def test_the_same_claim_again_needs_no_question(room: Room) -> None:
    entry = room.known(REACHABLE)
    assert room.arp(f.arp(1, MAC, "10.0.0.11", tpa="10.0.0.11")) == 2
    assert room.sent() == []
    assert entry.mac == MAC


@pytest.mark.parametrize(
    "frame",
    [
        f.arp(2, MAC, "10.0.0.254", PORT.mac_bytes, "10.0.0.11"),
        f.arp(1, MAC, "10.0.0.254", tpa="10.0.0.254"),
        f.arp(2, "01:00:5e:00:00:01", "10.0.0.11", PORT.mac_bytes, "10.0.0.254", src=MAC),
        f.arp(2, "ff:ff:ff:ff:ff:ff", "10.0.0.11", PORT.mac_bytes, "10.0.0.254", src=MAC),
        f.arp(2, bytes(6), "10.0.0.11", PORT.mac_bytes, "10.0.0.254", src=MAC),
        f.arp(3, MAC, "10.0.0.11", tpa="10.0.0.254"),
        f.arp(1, MAC, "10.0.0.11", tpa="10.0.0.254", hardware=6),
        f.arp(1, MAC, "10.0.0.11", tpa="10.0.0.254", hlen=8),
        f.arp(1, MAC, "10.0.0.11", tpa="10.0.0.254")[:41],
    ],
    ids=[
        "ours",
        "ours gratuitous",
        "group",
        "broadcast",
        "zero",
        "operation",
        "hardware",
        "hlen",
        "short",
    ],
)
def test_arp_that_is_dropped(room: Room, frame: bytes) -> None:
    entry = room.entry()
    entry.requested, entry.asking = room.now, True
    assert room.arp(frame) == 0
    assert entry.mac == bytes(6)
    assert room.sent() == []


def test_our_own_mac_address_is_not_learnt(room: Room) -> None:
    entry = room.entry()
    room.output(entry)
    room.reply(PORT.mac_bytes)
    assert (entry.state, entry.mac) == (SEND, bytes(6))


def test_a_request_for_an_address_of_this_port_is_answered(room: Room) -> None:
    ask = f.arp(1, MAC, "10.0.0.11", tpa="10.0.0.254")
    assert room.arp(ask, OTHER) == 2
    assert room.sent() == []
    assert room.arp(ask) == 2
    (reply,) = room.sent()
    k.check(
        reply,
        k.ether(dst="02:00:00:00:00:11", src="02:00:00:00:00:01"),
        k.arp(
            op=2,
            spa="10.0.0.254",
            tpa="10.0.0.11",
            sha="02:00:00:00:00:01",
            tha="02:00:00:00:00:11",
        ),
    )


def test_nd_asks_learns_and_releases(room: Room) -> None:
    entry = room.entry(V6)
    room.output(entry)
    (request,) = room.sent()
    k.check(
        request,
        k.ether(dst="33:33:ff:00:00:11"),
        k.ipv6(saddr="fd00::fe", daddr="ff02::1:ff00:11", ttl=255),
        k.icmp(type=135, target="fd00::11", lladdr="02:00:00:00:00:01"),
    )
    assert room.nd(f.ipv6("fd00::11", "fd00::fe", f.nd_na("fd00::11", MAC), ttl=255)) == 2
    assert (entry.state, entry.mac) == (REACHABLE, MAC)
    assert len(room.sent()) == 1


@pytest.mark.parametrize(
    "packet",
    [
        f.ipv6("fd00::11", "fd00::fe", f.nd_na("fd00::11", MAC), ttl=254),
        f.ipv6("fd00::11", "fd00::fe", f.nd_na("fd00::11", MAC, checksum=1), ttl=255),
        f.ipv6("fd00::11", "ff02::1", f.nd_na("fd00::11", MAC, solicited=True), ttl=255),
        f.ipv6("fd00::11", "fd00::fe", f.nd_na("fd00::fe", MAC), ttl=255),
        f.ipv6("fd00::11", "fd00::fe", f.nd_na("fd00::11", "33:33:00:00:00:01"), ttl=255),
        f.ipv6("fd00::fe", "fd00::fe", f.nd_ns("fd00::fe", MAC), ttl=255),
        f.ipv6(
            "fd00::11", "fd00::fe", f.icmp(136, 0, 0x60000000, V6[0].to_bytes(8, "big")), ttl=255
        ),
    ],
    ids=["hop limit", "checksum", "solicited to all", "ours", "group", "from ours", "short"],
)
def test_nd_that_is_dropped(room: Room, packet: bytes) -> None:
    entry = room.entry(V6)
    entry.requested, entry.asking = room.now, True
    assert room.nd(packet) == 0
    assert entry.mac == bytes(6)


def test_a_deleted_neighbour_that_conns_hold_changes_the_epoch(room: Room) -> None:
    plain, pinned = room.entry(), room.entry(V6)
    pinned.pinned = True
    epoch = room.table.epoch
    room.table.schedule(pinned.index, room.now, 10_000)
    room.wait(2250)
    assert (room.table.lookup(PORT, *V4), room.table.epoch) == (None, epoch)
    room.wait(8000)
    assert (room.table.lookup(PORT, *V6), room.table.epoch) == (None, epoch + 1)
    assert room.entry().index in (plain.index, pinned.index)


def test_the_table_is_bounded(room: Room) -> None:
    indices = [room.table.resolve(PORT, 0, MAPPED | i, room.now) for i in range(NEIGH_MAX)]
    assert sorted(indices) == list(range(1, NEIGH_MAX + 1))
    # The one that was asked for longest ago makes room, and its index is used again.
    assert room.table.resolve(PORT, 0, MAPPED | NEIGH_MAX, room.now) == indices[0]
    assert len(room.table) == NEIGH_MAX
    assert room.table.resolve(PORT, 0, MAPPED | 5, room.now) == indices[5]


def test_a_table_of_neighbours_that_answered_takes_no_more(room: Room) -> None:
    for i in range(NEIGH_MAX):
        room.table.add_static(PORT, 0, MAPPED | i, MAC)
    assert room.table.resolve(PORT, 0, MAPPED | NEIGH_MAX, room.now) == 0


def test_static_neighbours_are_never_asked_and_never_forgotten(room: Room) -> None:
    room.entry()
    room.table.add_static(PORT, *V4, MAC)
    entry = room.entry()
    assert room.output(entry)[0] == 1
    room.wait(120_000)
    entry.requested, entry.asking = room.now, True
    room.reply(FORGED)
    assert (entry.state, entry.mac) == (NOARP, MAC)
    assert room.sent() == []
    room.table.forget_static()
    assert room.table.lookup(PORT, *V4) is None


def test_a_tun_has_one_neighbour_and_no_header(room: Room) -> None:
    entry = room.entry(V4, TUN)
    assert room.entry(V6, TUN) is entry
    verdict, pkt = room.output(entry)
    assert verdict == 1
    assert pkt.oif is TUN
    assert pkt.frame()[0] == 0x45
    room.table.forget_static()
    assert room.table.entries[entry.index] is entry


def test_every_address_is_announced(room: Room) -> None:
    room.addresses.add(TUN, 4, 0, MAPPED | 0x0A090001, ADDRESS)
    room.table.announce()
    garp, na = room.sent()
    k.check(garp, k.ether(dst="ff:ff:ff:ff:ff:ff"), k.arp(op=1, spa="10.0.0.254", tpa="10.0.0.254"))
    k.check(na, k.ether(dst="33:33:00:00:00:01"), k.icmp(type=136, target="fd00::fe"))
    assert room.counters.event(Event.NEIGH_ANNOUNCEMENTS) == 2
