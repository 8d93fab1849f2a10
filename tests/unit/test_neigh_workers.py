"""Neighbours of one of several workers, and of one incarnation after another."""

from __future__ import annotations

import pytest

from tests.unit.neigh_room import (
    FORGED,
    MAC,
    MAPPED,
    PORT,
    START,
    TUN,
    V4,
    V6,
    VLAN,
    Room,
)
from tunlb import neigh as n
from tunlb.neigh import (
    DELAY,
    NEIGH_MAX,
    NEIGH_ROWS_SIZE,
    NOARP,
    NONE,
    PROBE,
    REACHABLE,
    SEND,
)
from tunlb.neighrows import ASK, KEEP, TELL, Message, NeighRows, Row, pack
from tunlb.netif import Netif
from tunlb.packet import Packet
from tunlb.testing import checkers as k
from tunlb.testing import frames as f
from tunlb.wire import icmp, ipv6

# -- one of several workers: all but worker 0 are mute


@pytest.fixture
def mute() -> Room:
    return Room(2, 4)


@pytest.fixture
def speaker() -> Room:
    return Room(0, 4)


def asked(mac: bytes = b"", sender: int = 2) -> list[tuple[int, Message]]:
    return [(0, Message(ASK, sender, 0, 0, *V4, mac, 0))]


def told(mac: bytes = MAC, age: int = 0, to: tuple[int, ...] = (1, 2, 3)) -> object:
    return [(worker, Message(TELL, 0, 0, 0, *V4, mac, age)) for worker in to]


def test_a_mute_worker_asks_worker_0(mute: Room) -> None:
    entry = mute.entry()
    for _ in range(3):
        assert mute.output(entry)[0] == 2
    assert entry.state == SEND
    assert mute.said() == asked()
    mute.now += 1000  # its own limit is still a request a second
    mute.output(entry)
    assert mute.said() == asked()
    assert mute.sent() == []
    assert mute.counters.snapshot() == {"NEIGH_QUEUED": 4}


def test_a_mute_worker_has_worker_0_verify(mute: Room) -> None:
    entry = mute.known(PROBE)
    assert mute.output(entry)[0] == 1
    ((to, message),) = mute.said()
    assert (to, message.kind, message.mac, entry.state) == (0, ASK, MAC, DELAY)
    mute.wait(3250)
    assert (entry.state, mute.said(), mute.sent()) == (NONE, [], [])


def test_a_question_names_the_vlan(mute: Room) -> None:
    mute.output(mute.entry(V6, VLAN))
    ((_, message),) = mute.said()
    assert message[2:6] == (10, 1, *V6)


def test_a_question_that_did_not_fit_is_asked_again(mute: Room) -> None:
    mute.peers.waiting = [(0, b"")] * 4096
    entry = mute.entry()
    mute.output(entry)
    assert entry.state == NONE
    mute.peers.waiting = []
    mute.output(entry)
    assert mute.said() == asked()


@pytest.mark.parametrize("state", range(5), ids=n.STATE_NAMES[:5])
def test_what_worker_0_tells_is_taken_asked_or_not(mute: Room, state: int) -> None:
    entry = mute.known(state)
    entry.set_mac(FORGED if state >= REACHABLE else bytes(6))
    if state < REACHABLE:
        mute.output(entry)
    mute.hear(TELL, MAC, 100)
    assert (entry.state, entry.mac, entry.confirmed) == (REACHABLE, MAC, mute.now - 100)
    assert [frame[10:16] for frame in mute.sent()] == ([MAC] if state < REACHABLE else [])


def test_a_stranger_is_not_learnt_from_worker_0(mute: Room) -> None:
    mute.hear(TELL)
    assert len(mute.table) == 0


def test_a_static_neighbour_does_not_listen_to_workers(mute: Room, speaker: Room) -> None:
    for room, kinds in ((mute, (TELL,)), (speaker, (KEEP, ASK))):
        room.table.add_static(PORT, *V4, MAC)
        for kind in kinds:
            room.hear(kind, FORGED, sender=1 if room is speaker else 0)
        assert (room.entry().state, room.entry().mac) == (NOARP, MAC)
        assert (room.said(), room.sent()) == ([], [])


