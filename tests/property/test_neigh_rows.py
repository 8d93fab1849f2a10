"""Whenever a worker is killed, its next incarnation knows only what was true, and all of it when
the kill came between two events; and no message makes a worker raise.

The rows are words that remember nothing: a kill is an exception in the middle of a row's stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.neigh_room import MAPPED, PORT, START, TUN, VLAN, Room
from tunlb.neigh import DELAY, NEIGH_MAX, NEIGH_ROWS_SIZE, NOARP, REACHABLE
from tunlb.neighrows import KEEP, KINDS, TELL, Row, pack
from tunlb.netif import Netif

MACS = [bytes.fromhex(f"0200000000{i:02x}") for i in range(0x11, 0x14)]
LIAR = bytes.fromhex("020000000066")
PLACES = [
    (PORT, (0, MAPPED | 0x0A00000B)),
    (PORT, (0, MAPPED | 0x0A00000C)),
    (VLAN, (0, MAPPED | 0x0A00000B)),
    (VLAN, (0xFD << 56, 0x11)),
]
places = st.sampled_from(PLACES)
macs = st.sampled_from(MACS)


class Killed(Exception):
    pass


class Words:
    """The words of the rows. Each store looks at what its row says now; the store after ``left``
    others does not happen any more.
    """

    def __init__(self, words: memoryview, true: set[Row]) -> None:
        self.words = words
        self.true = true
        self.left = -1

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, at: int) -> int:
        return int(self.words[at])

    def __setitem__(self, at: int, value: int) -> None:
        if self.left == 0:
            self.left = -1
            raise Killed
        self.left -= 1
        self.words[at] = value
        row = self.row(at // 8)
        assert row is None or row in self.true

    def row(self, index: int) -> Row | None:
        valid, place, hi, lo, mac, confirmed, *rest = self.words[8 * index : 8 * index + 8]
        assert rest == [0, 0]
        if not valid:
            return None
        confirmed = -1 if confirmed == 2**64 - 1 else confirmed
        return Row(place >> 32, place & 0xFFFF_FFFF, hi, lo, mac.to_bytes(6, "big"), confirmed)

    def rows(self) -> Iterator[Row]:
        for at in range(0, len(self.words), 8):
            if self.words[at] and (row := self.row(at // 8)) is not None:
                yield row


class RowsModel(RuleBasedStateMachine):
    """``true``: what stations answered when asked, what other workers said and what ACKs confirmed,
    as the rows that may say so.
    """

    @initialize(worker=st.sampled_from((0, 2)))
    def begin(self, worker: int) -> None:
        self.worker = worker
        self.now = START
        self.true: set[Row] = set()
        self.fixed: dict[tuple[Netif, tuple[int, int]], bytes] = {}
        self.memory = bytearray(NEIGH_ROWS_SIZE)
        self.incarnate()

    def incarnate(self) -> None:
        """A new worker of the same configuration on the old memory."""
        self.room = Room(self.worker, 4, self.memory)
        self.room.now = self.now
        self.room.table.advance(self.now, 1)
        for (netif, key), mac in self.fixed.items():
            self.room.table.add_static(netif, *key, mac)
        rows = self.room.table.rows
        assert rows is not None
        self.words = Words(rows.words, self.true)
        rows.words = self.words  # type: ignore[assignment]

    def is_true(self, netif: Netif, key: tuple[int, int], mac: bytes, confirmed: int) -> None:
        self.true.add(Row(netif.queue, netif.vid, *key, mac, confirmed))
        # Of what is in doubt it is not known any more when it was confirmed.
        self.true.add(Row(netif.queue, netif.vid, *key, mac, -1))

    def live(self) -> set[tuple[object, ...]]:
        return {
            (entry.netif.queue, entry.netif.vid, entry.hi, entry.lo, entry.mac)
            for entry in self.room.table.entries[1:]
            if REACHABLE <= entry.state <= DELAY
        }

    # -- what happens to a table

    @rule(place=places, mac=macs)
    def answer(self, place: tuple[Netif, tuple[int, int]], mac: bytes) -> None:
        """A packet makes us ask; the station answers worker 0, or whoever read its frame."""
        netif, key = place
        if key[0]:
            return
        entry = self.room.entry(key, netif)
        self.room.output(entry)
        if entry.asking and self.now - entry.requested < 3000:
            self.is_true(netif, key, mac, self.now)
        self.room.reply(mac, f"10.0.0.{key[1] & 0xFF}", netif)

    @rule(place=places)
    def lie(self, place: tuple[Netif, tuple[int, int]]) -> None:
        """Somebody claims an address, and says nothing when he is asked."""
        netif, key = place
        entry = self.room.table.lookup(netif, *key)
        if not key[0] and (entry is None or not entry.asking):
            self.room.reply(LIAR, f"10.0.0.{key[1] & 0xFF}", netif)

    @rule(place=places, mac=macs, age=st.integers(0, 90_000), used=st.booleans())
    def hear(self, place: tuple[Netif, tuple[int, int]], mac: bytes, age: int, used: bool) -> None:
        netif, key = place
        if used:
            self.room.entry(key, netif)
        self.is_true(netif, key, mac, self.now - age)
        sender = 1 if self.worker == 0 else 0
        kind = KEEP if self.worker == 0 else TELL
        self.room.hear(kind, mac, age, sender=sender, key=key, netif=netif)

    @rule(place=places)
    def ack(self, place: tuple[Netif, tuple[int, int]]) -> None:
        entry = self.room.table.lookup(place[0], *place[1])
        if entry is not None and entry.state != NOARP:
            self.is_true(*place, entry.mac, self.now)
            entry.confirmed = self.now

    @rule(ms=st.sampled_from((0, 1, 250, 1000, 3500, 30_000, 61_000, 100_000)))
    def wait(self, ms: int) -> None:
        end = self.now + ms
        while self.now < end:
            self.now = min(self.now + 500, end)
            self.room.now = self.now
            self.room.table.advance(self.now, 4096)

    @rule(place=places, mac=macs)
    def static(self, place: tuple[Netif, tuple[int, int]], mac: bytes) -> None:
        self.fixed[place] = mac
        self.room.table.add_static(place[0], *place[1], mac)

    @rule()
    def reload(self) -> None:
        self.fixed.clear()
        self.room.table.forget_static()

    # -- and to its worker

    @rule(
        place=places,
        mac=macs,
        age=st.integers(0, 90_000),
        what=st.sampled_from(("answer", "hear", "static", "wait")),
        stores=st.integers(0, 12),
        more=st.lists(st.integers(0, 24) | st.integers(0, NEIGH_MAX + 40), max_size=2),
    )
    def kill(
        self,
        place: tuple[Netif, tuple[int, int]],
        mac: bytes,
        age: int,
        what: str,
        stores: int,
        more: list[int],
    ) -> None:
        """Killed after so many stores of an event, if it has as many; else right after it. The
        next incarnations may be killed while they adopt.
        """
        self.words.left = stores
        try:
            if what == "answer":
                self.answer(place, mac)
            elif what == "hear":
                self.hear(place, mac, age, True)
            elif what == "static":
                self.static(place, mac)
            else:
                self.wait(61_000)
        except Killed:
            pass
        else:
            more = []
        self.words.left = -1
        # What the configuration says, no row may contradict.
        static = {(netif.queue, netif.vid, *key) for netif, key in self.fixed}
        survivors = {row[:5] for row in self.words.rows() if row[:4] not in static}
        for left in more:
            self.incarnate()
            self.words.left = left
            with suppress(Killed):
                self.room.table.adopt(self.now)
            self.words.left = -1
        self.incarnate()
        assert self.room.table.adopt(self.now) == len(self.live())
        assert self.live() <= survivors
        assert more or self.live() == survivors
        for entry in self.room.table.entries[1:]:
            key = (entry.netif.queue, entry.netif.vid, entry.hi, entry.lo)
            row = Row(*key, entry.mac, entry.confirmed)
            assert entry.state == NOARP or row in self.true

    @invariant()
    def the_rows_are_the_table(self) -> None:
        rows = [row[:5] for row in self.words.rows()]
        assert len(rows) == len(set(rows))
        assert set(rows) == self.live()


RowsModel.TestCase.settings = settings(deadline=None)
test_rows_never_lie = RowsModel.TestCase


# -- messages

words64 = st.sampled_from((0, 1, 0xFD << 56, MAPPED | 0x0A00000B, MAPPED | 0x0A0000FE, 2**64 - 1))
messages = st.binary(max_size=40) | st.builds(
    pack,
    st.integers(0, 5) | st.sampled_from(list(KINDS)),
    st.integers(0, 5) | st.integers(0, 255),
    st.sampled_from((PORT, VLAN, TUN, Netif(9, "lb9", 0, vid=0xFFFF, queue=2**31 - 1))),
    words64,
    words64,
    st.sampled_from((b"", *MACS, b"\xff" * 6, PORT.mac_bytes)),
    st.integers(0, 2**33),
)


@given(
    worker=st.sampled_from((0, 2)),
    heard=st.lists(st.tuples(messages, st.sampled_from((0, 300, 61_000))), max_size=40),
)
@settings(deadline=None)
def test_no_message_raises(worker: int, heard: list[tuple[bytes, int]]) -> None:
    memory = bytearray(NEIGH_ROWS_SIZE)
    room = Room(worker, 4, memory)
    room.entry()
    said = 0
    for message, ms in heard:
        room.wait(ms)
        room.table.hear(message, room.now)
        said += len(room.sent()) + len(room.peers.take())
    assert said <= len(heard)
    # Messages make entries at worker 0 only, and each at most one.
    assert len(room.table) <= 1 + (len(heard) if worker == 0 else 0)
    for entry in room.table.entries[1:]:
        if entry is room.table.entries[0]:
            continue  # forgotten meanwhile
        assert not room.addresses.is_local(entry.hi, entry.lo)
        assert not entry.mac[0] & 1
        assert entry.mac != entry.netif.mac_bytes
    assert Room(worker, 4, memory).table.adopt(room.now) <= NEIGH_MAX
