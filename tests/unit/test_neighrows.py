"""A neighbour as a row of shared memory and as a message."""

from __future__ import annotations

import pytest

from tunlb import neighrows as r
from tunlb.neighrows import ASK, KEEP, ROW_SIZE, TELL, Message, NeighRows, Row, pack, parse
from tunlb.netif import Netif

PORT = Netif(0, "lb0", 0x020000000001)
VLAN = Netif(7, "lb1.4094", 0x020000000009, vid=4094, queue=3)
HI, LO = 0xFD00_0000_0000_0001, 0xFFFF_FFFF_FFFF_FFFE
MAC, OTHER = bytes.fromhex("020000000011"), bytes.fromhex("feffffffffff")


def word(memory: bytearray, index: int, at: int, value: int) -> None:
    memoryview(memory).cast("Q")[index * 8 + at] = value


# -- messages


@pytest.mark.parametrize("netif", [PORT, VLAN], ids=["port", "vlan"])
@pytest.mark.parametrize("kind", r.KINDS, ids=["ask", "tell", "keep"])
def test_a_message_comes_back_as_it_was(kind: int, netif: Netif) -> None:
    found = parse(pack(kind, 63, netif, HI, LO, OTHER, 59_999))
    assert found == Message(kind, 63, netif.vid, netif.queue, HI, LO, OTHER, 59_999)


def test_only_an_ask_may_leave_out_the_mac_address() -> None:
    asked = parse(pack(ASK, 1, PORT, HI, LO, b"", 0))
    assert asked is not None
    assert asked.mac == b""
    assert parse(pack(TELL, 1, PORT, HI, LO, b"", 0)) is None
    assert parse(pack(KEEP, 1, PORT, HI, LO, bytes(6), 0)) is None


@pytest.mark.parametrize(
    ("age", "said"), [(-1, 0), (2**32, 2**32 - 1), (10**15, 2**32 - 1)], ids=str
)
def test_an_age_keeps_within_its_word(age: int, said: int) -> None:
    found = parse(pack(TELL, 0, PORT, HI, LO, MAC, age))
    assert found is not None
    assert found.age == said


GOOD = pack(TELL, 0, PORT, HI, LO, MAC, 0)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x02", GOOD[:-1], GOOD + b"\0", b"\0" + GOOD[1:], b"\x04" + GOOD[1:], b"\xff" * 34],
    ids=["empty", "kind only", "short", "long", "kind 0", "kind 4", "ones"],
)
def test_what_is_no_message(data: bytes) -> None:
    assert parse(data) is None


def test_kinds_are_the_first_bytes() -> None:
    assert [pack(kind, 9, PORT, 0, 0, MAC, 0)[0] for kind in (ASK, TELL, KEEP)] == list(r.KINDS)


# -- rows


def test_rows_come_back_confirmed_last_first() -> None:
    rows = NeighRows(bytearray(4 * ROW_SIZE))
    assert len(rows) == 4
    assert rows.read() == []
    rows.write(1, PORT, 0, 5, MAC, 1000)
    rows.write(3, VLAN, HI, LO, OTHER, 2000)
    rows.write(2, PORT, 0, 6, MAC, -1)
    assert rows.read() == [
        Row(3, 4094, HI, LO, OTHER, 2000),
        Row(0, 0, 0, 5, MAC, 1000),
        Row(0, 0, 0, 6, MAC, -1),
    ]


def test_a_row_is_written_over_and_cleared() -> None:
    memory = bytearray(2 * ROW_SIZE)
    rows = NeighRows(memory)
    rows.write(1, PORT, HI, LO, MAC, 1000)
    rows.write(1, PORT, HI, LO, MAC, 3000)
    assert rows.read() == [Row(0, 0, HI, LO, MAC, 3000)]
    rows.write(1, PORT, HI, LO, OTHER, 4000)
    assert rows.read() == [Row(0, 0, HI, LO, OTHER, 4000)]
    assert not any(memory[:ROW_SIZE])
    rows.clear(1)
    assert rows.read() == []
    rows.write(1, PORT, HI, LO, OTHER, 5000)  # not revived by its old words
    assert rows.read() == [Row(0, 0, HI, LO, OTHER, 5000)]


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (0, 2), (0, 2**64 - 1), (4, 1 << 48), (4, 2**64 - 1)],
    ids=["not valid", "valid 2", "valid -1", "mac 49 bits", "mac 64 bits"],
)
def test_a_row_that_no_worker_wrote(at: int, value: int) -> None:
    memory = bytearray(2 * ROW_SIZE)
    rows = NeighRows(memory)
    rows.write(1, PORT, HI, LO, MAC, 1000)
    word(memory, 1, at, value)
    assert rows.read() == []


def test_the_largest_words_are_read() -> None:
    memory = bytearray(b"\xff" * ROW_SIZE)
    word(memory, 0, 0, 1)
    word(memory, 0, 4, 2**48 - 1)
    (row,) = NeighRows(memory).read()
    assert row == Row(2**32 - 1, 2**32 - 1, 2**64 - 1, 2**64 - 1, b"\xff" * 6, -1)