def test_what_is_told_ages_on(mute: Room) -> None:
    entry = mute.entry()
    mute.hear(TELL, MAC, 45_000)
    mute.wait(14_750)
    assert entry.state == REACHABLE
    mute.wait(500)
    assert entry.state == PROBE


def test_what_is_told_does_not_age_what_our_own_traffic_confirmed(mute: Room) -> None:
    entry = mute.known(REACHABLE)
    entry.confirmed = mute.now - 10
    mute.hear(TELL, MAC, 30_000)
    assert entry.confirmed == mute.now - 10
    mute.hear(TELL, FORGED, 30_000)  # but that traffic said nothing about another MAC address
    assert (entry.mac, entry.confirmed) == (FORGED, mute.now - 30_000)


NONSENSE = {
    "empty": (2, b""),
    "noise": (2, bytes(range(34))),
    "kind only": (2, bytes((TELL,))),
    "no such port": (2, pack(TELL, 0, Netif(9, "lb9", 0), *V4, FORGED, 0)),
    "no such vlan": (2, pack(TELL, 0, Netif(0, "lb0.9", 0, vid=9), *V4, FORGED, 0)),
    "tun": (2, pack(TELL, 0, TUN, *V4, FORGED, 0)),
    "group mac": (2, pack(TELL, 0, PORT, *V4, b"\x01" + FORGED[1:], 0)),
    "broadcast": (2, pack(TELL, 0, PORT, *V4, b"\xff" * 6, 0)),
    "our mac": (2, pack(TELL, 0, PORT, *V4, PORT.mac_bytes, 0)),
    "told by worker 1": (2, pack(TELL, 1, PORT, *V4, FORGED, 0)),
    "told by ourselves": (2, pack(TELL, 2, PORT, *V4, FORGED, 0)),
    "mute worker asked": (2, pack(ASK, 1, PORT, *V4, FORGED, 0)),
    "mute worker to keep": (2, pack(KEEP, 1, PORT, *V4, FORGED, 0)),
    "worker 0 told": (0, pack(TELL, 1, PORT, *V4, FORGED, 0)),
    "worker 0 by itself": (0, pack(KEEP, 0, PORT, *V4, FORGED, 0)),
    "worker 4 of 4": (0, pack(ASK, 4, PORT, *V4, b"", 0)),
    "worker 255 of 4": (0, pack(KEEP, 255, PORT, *V4, FORGED, 0)),
    "asked for ours": (0, pack(ASK, 1, PORT, 0, MAPPED | 0x0A0000FE, b"", 0)),
    "asked for ours with mac": (0, pack(ASK, 1, PORT, 0, MAPPED | 0x0A0000FE, FORGED, 0)),
    "ours to keep": (0, pack(KEEP, 1, PORT, 0xFD << 56, 0xFE, FORGED, 0)),
    "asked on a tun": (0, pack(ASK, 1, TUN, *V4, b"", 0)),
    "asked with a group mac": (0, pack(ASK, 1, PORT, *V4, b"\x01" + FORGED[1:], 0)),
    "asked with our mac": (0, pack(ASK, 1, PORT, *V4, PORT.mac_bytes, 0)),
    "single worker told": (-1, pack(TELL, 0, PORT, *V4, FORGED, 0)),
    "single worker asked": (-1, pack(ASK, 1, PORT, *V4, b"", 0)),
}


@pytest.mark.parametrize(("worker", "message"), NONSENSE.values(), ids=NONSENSE)
def test_a_message_that_makes_no_sense_is_ignored(worker: int, message: bytes) -> None:
    room = Room() if worker < 0 else Room(worker, 4)
    entry = room.known(PROBE)
    room.table.hear(message, room.now)
    assert (entry.state, entry.mac, entry.confirmed, len(room.table)) == (PROBE, MAC, -1, 1)
    assert (room.said(), room.sent(), room.counters.snapshot()) == ([], [], {})


def test_worker_0_asks_once_for_everybody(speaker: Room) -> None:
    for sender in (1, 2, 3, 1):
        speaker.hear(ASK, b"", sender=sender)
    (request,) = speaker.sent()
    k.check(request, k.ether(dst="ff:ff:ff:ff:ff:ff"), k.arp(op=1, tpa="10.0.0.11"))
    assert speaker.said() == []
    assert speaker.reply() == 2
    assert speaker.said() == told()
    assert speaker.sent() == []


def test_worker_0_asks_again_after_a_second(speaker: Room) -> None:
    for ms in (0, 999, 1):
        speaker.now += ms
        speaker.hear(ASK, b"", sender=1)
    assert len(speaker.sent()) == 2


def test_worker_0_answers_what_it_knows_and_only_who_asked(speaker: Room) -> None:
    entry = speaker.known(REACHABLE)
    entry.confirmed = speaker.now - 59_999
    speaker.hear(ASK, FORGED, sender=2)
    assert speaker.said() == told(MAC, 59_999, to=(2,))
    assert speaker.sent() == []


@pytest.mark.parametrize("state", [REACHABLE, PROBE])
def test_worker_0_verifies_what_it_knows_from_long_ago(speaker: Room, state: int) -> None:
    speaker.known(state).confirmed = speaker.now - 60_000
    speaker.hear(ASK, FORGED, sender=2)
    (request,) = speaker.sent()
    k.check(request, k.ether(dst="02:00:00:00:00:11"), k.arp(op=1, tpa="10.0.0.11"))
    assert speaker.said() == []
    speaker.reply()
    assert speaker.said() == told()


def test_worker_0_verifies_what_only_the_other_knows(speaker: Room) -> None:
    """By unicast at first; who does not answer is looked for by broadcast."""
    speaker.hear(ASK, FORGED, sender=2)
    speaker.now += 1000
    speaker.hear(ASK, FORGED, sender=2)
    first, second = speaker.sent()
    k.check(first, k.ether(dst="02:00:00:00:00:66"), k.arp(op=1, tpa="10.0.0.11"))
    k.check(second, k.ether(dst="ff:ff:ff:ff:ff:ff"), k.arp(op=1, tpa="10.0.0.11"))


def test_worker_0_that_is_full_of_neighbours_does_not_answer(speaker: Room) -> None:
    for i in range(NEIGH_MAX):
        speaker.table.add_static(PORT, 0, MAPPED | i, MAC)
    speaker.hear(ASK, b"", sender=1)
    speaker.hear(KEEP, MAC, sender=1)
    assert (speaker.said(), speaker.sent(), len(speaker.table)) == ([], [], NEIGH_MAX)


def test_an_answer_without_the_option_is_told_as_well(speaker: Room) -> None:
    entry = speaker.known(PROBE, V6)
    speaker.output(entry)
    body = f.icmp(136, 0, 0x60000000, V6[0].to_bytes(8, "big") + V6[1].to_bytes(8, "big"))
    assert speaker.nd(f.ipv6("fd00::11", "fd00::fe", body, ttl=255)) == 2
    assert entry.state == REACHABLE
    expected = Message(TELL, 0, 0, 0, *V6, MAC, 0)
    assert speaker.said() == [(1, expected), (2, expected), (3, expected)]


def test_a_gratuitous_claim_is_told_once_it_is_verified(speaker: Room) -> None:
    speaker.known(REACHABLE)
    speaker.arp(f.arp(1, FORGED, "10.0.0.11", tpa="10.0.0.11"))
    assert speaker.said() == []
    speaker.reply(FORGED)
    assert speaker.said() == told(FORGED)


# -- what conns of another worker confirm


def test_confirmed_by_traffic_is_kept_at_worker_0(mute: Room) -> None:
    entry = mute.known(REACHABLE)
    mute.wait(30_000)
    entry.confirmed = mute.now
    assert mute.said() == []
    mute.wait(30_500)
    ((to, message),) = mute.said()
    assert (to, message[:7]) == (0, (KEEP, 2, 0, 0, *V4, MAC))
    assert message.age in (30_000, 30_250)  # when the timer looked
    mute.wait(90_000)  # no traffic, nothing to keep
    assert mute.said() == []


@pytest.mark.parametrize("room", [Room(), Room(0, 4)], ids=["single", "worker 0"])
def test_worker_0_tells_nobody_what_its_own_traffic_confirms(room: Room) -> None:
    entry = room.known(REACHABLE)
    room.wait(30_000)
    entry.confirmed = room.now
    room.wait(30_500)
    assert (entry.state, room.said()) == (REACHABLE, [])


@pytest.mark.parametrize("state", [None, NONE, SEND], ids=["absent", "NONE", "SEND"])
def test_what_is_kept_is_taken_when_we_know_nothing(speaker: Room, state: int | None) -> None:
    if state is not None:
        speaker.output(speaker.known(state))
        speaker.sent()
    speaker.hear(KEEP, MAC, 500, sender=3)
    entry = speaker.entry()
    assert (entry.state, entry.mac, entry.confirmed) == (REACHABLE, MAC, speaker.now - 500)
    assert len(speaker.sent()) == (0 if state is None else 1)  # what waited
    assert speaker.said() == []


def test_what_is_kept_leaves_a_question_open(speaker: Room) -> None:
    """Those who asked wait for the answer on the wire."""
    speaker.hear(ASK, b"", sender=2)
    speaker.hear(KEEP, MAC, sender=3)
    assert speaker.said() == []
    speaker.reply()
    assert speaker.said() == told()


@pytest.mark.parametrize("state", [REACHABLE, PROBE, DELAY])
def test_what_is_kept_confirms_what_we_know(speaker: Room, state: int) -> None:
    entry = speaker.known(state)
    speaker.hear(KEEP, MAC, 500, sender=3)
    assert (entry.state, entry.confirmed) == (REACHABLE, speaker.now - 500)
    speaker.wait(59_250)
    assert entry.state == REACHABLE
    speaker.wait(500)
    assert entry.state == PROBE
    assert (speaker.said(), speaker.sent()) == ([], [])


def test_workers_that_disagree_are_verified_and_neither_believed(speaker: Room) -> None:
    entry = speaker.known(REACHABLE)
    entry.confirmed = speaker.now
    speaker.hear(KEEP, FORGED, sender=3)
    speaker.hear(KEEP, FORGED, sender=1)
    (request,) = speaker.sent()
    k.check(request, k.ether(dst="02:00:00:00:00:11"), k.arp(op=1, tpa="10.0.0.11"))
    assert (entry.state, entry.mac) == (DELAY, MAC)
    speaker.hear(ASK, b"", sender=2)  # nobody is told what is in doubt
    assert speaker.said() == []
    speaker.reply()
    assert speaker.said() == told()
    assert entry.state == REACHABLE


def test_who_of_two_does_not_answer_gives_way(speaker: Room) -> None:
    entry = speaker.known(REACHABLE)
    speaker.hear(KEEP, FORGED, sender=3)
    speaker.wait(3250)
    assert entry.state == NONE
    speaker.hear(KEEP, FORGED, sender=3)
    assert (entry.state, entry.mac) == (REACHABLE, FORGED)


# -- frames that another worker than 0 reads


def test_arp_is_handed_over_whole(mute: Room) -> None:
    pkt = Packet()
    frame = f.arp(1, MAC, "10.0.0.11", tpa="10.0.0.254")
    pkt.load(f.vnet(frame), PORT)
    assert (mute.table.arp_input(pkt, mute.now), pkt.owner) == (2, 0)
    assert pkt.frame() == frame
    assert (mute.sent(), mute.counters.snapshot()) == ([], {})
    pkt.load(f.vnet(frame), PORT)
    assert pkt.owner == -1
    pkt.handed = True
    assert (mute.table.arp_input(pkt, mute.now), pkt.owner) == (2, -1)
    assert len(mute.sent()) == 1


def test_nd_is_handed_over_whole_if_it_is_any(mute: Room) -> None:
    pkt = Packet()
    for checksum, verdict, owner in ((None, 2, 0), (1, 0, -1)):
        body = f.nd_ns("fd00::fe", MAC, checksum=checksum)
        frame = f.eth(PORT.mac_bytes, MAC, payload=f.ipv6("fd00::11", "fd00::fe", body, ttl=255))
        pkt.load(f.vnet(frame), PORT)
        assert (ipv6.parse(pkt), icmp.parse(pkt)) == (0, 0)
        assert (mute.table.nd_input(pkt, mute.now), pkt.owner) == (verdict, owner)
        assert pkt.frame() == frame
    pkt.load(f.vnet(frame := f.eth(PORT.mac_bytes, MAC, payload=_solicitation())), PORT)
    assert (ipv6.parse(pkt), icmp.parse(pkt)) == (0, 0)
    pkt.handed = True
    assert (mute.table.nd_input(pkt, mute.now), pkt.owner) == (2, -1)
    assert len(mute.sent()) == 1


def _solicitation() -> bytes:
    return f.ipv6("fd00::11", "fd00::fe", f.nd_ns("fd00::fe", MAC), ttl=255)


@pytest.mark.parametrize("room", [Room(), Room(0, 4)], ids=["single", "worker 0"])
def test_worker_0_hands_nothing_over(room: Room) -> None:
    pkt = Packet()
    pkt.load(f.vnet(f.arp(1, MAC, "10.0.0.11", tpa="10.0.0.254")), PORT)
    assert (room.table.arp_input(pkt, room.now), pkt.owner) == (2, -1)
    assert len(room.sent()) == 1


def test_only_worker_0_announces(mute: Room, speaker: Room) -> None:
    mute.table.announce()
    speaker.table.announce()
    assert (len(mute.sent()), len(speaker.sent())) == (0, 2)


# -- rows: what the next incarnation finds


def rows_of(memory: bytearray) -> list[Row]:
    return NeighRows(memory).read()


def mirrored(worker: int = 0, workers: int = 1) -> tuple[Room, bytearray]:
    memory = bytearray(NEIGH_ROWS_SIZE)
    return Room(worker, workers, memory), memory


def test_a_neighbour_has_a_row_while_it_has_a_mac_address() -> None:
    room, memory = mirrored()
    entry = room.entry()
    room.output(entry)
    assert rows_of(memory) == []
    room.reply()
    assert rows_of(memory) == [Row(0, 0, *V4, MAC, START)]
    room.wait(60_250)
    assert entry.state == PROBE
    assert rows_of(memory) == [Row(0, 0, *V4, MAC, START)]
    room.wait(30_500)
    assert (entry.state, rows_of(memory)) == (NONE, [])


def test_a_row_follows_what_traffic_confirms() -> None:
    room, memory = mirrored()
    entry = room.entry()
    room.output(entry)
    room.reply()
    entry.confirmed = START + 40_000
    room.wait(60_250)
    assert rows_of(memory) == [Row(0, 0, *V4, MAC, START + 40_000)]


def test_a_row_of_what_is_in_doubt_is_to_be_verified() -> None:
    room, memory = mirrored(0, 4)
    room.hear(KEEP, MAC, sender=1)
    room.hear(KEEP, FORGED, sender=2)
    assert rows_of(memory) == [Row(0, 0, *V4, MAC, -1)]


def test_static_neighbours_and_tuns_have_no_row() -> None:
    room, memory = mirrored()
    room.entry(V4, TUN)
    room.table.add_static(PORT, *V6, MAC)
    room.output(room.entry())
    room.reply()
    assert len(rows_of(memory)) == 1
    room.table.add_static(PORT, *V4, FORGED)
    assert rows_of(memory) == []


@pytest.mark.parametrize(
    ("age", "state", "left"),
    [
        (0, REACHABLE, 60_000),
        (59_999, REACHABLE, 1),
        (60_000, PROBE, 30_000),
        (None, PROBE, 30_000),
    ],
    ids=["fresh", "old", "too old", "never"],
)
@pytest.mark.parametrize("worker", [0, 2])
def test_a_row_is_adopted(worker: int, age: int | None, state: int, left: int) -> None:
    room, memory = mirrored(worker, 4)
    NeighRows(memory).write(900, VLAN, *V6, MAC, -1 if age is None else room.now - age)
    assert room.table.adopt(room.now) == 1
    entry = room.table.lookup(VLAN, *V6)
    assert entry is not None
    assert (entry.state, entry.mac, entry.queue) == (state, MAC, [])
    assert [row[:5] for row in rows_of(memory)] == [(1, 10, *V6, MAC)]
    assert NeighRows(memory).words[entry.index * 8] == 1
    assert (room.said(), room.sent()) == ([], [])
    room.wait(left)
    room.wait(250)
    assert entry.state == (PROBE if state == REACHABLE else NONE)


def test_an_adopted_neighbour_is_used_at_once_and_verified_when_it_is_old() -> None:
    room, memory = mirrored()
    NeighRows(memory).write(5, PORT, *V4, MAC, room.now - 70_000)
    room.table.adopt(room.now)
    verdict, pkt = room.output(room.entry())
    assert (verdict, pkt.frame()[:6]) == (1, MAC)
    (request,) = room.sent()
    k.check(request, k.ether(dst="02:00:00:00:00:11"), k.arp(op=1))


FALSE_ROWS = {
    "no such port": (Netif(9, "lb9", 0), V4, MAC, 0),
    "no such vlan": (Netif(0, "lb0.9", 0, vid=9), V4, MAC, 0),
    "tun": (TUN, V4, MAC, 0),
    "our address": (PORT, (0xFD << 56, 0xFE), MAC, 0),
    "our mac": (PORT, V4, PORT.mac_bytes, 0),
    "group mac": (PORT, V4, b"\x01" + MAC[1:], 0),
    "zero mac": (PORT, V4, bytes(6), 0),
    "confirmed tomorrow": (PORT, V4, MAC, START + 1),
}


@pytest.mark.parametrize(("netif", "key", "mac", "at"), FALSE_ROWS.values(), ids=FALSE_ROWS)
def test_a_row_that_makes_no_sense_is_cleared(
    netif: Netif, key: tuple[int, int], mac: bytes, at: int
) -> None:
    room, memory = mirrored()
    NeighRows(memory).write(1, netif, *key, mac, at)
    NeighRows(memory).write(NEIGH_MAX, PORT, *V6, MAC, START)
    assert room.table.adopt(room.now) == 1
    assert rows_of(memory) == [Row(0, 0, *V6, MAC, START)]
    assert len(room.table) == 1


def test_of_two_rows_for_an_address_the_one_confirmed_last_counts() -> None:
    room, memory = mirrored()
    rows = NeighRows(memory)
    rows.write(1, PORT, *V4, FORGED, START - 2)
    rows.write(2, PORT, *V4, MAC, START - 1)
    rows.write(3, PORT, *V4, FORGED, START - 3)
    assert room.table.adopt(room.now) == 1
    assert rows.read() == [Row(0, 0, *V4, MAC, START - 1)]
    assert room.entry().mac == MAC


def test_static_neighbours_win_over_rows() -> None:
    room, memory = mirrored()
    NeighRows(memory).write(1, PORT, *V4, FORGED, START)
    room.table.add_static(PORT, *V4, MAC)
    assert room.table.adopt(room.now) == 0
    assert (room.entry().mac, rows_of(memory)) == (MAC, [])


def test_static_neighbours_leave_the_rows_of_others() -> None:
    """They are there first, and take the indices that others had."""
    room, memory = mirrored()
    NeighRows(memory).write(1, PORT, *V6, MAC, START)
    room.table.add_static(PORT, *V4, FORGED)
    assert room.table.adopt(room.now) == 1
    assert rows_of(memory) == [Row(0, 0, *V6, MAC, START)]
    assert room.entry(V6).mac == MAC


def test_a_full_table_is_adopted_whole_and_a_fuller_one_by_age() -> None:
    room, memory = mirrored()
    room.table.add_static(PORT, *V4, MAC)
    rows = NeighRows(memory)
    for i in range(NEIGH_MAX):
        rows.write(i + 1, PORT, 1, i, MAC, START - i)
    assert room.table.adopt(room.now) == NEIGH_MAX - 1
    assert len(rows.read()) == NEIGH_MAX - 1
    assert room.table.lookup(PORT, 1, NEIGH_MAX - 1) is None


def test_rows_are_adopted_again_and_again() -> None:
    room, memory = mirrored()
    rows = NeighRows(memory)
    for i in range(5):
        rows.write(7 * i + 3, PORT, 1, i, MAC, START - i)
    before = rows.read()
    for _ in range(3):
        assert room.table.adopt(room.now) == 5
        assert rows.read() == before
        room = Room(0, 1, memory)


def test_without_rows_there_is_nothing_to_adopt() -> None:
    room = Room()
    assert room.table.adopt(room.now) == 0


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=str(NEIGH_ROWS_SIZE)):
        Room(0, 1, bytearray(NEIGH_ROWS_SIZE - 64))
